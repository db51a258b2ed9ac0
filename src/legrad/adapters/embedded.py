"""The models inside the package: open_clip models like any other, with a tokenizer of their own."""

from dataclasses import replace

import torch

from legrad.adapters import Adapter
from legrad.adapters import open_clip as library
from legrad.errors import InputError
from legrad.hearing import Hearing


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """The class-token model if ``name`` is empty, "map" for its attention-pooled sibling, "speech" to hear too."""
    from legrad.embedded import model as embedded

    if name not in ("", "map", "speech"):
        raise InputError(f"unknown model 'embedded:{name}'; expected 'embedded', 'embedded:map' or 'embedded:speech'")
    model, tokenizer = embedded.load(embedded.MAP_WEIGHTS if name == "map" else embedded.WEIGHTS)
    adapter = library.adapt(model.to(device=device, dtype=dtype))
    assert adapter is not None
    if name == "speech":
        adapter = replace(adapter, hearing=_ear(device))
    return library.with_tokenizer(adapter, tokenizer, f"embedded:{name}" if name else "embedded")


def _ear(device: torch.device | str | None) -> Hearing:
    """The speech tower, always in float32."""
    from legrad.embedded.speech import model as speech

    tower = speech.load().to(device=device)
    return Hearing(speech.RATE, tower.hear, tower, longest=speech.LONGEST / speech.RATE)
