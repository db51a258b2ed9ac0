"""How a model is described: ``ViTAnatomy``, ``Adapter``, and one short file for each model library."""
