"""The models inside the package: open_clip models like any other, with a tokenizer of their own."""

import torch

from legrad.adapters import Adapter
from legrad.adapters import open_clip as library
from legrad.errors import InputError


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """The class-token model if ``name`` is empty, "map" for its attention-pooled sibling."""
    from legrad.embedded import model as embedded

    if name not in ("", "map"):
        raise InputError(f"unknown model 'embedded:{name}'; expected 'embedded' or 'embedded:map'")
    model, tokenizer = embedded.load(embedded.MAP_WEIGHTS if name else embedded.WEIGHTS)
    adapter = library.adapt(model.to(device=device, dtype=dtype))
    assert adapter is not None
    return library.with_tokenizer(adapter, tokenizer, f"embedded:{name}" if name else "embedded")
