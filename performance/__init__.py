"""Benchmarks of speed and memory against the bare forward and other packages: ``python -m performance``."""
