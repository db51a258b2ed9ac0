"""Where the authors' package keeps ``visualize`` and ``list_pretrained``, so that its README runs unchanged."""

from legrad.compat import list_pretrained, visualize

__all__ = ["list_pretrained", "visualize"]
