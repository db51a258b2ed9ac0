"""Models of Hugging Face transformers."""

from legrad.models.hf.library import adapt, available, find, load, not_supported, reason, tools

__all__ = ["adapt", "available", "find", "load", "not_supported", "reason", "tools"]
