"""Waveforms -> the spectrogram that a model takes, and spectrograms as grey images."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from legrad import relevance
from legrad.checks import first_line
from legrad.errors import InputError, warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOP = 0.01  # seconds from one spectrogram frame to the next, in every Kaldi-style extractor
_WINDOW, _COLUMN = 400, 80  # samples of a window and between columns, in the images of waveforms
_LOWEST = 20.0  # Hz, where the first bin of every Kaldi-style extractor begins


@dataclass(frozen=True)
class Spectrogram:
    """The model's input for one sound.

    Attributes:
        values: (time, frequency), as the model takes them; (samples,) for models of waveforms.
        heard: how many time steps are sound; the rest is padding.
        hop: seconds from one step to the next.
        start: where in the sound the first step is, in seconds.
        frequencies: centre of every bin in Hz, lowest first; () if not known.
        skipped: steps of silence in front of the sound.
    """

    values: Tensor
    heard: int
    hop: float = HOP
    start: float = 0.0
    frequencies: tuple[float, ...] = ()
    skipped: int = 0


def features(extractor: Any, waveform: "NDArray[np.float32]") -> Spectrogram:
    """The model's input out of a waveform.

    Args:
        extractor: a feature extractor of transformers, or anything with a ``sampling_rate`` and a function
            ``spectrogram(waveform)``.
        waveform: (samples,) at its sampling rate, mono.

    Raises:
        InputError: too few samples for one step.

    Warns:
        UserWarning: the model takes only the beginning of the sound.
    """
    if hasattr(extractor, "spectrogram"):
        spectrogram: Spectrogram = extractor.spectrogram(waveform)
        return spectrogram
    rate = extractor.sampling_rate
    try:
        values = extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_values"][0]
    except (ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"no spectrogram out of {len(waveform)} samples at {rate} Hz: {first_line(error)}") from error
    if values.ndim == 1:
        return Spectrogram(values, len(values), 1 / rate)
    padding = np.zeros(1, np.float32)
    if getattr(extractor, "do_normalize", False):
        padding = extractor.normalize(padding)
    steps_of_sound = (values != float(padding[0])).any(1).nonzero()
    heard = int(steps_of_sound[-1]) + 1 if len(steps_of_sound) else 0
    if heard == 0:
        raise InputError(f"{len(waveform)} samples at {rate} Hz are too few for one step of the spectrogram")
    if len(waveform) / rate > (len(values) + 3) * HOP:
        warn(
            f"the sound lasts {len(waveform) / rate:.1f} s, the model hears the first {len(values) * HOP:.1f} s; cut "
            "it into pieces to explain the rest"
        )
    return Spectrogram(values, heard, frequencies=frequencies(extractor))


def as_image(spectrogram: Tensor) -> "NDArray[np.uint8]":
    """Spectrogram (time, frequency) -> a grey image (frequency, time, 3), the lowest frequency in row 0."""
    grey = relevance.min_max(spectrogram.detach().float().cpu().T)
    return (grey * 255).round().byte()[..., None].expand(-1, -1, 3).contiguous().numpy()


def image_of_waveform(waveform: Tensor) -> tuple["NDArray[np.uint8]", int]:
    """The spectrogram of a waveform (samples,) as by ``as_image``, and the samples from one column to the next."""
    length = min(_WINDOW, len(waveform))
    window = torch.hann_window(length, device="cpu", dtype=torch.float32)
    spectrum = torch.stft(waveform.float().cpu(), length, _COLUMN, window=window, center=True, return_complex=True)
    power = spectrum.abs().square()
    decades = (power / power.max().clamp(min=1e-20)).clamp(min=1e-6).log10()
    return as_image(decades.T), _COLUMN


def frequencies(extractor: Any) -> tuple[float, ...]:
    """Centre of every bin of the extractor's spectrogram in Hz, lowest first; () if it has no bins.

    Kaldi's mel scale from 20 Hz to half the sampling rate, which both backends of transformers' extractors use.
    """
    bins = getattr(extractor, "num_mel_bins", 0)
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (_LOWEST, extractor.sampling_rate / 2))
    mels = (low + (high - low) * (index + 1) / (bins + 1) for index in range(bins))
    return tuple(700 * math.expm1(mel / 1127) for mel in mels)
