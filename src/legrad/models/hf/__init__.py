"""Models of Hugging Face transformers."""

from legrad.models.hf.library import adapt, available, find, not_supported, reason, tools
from legrad.models.hf.loading import load

__all__ = ["adapt", "available", "find", "load", "not_supported", "reason", "tools"]
