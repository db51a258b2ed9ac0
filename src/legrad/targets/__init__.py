"""What can be asked about an image, and how it becomes a score. The kinds of targets are handed on by ``legrad``."""

from legrad.targets.kinds import PREDICTED, Audio, Contrast, Prompts, Similar, Target, ZeroShot

__all__ = ["PREDICTED", "Audio", "Contrast", "Prompts", "Similar", "Target", "ZeroShot"]
