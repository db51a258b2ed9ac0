"""Sounds as targets: checked clips -> embeddings, for models that embed sounds in the space of their images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.checks import brief, first_line
from legrad.core import state
from legrad.core.finite import nonfinite_weight
from legrad.core.memory import ran_out
from legrad.errors import InputError, LeGradError, warn
from legrad.inputs import images, sounds, urls
from legrad.models.adapter import AudioEncoder
from legrad.targets.kinds import Audio

if TYPE_CHECKING:
    from numpy.typing import NDArray


def embed_sound(target: Audio, encoder: AudioEncoder) -> tuple[str, Tensor]:
    """A name for the sound, and its embedding (features,), normalised, at least float32.

    Raises:
        InputError: a sound that is missing, unreadable, empty, silent, too short or clipped, that holds NaN or values
            far outside [-1, 1], or without anything between ``start`` and ``end``.
    """
    sources = target.sound if isinstance(target.sound, list) else [target.sound]
    _check(target, sources)
    names = ["the waveform"] if len(sources) == 1 else [f"waveform {index}" for index in range(len(sources))]
    waveforms = [_waveform(source, target, encoder, name) for source, name in zip(sources, names, strict=True)]
    try:
        with state.evaluation_mode(encoder.tower) if encoder.tower is not None else torch.no_grad():
            embeddings = encoder.encode(waveforms)
    except Exception as error:  # anything that users wrote
        if ran_out(error) or isinstance(error, LeGradError):
            raise
        raise InputError(f"AudioEncoder.encode failed for {_name(sources)}: {first_line(error)}") from error
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or len(embeddings) != len(waveforms):
        result = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise InputError(
            f"AudioEncoder.encode returns (waveforms, features), here {len(waveforms)} rows; it returned {result}"
        )
    if not bool(torch.isfinite(embeddings).all()):
        weight = None if encoder.tower is None else nonfinite_weight(encoder.tower)
        reason = "" if weight is None else f": the encoder's weight {weight} does"
        raise InputError(f"{_name(sources)}: the model's embedding of the sound holds NaN or infinite values{reason}")
    embeddings = F.normalize(embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)
    return f"sound {_name(sources)}{_span(target)}", F.normalize(embeddings.mean(0), dim=-1)


def _waveform(source: Any, target: Audio, encoder: AudioEncoder, name: str) -> "NDArray[np.float32]":
    """(samples,) at the encoder's rate: cut and checked at the sound's own rate, then mixed and resampled."""
    if target.rate is not None and isinstance(source, np.ndarray | Tensor):
        source = source, target.rate
    waveform, rate, name = sounds.opened(source, encoder.rate, name)
    waveform = _cut(waveform, rate, target, name)
    sounds.check(waveform, rate, name, encoder.shortest)
    duration = waveform.shape[1] / rate
    if encoder.longest is not None and duration > encoder.longest:
        warn(
            f"{name} lasts {duration:.2f} s, the model is made for {encoder.longest} s at most; say what it is to hear "
            "with legrad.Audio(sound, start=..., end=...), or cut the file"
        )
    return sounds.resampled(sounds.mono(waveform), rate, encoder.rate, name)


def _check(target: Audio, sources: Sequence[Any]) -> None:
    """Raise ``InputError`` for what is wrong with a target whatever its sounds hold."""
    if not sources:
        raise InputError("legrad.Audio got an empty list; give at least one sound")
    for name, seconds in (("start", target.start), ("end", 0.0 if target.end is None else target.end)):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | np.integer | np.floating):
            raise InputError(f"legrad.Audio: {name} is a number of seconds, as in {name}=0.5, got {brief(seconds)}")
    if target.rate is not None and all(
        isinstance(source, str | os.PathLike | tuple | urls.Download) for source in sources
    ):
        raise InputError(
            f"legrad.Audio: rate={target.rate!r} is for waveforms; files and (waveform, rate) bring their own, leave "
            "it out"
        )


def _cut(waveform: "NDArray[np.float32]", rate: int, target: Audio, name: str) -> "NDArray[np.float32]":
    duration = waveform.shape[1] / rate
    end = duration if target.end is None else target.end
    # half a sample of tolerance: times are rounded when they are written down
    if not 0 <= target.start < end <= duration + 0.5 / rate:
        raise InputError(
            f"{name} lasts {duration:.3f} s; start and end are seconds with 0 <= start < end <= {duration:.3f}, got "
            f"start={target.start} and end={target.end}"
        )
    first, last = (round(seconds * rate) for seconds in (target.start, end))
    return waveform[:, first:last]


def _name(sources: Sequence[Any]) -> str:
    """File names, for labels."""
    names = list(_names(sources))
    if not names:
        return "waveform" if len(sources) == 1 else f"of {len(sources)} waveforms"
    others = len(sources) - 1
    return names[0] + (f" and {others} more" if others else "")


def _names(sources: Sequence[Any]) -> Iterator[str]:
    for source in sources:
        if isinstance(source, urls.Download):
            yield PurePath(source.name).name
        elif isinstance(source, str | os.PathLike):
            yield PurePath(urls.safe_url(images.path_of(source))).name


def _span(target: Audio) -> str:
    if target.end is not None:
        return f" ({target.start:g} to {target.end:g} s)"
    return f" (from {target.start:g} s)" if target.start else ""
