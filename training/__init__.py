"""How the embedded models, sprites and spoken samples are made and measured; not part of the wheel."""
