"""Sounds as targets: checked clips -> embeddings, for models that embed sounds in the space of their pictures."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad import capture, images, sounds
from legrad.errors import InputError
from legrad.targets import Audio

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SILENCE = 1e-4  # from the lowest to the highest sample: below it is what rounding to 16 bits leaves of nothing
_FULL_SCALE = 0.98
_CLIPPED = (0.01, 0.1)  # shares of the samples that are stuck at the limits: from here a warning, an error


@dataclass(frozen=True)
class Hearing:
    """How a model embeds sounds in the space of its pictures.

    Attributes:
        rate: sampling rate of what it hears, in Hz.
        encode: mono waveforms (samples,), float32 in [-1, 1], of any lengths -> (waveforms, features), which need not
            be normalised.
        tower: the module behind ``encode`` where it is no part of the explained model: it moves along with the model.
        shortest: how long a sound lasts at least, in seconds.
        longest: the longest sound that it is made for, in seconds; None for any. A longer one is warned of.
    """

    rate: int
    encode: "Callable[[Sequence[NDArray[np.float32]]], Tensor]"
    tower: nn.Module | None = None
    shortest: float = 0.1
    longest: float | None = None


def heard(target: Audio, hearing: Hearing) -> tuple[str, Tensor]:
    """A name for the sound, and its embedding (features,), normalised, at least float32.

    Raises:
        InputError: a sound that is missing, unreadable, empty, silent, too short or clipped, that holds NaN or values
            far outside [-1, 1], or without anything between ``start`` and ``end``.
    """
    sources = target.sound if isinstance(target.sound, list) else [target.sound]
    if not sources:
        raise InputError("legrad.Audio got an empty list; give at least one sound")
    waveforms = [_waveform(source, target, hearing) for source in sources]
    with capture.plain(hearing.tower) if hearing.tower is not None else torch.no_grad():
        embeddings = hearing.encode(waveforms)
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or len(embeddings) != len(waveforms):
        came = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise InputError(
            f"Hearing.encode returns (waveforms, features), here {len(waveforms)} rows; it returned {came}"
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise InputError(f"{_name(sources)}: the model's embedding of the sound holds NaN or infinite values")
    embeddings = F.normalize(embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)
    return f"sound {_name(sources)}{_span(target)}", F.normalize(embeddings.mean(0), dim=-1)


def _waveform(source: Any, target: Audio, hearing: Hearing) -> "NDArray[np.float32]":
    """Cut and checked at the sound's own rate, then resampled."""
    if target.rate is not None and not isinstance(source, str | os.PathLike | tuple):
        source = source, target.rate
    waveform, rate, path = sounds.opened(source, hearing.rate)
    name = path or "the waveform"
    waveform = _cut(waveform, rate, target, name)
    _check(waveform, rate, hearing, name)
    return sounds.resampled(waveform, rate, hearing.rate, name)


def _cut(waveform: "NDArray[np.float32]", rate: int, target: Audio, name: str) -> "NDArray[np.float32]":
    duration = len(waveform) / rate
    end = duration if target.end is None else target.end
    # half a sample of tolerance: times are rounded when they are written down
    if not 0 <= target.start < end <= duration + 0.5 / rate:
        raise InputError(
            f"{name} lasts {duration:.3f} s; start and end are seconds with 0 <= start < end <= {duration:.3f}, got "
            f"start={target.start} and end={target.end}"
        )
    first, last = (round(seconds * rate) for seconds in (target.start, end))
    return waveform[first:last]


def _check(waveform: "NDArray[np.float32]", rate: int, hearing: Hearing, name: str) -> None:
    duration = len(waveform) / rate
    if duration < hearing.shortest:
        raise InputError(
            f"{name} is too short: {duration:.3f} s are left to hear, the model wants at least {hearing.shortest} s"
        )
    low, high = float(waveform.min()), float(waveform.max())
    if high - low < _SILENCE:
        raise InputError(f"{name} is silent{'' if low == high == 0 else f' (all samples are about {high:.3g})'}")
    peak = max(-low, high)
    if peak > 2:
        raise InputError(
            f"{name} has values up to {peak:.6g}; a waveform of floats lies in [-1, 1]: divide it by its full scale, "
            "or keep the integers that it was made of"
        )
    stuck = (waveform == low) | (waveform == high)
    clipped = float(stuck.mean()) if peak >= _FULL_SCALE else 0.0
    if clipped >= _CLIPPED[1]:
        raise InputError(
            f"{name} is clipped: {clipped:.0%} of its samples are stuck at full scale, so that little of the sound is "
            "left; record it at a lower level"
        )
    if clipped >= _CLIPPED[0]:
        _warn(f"{name} is clipped: {clipped:.0%} of its samples are stuck at full scale, which may mislead the model")
    if hearing.longest is not None and duration > hearing.longest:
        _warn(
            f"{name} lasts {duration:.2f} s, the model is made for {hearing.longest} s at most; say with start and end "
            "what it is to hear"
        )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=9)


def _name(sources: Sequence[Any]) -> str:
    """File names, for labels."""
    names = list(_names(sources))
    if not names:
        return "waveform" if len(sources) == 1 else f"of {len(sources)} waveforms"
    others = len(sources) - 1
    return names[0] + (f" and {others} more" if others else "")


def _names(sources: Sequence[Any]) -> Iterator[str]:
    for source in sources:
        if images.is_url(source) or isinstance(source, str | os.PathLike):
            yield PurePath(os.fspath(source)).name


def _span(target: Audio) -> str:
    if target.end is not None:
        return f" ({target.start:g} to {target.end:g} s)"
    return f" (from {target.start:g} s)" if target.start else ""
