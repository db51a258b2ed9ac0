"""Models of timm."""

from legrad.models.timm.library import adapt, available, load, not_supported

__all__ = ["adapt", "available", "load", "not_supported"]
