"""Sounds in: files, URLs, waveforms -> checked mono waveforms at the model's rate."""

import importlib
import importlib.util
import io
import math
import os
import re
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from legrad.checks import first_line
from legrad.errors import InputError, warn
from legrad.inputs import tensors, urls
from legrad.inputs.images import path_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus"})
_KINDS = (
    "a sound is a path, a URL, a waveform (samples,) at the model's rate or a tuple (waveform, sampling rate) with one "
    "or several channels"
)
_MOST_SAMPLES = 100_000_000  # half an hour in mono at 48 kHz: a small file can hold a very long silence
_MOST_SECONDS = 1800.0
_RATES = (1_000, 1_000_000)  # Hz, of anything that is a sound
SHORTEST = 0.1  # seconds
_SILENCE = 1e-4  # from the lowest to the highest sample: less is rounding noise of 16 bits
_FULL_SCALE = 0.98
_CLIPPED = (0.01, 0.1)  # shares of the samples that are stuck at the limits: from here a warning, an error
_UNKNOWN = 0x7FFFF000  # bytes: a length in a file's header from here on means that it is not known


def split(source: Any) -> list[Any]:
    """What ``explain`` takes as one sound or several -> a list of single ones."""
    return source if isinstance(source, list) else [source]


def read(
    source: Any, rate: int, name: str = "the waveform", public_only: bool = False
) -> tuple["NDArray[np.float32]", str]:
    """One sound, checked, as a mono waveform (samples,) in [-1, 1] at ``rate`` Hz, and its path, URL or ``name``.

    Args:
        source: a path, a URL, a waveform (samples,), or (waveform, rate) with one or several channels.
        rate: of the model, and of a waveform that comes without one.
        name: of a sound that comes without one.
        public_only: see ``urls.download``.

    Raises:
        InputError: as of ``opened`` and ``check``, or of another rate and nothing is installed to resample it.
    """
    channels, own_rate, name = opened(source, rate, name, public_only)
    check(channels, own_rate, name)
    return resampled(mono(channels), own_rate, rate, name), name


def opened(
    source: Any, rate: int, name: str = "the waveform", public_only: bool = False
) -> tuple["NDArray[np.float32]", int, str]:
    """One sound as it is, (channels, samples), its rate in Hz, and its path, URL or ``name``; arguments as of ``read``.

    Raises:
        InputError: missing, unreadable, without samples, of another kind, with NaN or infinite values, or at a rate
            that is no sound's.
    """
    source = urls.fetched(source, public_only)
    if isinstance(source, urls.Download):
        name, (samples, own_rate) = source.name, _of_file(io.BytesIO(source.data), source.name)
    elif isinstance(source, str | os.PathLike):
        name = path_of(source)
        if not os.path.isfile(name):
            raise InputError(f"no such sound: {name or repr(name)}; a folder's sounds are given one by one")
        samples, own_rate = _of_file(name, name)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray | Tensor):
        samples, own_rate = source[0], _whole(source[1], name)
    else:
        samples, own_rate = source, rate
    if own_rate < 1:
        raise InputError(f"{name}: a sampling rate is a positive number of Hz, got {own_rate}")
    if own_rate != rate and not _RATES[0] <= own_rate <= _RATES[1]:
        raise InputError(
            f"{name}: {own_rate} Hz is no sampling rate of a sound; they lie between {_RATES[0]:,} and {_RATES[1]:,} Hz"
        )
    return _channels(samples, name), own_rate, name


