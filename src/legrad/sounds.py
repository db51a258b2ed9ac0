"""Sounds in: files, waveforms -> mono waveforms at the model's rate; spectrograms -> pictures of them."""

import importlib
import importlib.util
import io
import math
import os
import warnings
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from legrad import images, relevance
from legrad.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"})
_KINDS = (
    "a sound is a path, a URL, a waveform (samples,) at the model's rate or a tuple (waveform, sampling rate) with one "
    "or several channels"
)
_MOST_SAMPLES = 100_000_000  # half an hour in stereo at 44.1 kHz: a small file can hold a very long silence
HOP = 0.01  # seconds from one spectrogram frame to the next, in every Kaldi-style extractor
_WINDOW, _COLUMN = 400, 80  # samples: of the drawn spectrograms of waveforms
_LOWEST = 20.0  # Hz, where the first bin of every Kaldi-style extractor begins


def split(source: Any) -> list[Any]:
    """What ``explain`` takes as one sound or several -> a list of single ones."""
    return source if isinstance(source, list) else [source]


def read(source: Any, rate: int) -> tuple["NDArray[np.float32]", str | None]:
    """One sound as a mono waveform (samples,) in [-1, 1] at ``rate`` Hz, and where it came from.

    Raises:
        InputError: missing, unreadable, empty, of another kind, or of another rate that nothing here can change.
    """
    waveform, own, name = opened(source, rate)
    return resampled(waveform, own, rate, name or "the waveform"), name


def opened(source: Any, rate: int) -> tuple["NDArray[np.float32]", int, str | None]:
    """One sound as a mono waveform (samples,) at its own rate, that rate in Hz, and where it came from.

    Args:
        source: what a sound can be, see the message of the error.
        rate: of a waveform that comes without one.

    Raises:
        InputError: missing, unreadable, empty, of another kind.
    """
    name = None
    if images.is_url(source):
        name, own = source, _of_file(io.BytesIO(images.download(source)), source)
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if not os.path.isfile(name):
            raise InputError(f"no such sound: {name or repr(name)}; a folder's sounds are given one by one")
        own = _of_file(name, name)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], int | np.integer):
        own = source[0], int(source[1])
    else:
        own = source, rate
    if own[1] < 1:
        raise InputError(f"{name or 'the waveform'}: a sampling rate is a positive number of Hz, got {own[1]}")
    return _mono(own[0]), own[1], name


@dataclass(frozen=True)
class Spectrogram:
    """What a model hears of a sound.

    Attributes:
        values: (time, frequency), as the model takes them; (samples,) for models of waveforms.
        heard: how many of the time steps are sound; what follows is padding.
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
        waveform: (samples,) at its sampling rate.
    """
    if hasattr(extractor, "spectrogram"):
        own: Spectrogram = extractor.spectrogram(waveform)
        return own
    rate = extractor.sampling_rate
    try:
        found = extractor(waveform, sampling_rate=rate, return_tensors="pt")["input_values"][0]
    except (ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"no spectrogram out of {len(waveform)} samples at {rate} Hz: {error}") from error
    if found.ndim == 1:
        return Spectrogram(found, len(found), 1 / rate)
    padding = np.zeros(1, np.float32)
    if getattr(extractor, "do_normalize", False):
        padding = extractor.normalize(padding)
    sound = (found != float(padding[0])).any(1).nonzero()
    heard = int(sound[-1]) + 1 if len(sound) else 0
    if heard == 0:
        raise InputError(f"{len(waveform)} samples at {rate} Hz are too few for one step of the spectrogram")
    if len(waveform) / rate > (len(found) + 3) * HOP:
        warnings.warn(
            f"the sound lasts {len(waveform) / rate:.1f} s, the model hears the first {len(found) * HOP:.1f} s; cut "
            "it into pieces to explain the rest",
            UserWarning,
            stacklevel=2,
        )
    return Spectrogram(found, heard, frequencies=frequencies(extractor))


def drawn(spectrogram: Tensor) -> "NDArray[np.uint8]":
    """Spectrogram (time, frequency) -> a grey picture (frequency, time, 3), the lowest frequency in row 0."""
    grey = relevance.min_max(spectrogram.detach().float().cpu().T)
    return (grey * 255).round().byte()[..., None].expand(-1, -1, 3).contiguous().numpy()


def seen(waveform: Tensor) -> tuple["NDArray[np.uint8]", int]:
    """A waveform (samples,) as a drawn spectrogram, and its samples per column."""
    window = min(_WINDOW, len(waveform))
    shape = torch.hann_window(window)
    spectrum = torch.stft(waveform.float().cpu(), window, _COLUMN, window=shape, center=True, return_complex=True)
    power = spectrum.abs().square()
    decades = (power / power.max().clamp(min=1e-20)).clamp(min=1e-6).log10()
    return drawn(decades.T), _COLUMN


