"""The embedded models: open_clip models with a tokenizer of their own, and a speech tower."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from legrad.errors import InputError
from legrad.models import open_clip as library
from legrad.models.adapter import Adapter, AudioEncoder
from legrad.models.anatomy import Readout, ViTAnatomy, published_on_grid
from legrad.models.timm import trunk


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """Load a model: "" with a class token, "map" with attention pooling, "speech" as "", with a speech tower."""
    from legrad.embedded import model as embedded

    if name not in ("", "map", "speech"):
        raise InputError(f"unknown model 'embedded:{name}'; expected 'embedded', 'embedded:map' or 'embedded:speech'")
    model, tokenizer = embedded.load(embedded.MAP_WEIGHTS if name == "map" else embedded.WEIGHTS)
    adapter = library.adapt(model.to(device=device, dtype=dtype))
    assert adapter is not None
    adapter = library.with_tokenizer(adapter, tokenizer, f"embedded:{name}" if name else "embedded")
    adapter = replace(adapter, unknown_words=tokenizer.unknown)
    return _with_speech(adapter, device) if name == "speech" else adapter


def _with_speech(adapter: Adapter, device: torch.device | str | None) -> Adapter:
    """The adapter with the speech tower, always in float32, for sounds as targets and to be explained itself."""
    from legrad.embedded.speech import model as speech

    tower = speech.load().to(device=device)
    audio_encoder = AudioEncoder(speech.RATE, tower.hear, tower, longest=speech.LONGEST / speech.RATE)

    def transform(size: Any, fit: str) -> _SpeechExtractor:
        if size is not None or fit != "model":
            raise InputError(f"sounds take neither size nor fit, got size={size}, fit={fit!r}")
        return _SpeechExtractor(tower, speech.RATE)

    adapter = replace(adapter, audio_encoder=audio_encoder)
    return replace(
        adapter, audio_adapter=replace(adapter, model=tower, anatomy=speech_anatomy(tower), transform=transform)
    )


def speech_anatomy(tower: Any) -> ViTAnatomy:
    """The speech tower's: a timm vision transformer that takes (batch, time, frequency).

    Its head has weights for every place of the grid.
    """
    embedding = tower.trunk.patch_embed
    return ViTAnatomy(
        library="embedded",
        tower=tower,
        run=tower,
        blocks=tuple(tower.trunk.blocks),
        image_size=embedding.img_size,
        patch_size=embedding.patch_size,
        grid=embedding.grid_size,
        axes=("frequency", "time"),
        shape=embedding.img_size[::-1],
        num_prefix_tokens=0,
        readouts={"native": Readout(tower.read_out), "published": Readout(published_on_grid(tower.read_out))},
        default_readout="native",
        output="embedding",
        call_settings=trunk.call_settings(tower.trunk),
    )


@dataclass(frozen=True)
class _SpeechExtractor:
    """What makes the tower's input, for ``spectrograms.features``.

    Attributes:
        silence: value of the cells before and after a sound. It is a constant, because features are relative to the
            loudest cell, which a silent clip does not have.
    """

    tower: Any
    sampling_rate: int
    silence: float = 0.0

    def spectrogram(self, waveform: Any) -> Any:
        return self.tower.spectrogram(waveform)
