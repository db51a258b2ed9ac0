"""Models of timm."""

from legrad.models.timm.library import adapt, available, load

__all__ = ["adapt", "available", "load"]
