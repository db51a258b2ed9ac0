"""The embedded model's ear: spoken names of its concepts in the same space: ``legrad.load("embedded:speech")``."""
