"""The paper's evaluation as benchmarks: ``legrad bench segmentation``, or ``legrad.bench.runner.run`` from Python."""
