"""Readers of the evaluation's data sets, and of folders of one's own."""

from legrad.datasets.sample import IGNORE, Dataset, Sample

__all__ = ["IGNORE", "Dataset", "Sample"]
