"""A speech encoder for the embedded model's embedding space: ``legrad.load("embedded:speech")``."""