def frequencies(extractor: Any) -> tuple[float, ...]:
    """Centre of every bin of the extractor's spectrogram in Hz, lowest first; () if it has no bins.

    Kaldi's mel scale from 20 Hz to half the sampling rate, which both backends of transformers' extractors use.
    """
    bins = getattr(extractor, "num_mel_bins", 0)
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (_LOWEST, extractor.sampling_rate / 2))
    mels = (low + (high - low) * (index + 1) / (bins + 1) for index in range(bins))
    return tuple(700 * math.expm1(mel / 1127) for mel in mels)


def _of_file(file: Any, name: str) -> tuple[Any, int]:
    """Samples (samples, channels) and their rate: PCM by the standard library, everything else by soundfile."""
    try:
        with wave.open(file) as sound:
            _check_length(sound.getnframes() * sound.getnchannels(), name)
            if sound.getsampwidth() > 4:
                raise InputError(f"{name}: PCM of {8 * sound.getsampwidth()} bits; up to 32 are read")
            raw = sound.readframes(sound.getnframes())
            return _of_pcm(raw, sound.getsampwidth(), sound.getnchannels()), sound.getframerate()
    except (wave.Error, EOFError) as error:
        reason = error
    except OSError as error:
        raise InputError(f"cannot read {name}: {error}") from error
    if hasattr(file, "seek"):
        file.seek(0)
    if importlib.util.find_spec("soundfile") is None:
        raise InputError(
            f"{name} is no plain PCM .wav file ({reason}); for other sounds install soundfile: pip install "
            "'legrad[audio]'"
        )
    soundfile = importlib.import_module("soundfile")
    try:
        with soundfile.SoundFile(file) as sound:
            _check_length(sound.frames * sound.channels, name)
            samples, rate = sound.read(dtype="float32", always_2d=True), sound.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot read {name} as a sound: {error}") from error
    return samples, int(rate)


def _check_length(samples: int, name: str) -> None:
    if samples > _MOST_SAMPLES:
        raise InputError(f"{name} holds {samples} samples, at most {_MOST_SAMPLES} are read; cut it into pieces")


def _of_pcm(raw: bytes, width: int, channels: int) -> Any:
    """Little-endian PCM -> (samples, channels) float32 in [-1, 1]."""
    if width == 1:
        values = np.frombuffer(raw, np.uint8).astype(np.float64) - 128
    else:
        # the sample's bytes are the upper ones of a wider integer
        wide = np.zeros((len(raw) // width, 4), np.uint8)
        wide[:, 4 - width :] = np.frombuffer(raw[: len(wide) * width], np.uint8).reshape(-1, width)
        values = wide.view("<i4")[:, 0].astype(np.float64) / (1 << (32 - 8 * width))
    scaled = np.asarray(values / (1 << (8 * width - 1)), np.float32)
    return scaled[: len(scaled) // channels * channels].reshape(-1, channels)


def _mono(waveform: Any) -> "NDArray[np.float32]":
    """Samples of any layout and type -> (samples,) float32; channels are averaged."""
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    if not isinstance(waveform, np.ndarray) or waveform.ndim not in (1, 2) or waveform.dtype.kind not in "iuf":
        came = f"{waveform.shape} {waveform.dtype}" if isinstance(waveform, np.ndarray) else type(waveform).__name__
        raise InputError(f"{_KINDS}, got {came}")
    if waveform.size == 0:
        raise InputError("a sound without samples")
    if waveform.dtype.kind in "iu":
        limits = np.iinfo(waveform.dtype)
        middle = (limits.max + 1) // 2 if limits.min == 0 else 0
        waveform = (waveform.astype(np.float64) - middle) / (limits.max + 1 - middle)
    if waveform.ndim == 2:  # (channels, samples) or (samples, channels): there are more samples
        waveform = waveform.mean(int(np.argmin(waveform.shape)))
    if not np.isfinite(waveform).all():
        raise InputError("the waveform holds NaN or infinite values")
    return np.ascontiguousarray(waveform, np.float32)


def resampled(waveform: "NDArray[np.float32]", own: int, rate: int, name: str) -> "NDArray[np.float32]":
    """From one rate to another, with whatever of soxr, torchaudio and scipy is installed.

    Raises:
        InputError: nothing is installed that can do it.
    """
    if own == rate:
        return waveform
    if importlib.util.find_spec("soxr"):
        result = importlib.import_module("soxr").resample(waveform, own, rate)
    elif importlib.util.find_spec("torchaudio"):
        resample = importlib.import_module("torchaudio.functional").resample
        result = resample(torch.from_numpy(waveform), own, rate).numpy()
    elif importlib.util.find_spec("scipy"):
        common = math.gcd(own, rate)
        result = importlib.import_module("scipy.signal").resample_poly(waveform, rate // common, own // common)
    else:
        raise InputError(
            f"{name} is sampled at {own} Hz, the model takes {rate} Hz; install soxr to have it resampled: pip install "
            "'legrad[audio]'"
        )
    return np.ascontiguousarray(result, np.float32)