def mono(waveform: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """(channels, samples) -> (samples,), their mean."""
    return np.ascontiguousarray(waveform.mean(0), np.float32)


def check(waveform: "NDArray[np.float32]", rate: int, name: str, shortest: float = SHORTEST) -> None:
    """Refuse a sound (channels, samples) that is too short, silent or damaged.

    Channels are checked before they are mixed: the mean of a clipped and a silent one is neither.

    Args:
        waveform: at its own rate, because resampling hides clipping.
        rate: in Hz.
        name: for messages.
        shortest: least duration in seconds.

    Raises:
        InputError: too short, silent, clipped, or with values far outside [-1, 1].

    Warns:
        UserWarning: a little of it is clipped.
    """
    duration = waveform.shape[1] / rate
    if duration < shortest:
        raise InputError(
            f"{name} is too short: {duration:.3f} s are left to hear, the model wants at least {shortest} s"
        )
    if duration > _MOST_SECONDS:
        raise InputError(
            f"{name} lasts {duration:,.0f} s, at most {_MOST_SECONDS:,.0f} s are heard at once; cut it into pieces"
        )
    low, high = waveform.min(1), waveform.max(1)
    if (high - low < _SILENCE).all():
        level = "" if not waveform.any() else f" (all samples are about {high.max():.3g})"
        raise InputError(f"{name} is silent{level}")
    if np.ptp(waveform.mean(0)) < _SILENCE:
        raise InputError(
            f"{name} is silent once its {len(waveform)} channels are averaged: they cancel out; give one of them"
        )
    peak = np.maximum(-low, high)
    if peak.max() > 2:
        raise InputError(
            f"{name} has values up to {peak.max():.6g}; a waveform of floats lies in [-1, 1]: divide it by its full "
            "scale, or keep the integers that it was made of"
        )
    stuck = ((waveform == low[:, None]) | (waveform == high[:, None])).mean(1)
    clipped = float(stuck[peak >= _FULL_SCALE].max(initial=0))
    share = f"{name} is clipped: {clipped:.0%} of its samples are stuck at full scale"
    if clipped >= _CLIPPED[1]:
        raise InputError(f"{share}, so that little of the sound is left; record it at a lower level")
    if clipped >= _CLIPPED[0]:
        warn(f"{share}, which may mislead the model")


def _of_file(file: Any, name: str) -> tuple[Any, int]:
    """Samples (samples, channels) and their rate: PCM by the standard library, everything else by soundfile."""
    try:
        with wave.open(file) as sound:
            _check_length(sound.getnframes() * sound.getnchannels(), name)
            if sound.getsampwidth() > 4:
                raise InputError(f"{name}: PCM of {8 * sound.getsampwidth()} bits; up to 32 are read")
            raw = sound.readframes(sound.getnframes())
            _check_whole(len(raw), sound.getnframes() * sound.getsampwidth() * sound.getnchannels(), name)
            return _of_pcm(raw, sound.getsampwidth(), sound.getnchannels()), sound.getframerate()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {name}: {first_line(error)}") from error
    except Exception as error:  # a damaged header raises anything in the standard library, also without a text
        reason = first_line(error)
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
            # libsndfile reads what is there, and only its log says that there should be more (WAV, AIFF)
            log_entry = re.search(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)", sound.extra_info)
            if log_entry is not None:
                _check_whole(int(log_entry[2]), int(log_entry[1]), name)
    except InputError:
        raise
    except Exception as error:  # a broken file can raise anything in its reader
        # soundfile repeats the name, or says <_io.BytesIO object at 0x...>
        raise InputError(f"cannot read {name} as a sound: {_short(error)}") from error
    return samples, int(rate)


def _short(error: Exception) -> str:
    return (str(error).rpartition(": ")[2] or type(error).__name__)[:200]


def _check_length(samples: int, name: str) -> None:
    if samples > _MOST_SAMPLES:
        raise InputError(f"{name} holds {samples} samples, at most {_MOST_SAMPLES} are read; cut it into pieces")


def _check_whole(size: int, header_size: int, name: str) -> None:
    """Refuse a file with fewer bytes of samples than its header says."""
    # a program that writes into a pipe cannot know the length, and fills the field with ones
    if size < header_size < _UNKNOWN:
        raise InputError(
            f"{name} is cut short: {size} of {header_size} bytes of samples are there; get the whole file, or read "
            "what is left of it yourself and give (waveform, rate)"
        )


def _of_pcm(raw: bytes, width: int, channels: int) -> Any:
    """Little-endian PCM -> (samples, channels) float32 in [-1, 1]."""
    if width == 1:
        values = np.frombuffer(raw, np.uint8).astype(np.float64) - 128
    else:
        # as the upper bytes of 32-bit integers
        wide = np.zeros((len(raw) // width, 4), np.uint8)
        wide[:, 4 - width :] = np.frombuffer(raw[: len(wide) * width], np.uint8).reshape(-1, width)
        values = wide.view("<i4")[:, 0].astype(np.float64) / (1 << (32 - 8 * width))
    samples = np.asarray(values / (1 << (8 * width - 1)), np.float32)
    return samples[: len(samples) // channels * channels].reshape(-1, channels)


def _whole(rate: Any, name: str) -> int:
    """A sampling rate as an int; floats such as 44100.0 are taken too."""
    real = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if not real or not float(rate).is_integer():
        raise InputError(f"{name}: a sampling rate is a whole number of Hz, got {rate!r}")
    return int(rate)


def _channels(waveform: Any, name: str) -> "NDArray[np.float32]":
    """Samples of any layout and type -> (channels, samples) float32."""
    if isinstance(waveform, Tensor):
        try:
            waveform = waveform.detach().cpu()
            waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, without data
            raise InputError(f"{name}: a waveform is a dense tensor with data, got {tensors.kind(waveform)}") from error
    if isinstance(waveform, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array: say what stands behind its mask with array.filled(value)")
    if not isinstance(waveform, np.ndarray) or waveform.ndim not in (1, 2) or waveform.dtype.kind not in "iuf":
        kind = f"{waveform.shape} {waveform.dtype}" if isinstance(waveform, np.ndarray) else type(waveform).__name__
        raise InputError(f"{_KINDS}, got {kind}")
    if waveform.size == 0:
        raise InputError(f"{name} is a sound without samples")
    if waveform.dtype.kind in "iu":
        waveform = _of_integers(waveform, name)
    if waveform.ndim == 1:
        waveform = waveform[None]
    if waveform.shape[0] > waveform.shape[1]:  # (samples, channels): there are more samples
        waveform = waveform.T
    if not np.isfinite(waveform).all():
        raise InputError(f"{name} holds NaN or infinite values")
    return np.ascontiguousarray(waveform, np.float32)


def _of_integers(waveform: "NDArray[Any]", name: str) -> "NDArray[np.float64]":
    """Integers -> [-1, 1], by the full scale of their type."""
    limits, peak = np.iinfo(waveform.dtype), max(-int(waveform.min()), int(waveform.max()))
    # int32 holding 16-bit samples would be read as near-silence
    if limits.bits > 16 and 0 < peak <= 1 << 15:
        raise InputError(
            f"{name} has {waveform.dtype} values up to {peak}, which looks like samples of 16 bits: give "
            "waveform.astype(np.int16)"
        )
    middle = (limits.max + 1) // 2 if limits.min == 0 else 0
    return (waveform.astype(np.float64) - middle) / (limits.max + 1 - middle)


def resampled(waveform: "NDArray[np.float32]", own_rate: int, rate: int, name: str) -> "NDArray[np.float32]":
    """(samples,) from ``own_rate`` to ``rate`` Hz, by the first of soxr, torchaudio and scipy that is installed.

    Raises:
        InputError: nothing is installed that can do it.
    """
    if own_rate == rate:
        return waveform
    _check_length(math.ceil(len(waveform) * rate / own_rate), f"at {rate} Hz, {name}")
    if importlib.util.find_spec("soxr"):
        result = importlib.import_module("soxr").resample(waveform, own_rate, rate)
    elif importlib.util.find_spec("torchaudio"):
        resample = importlib.import_module("torchaudio.functional").resample
        result = resample(torch.from_numpy(waveform), own_rate, rate).numpy()
    elif importlib.util.find_spec("scipy"):
        common = math.gcd(own_rate, rate)
        result = importlib.import_module("scipy.signal").resample_poly(waveform, rate // common, own_rate // common)
    else:
        raise InputError(
            f"{name} is sampled at {own_rate} Hz, the model takes {rate} Hz; install soxr to have it resampled: pip "
            "install 'legrad[audio]'"
        )
    return np.ascontiguousarray(result, np.float32)
