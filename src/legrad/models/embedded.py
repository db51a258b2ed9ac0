"""The models inside the package: open_clip models like any other, with a tokenizer of their own."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from legrad.errors import InputError
from legrad.models import open_clip as library
from legrad.models.adapter import Adapter, AudioEncoder
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.models.timm import trunk


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """The class-token model if ``name`` is empty, "map" for its attention-pooled sibling, "speech" to hear too."""
    from legrad.embedded import model as embedded

    if name not in ("", "map", "speech"):
        raise InputError(f"unknown model 'embedded:{name}'; expected 'embedded', 'embedded:map' or 'embedded:speech'")
    model, tokenizer = embedded.load(embedded.MAP_WEIGHTS if name == "map" else embedded.WEIGHTS)
    adapter = library.adapt(model.to(device=device, dtype=dtype))
    assert adapter is not None
    adapter = library.with_tokenizer(adapter, tokenizer, f"embedded:{name}" if name else "embedded")
    return _with_speech(adapter, device) if name == "speech" else adapter


def _with_speech(adapter: Adapter, device: torch.device | str | None) -> Adapter:
    """The speech tower, always in float32: for sounds as targets, and to be explained itself."""
    from legrad.embedded.speech import model as speech

    tower = speech.load().to(device=device)
    hearing = AudioEncoder(speech.RATE, tower.hear, tower, longest=speech.LONGEST / speech.RATE)

    def transform(size: Any, fit: str) -> _SpeechExtractor:
        if size is not None or fit != "model":
            raise InputError(f"sounds take neither size nor fit, got size={size}, fit={fit!r}")
        return _SpeechExtractor(tower, speech.RATE)

    adapter = replace(adapter, audio_encoder=hearing)
    return replace(
        adapter, audio_adapter=replace(adapter, model=tower, anatomy=speech_anatomy(tower), transform=transform)
    )


def speech_anatomy(tower: Any) -> ViTAnatomy:
    """The speech tower's: a timm vision transformer that takes (batch, time, frequency).

    Its head has weights for every place, so the published read-out, for want of a token to take, has the mean at all.
    """

    def published(tokens: Any) -> Any:
        return tower.read_out(tokens.mean(1, keepdim=True).expand_as(tokens))

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
        readouts={"native": Readout(tower.read_out), "published": Readout(published)},
        default_readout="native",
        output="embedding",
        call_settings=trunk.switches(tower.trunk),
    )


@dataclass(frozen=True)
class _SpeechExtractor:
    """What makes the tower's input, for ``sounds.features``.

    Attributes:
        silence: its value beside a sound; a clip of nothing but silence has no loudest cell to compare with.
    """

    tower: Any
    sampling_rate: int
    silence: float = 0.0

    def spectrogram(self, waveform: Any) -> Any:
        return self.tower.spectrogram(waveform)
