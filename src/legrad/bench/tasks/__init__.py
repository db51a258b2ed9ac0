"""The benchmarks themselves, one module each."""
