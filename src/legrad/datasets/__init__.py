"""Readers of public evaluation data sets, and of the user's own folders. Nothing is downloaded.

Every reader is a ``Dataset`` of ``Sample``; a broken item raises ``InputError`` when it is read, a broken data set when
it is opened.
"""

from legrad.datasets.ade20k import ADE20KPrompted
from legrad.datasets.image_folder import ImageFolder
from legrad.datasets.imagenet_s import ImageNetS
from legrad.datasets.imagenet_segmentation import ImageNetSegmentation
from legrad.datasets.mask_folder import MaskFolder
from legrad.datasets.points import OpenImagesPoints, PointsCsv
from legrad.datasets.sample import IGNORE, Dataset, Sample
from legrad.datasets.sound_folder import SoundFolder

__all__ = [
    "IGNORE",
    "ADE20KPrompted",
    "Dataset",
    "ImageFolder",
    "ImageNetS",
    "ImageNetSegmentation",
    "MaskFolder",
    "OpenImagesPoints",
    "PointsCsv",
    "Sample",
    "SoundFolder",
]
