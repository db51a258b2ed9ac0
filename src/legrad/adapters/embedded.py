"""The model inside the package: an open_clip CLIP like any other, with its own tokenizer."""

import torch

from legrad.adapters import Adapter
from legrad.adapters import open_clip as library


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """``name`` is empty: there is one embedded model."""
    from legrad.embedded.model import load as load_model

    model, tokenizer = load_model()
    adapter = library.adapt(model.to(device=device, dtype=dtype))
    assert adapter is not None
    return library.with_tokenizer(adapter, tokenizer, "embedded")
