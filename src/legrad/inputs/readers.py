"""One image, video or sound, wherever it is read from -> an input of the model, with its placement in the original."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from legrad.inputs import depth, geometry, images, sounds, spectrograms, transforms, urls, videos
from legrad.inputs.originals import Allowance, ImageFile, stamp_of

FILES = (str, os.PathLike, urls.Download)  # what is read when it is needed


@dataclass(frozen=True, eq=False)
class Input:
    """One image, video or sound, ready for the model.

    Attributes:
        tensor: (channels, height, width), normalised; videos have frames in front, sounds are (time, frequency).
        placement: where it lies in the original.
        image: the original, (H, W, 3) uint8; of videos (frames, H, W, 3), of sounds their spectrogram; an ``ImageFile``
            of what was read from one.
        name: path, URL, or "image 0", ...
        timing: of a video's frames or a sound.
        frequencies: centres of a spectrogram's rows in Hz, lowest first; () if not known.
    """

    tensor: Tensor
    placement: geometry.Placement
    image: Any
    name: str
    timing: geometry.Timing = field(default_factory=geometry.Timing)
    frequencies: tuple[float, ...] = ()


@dataclass(frozen=True)
class ImageReader:
    """Reads and preprocesses images, perhaps in several threads.

    Attributes:
        transform: of the model.
        channels: of its input.
        read: path, URL or download -> upright RGB image.
        allowance: of originals that are kept.
    """

    transform: Any
    channels: int
    read: Callable[[Any], PIL.Image.Image]
    allowance: Allowance

    def __call__(self, source: Any, index: int) -> Input:
        """``source``: an upright RGB image, or what is read."""
        path = _path_of_file(source)
        stamp = stamp_of(path) if path else (0, 0)
        image = source if isinstance(source, PIL.Image.Image) else self.read(source)
        placement = transforms.follow(self.transform, (image.height, image.width))
        # images that were read from a file know where they came from
        name = str(image.info.get(images.SOURCE, f"image {index}"))
        tensor = transforms.applied(self.transform, image, placement, self.channels, name)
        return Input(tensor, placement, _original(np.asarray(image), path, stamp, self.read, self.allowance), name)


@dataclass(frozen=True)
class VideoReader:
    """Reads videos and preprocesses their frames one by one, perhaps in several threads.

    Attributes:
        transform: of the model.
        channels: of its input.
        read: path, URL, download or frames -> frames, path, timing.
        allowance: of originals that are kept.
    """

    transform: Any
    channels: int
    read: Callable[[Any], tuple[list[PIL.Image.Image], str | None, geometry.Timing]]
    allowance: Allowance

    def __call__(self, source: Any, index: int) -> Input:
        """``source``: frames, path and timing, or what is read."""
        path = _path_of_file(source)
        stamp = stamp_of(path) if path else (0, 0)
        frames, name, timing = self.read(source) if isinstance(source, FILES) else source
        name = name or f"video {index}"
        placement = transforms.follow(self.transform, (frames[0].height, frames[0].width))
        rows = [transforms.applied(self.transform, frame, placement, self.channels, name) for frame in frames]
        pixels = np.stack([np.asarray(frame) for frame in frames])
        read_again = functools.partial(_frames, self.read)
        return Input(
            torch.stack(rows), placement, _original(pixels, path, stamp, read_again, self.allowance), name, timing
        )


def image_reader(value_range: depth.Range | None = None) -> Callable[[str], Any]:
    """Path -> the image of a file, upright."""
    return functools.partial(images.read, value_range=value_range)


def video_reader(count: int, value_range: depth.Range | None = None) -> Callable[[str], Any]:
    """Path -> (frames, H, W, 3), the frames that a model of so many sees."""
    return functools.partial(_frames, functools.partial(videos.read, count=count, value_range=value_range))


def _frames(read: Callable[[str], Any], path: str) -> Any:
    return np.stack([np.asarray(frame) for frame in read(path)[0]])


def _original(pixels: Any, path: str, stamp: tuple[int, int], read: Callable[[str], Any], allowance: Allowance) -> Any:
    """Pixels of what is in memory; of a file also where they are read again, if they cannot be kept."""
    if not path:
        return pixels
    return ImageFile(os.path.abspath(path), stamp, read, pixels if allowance.take(pixels.nbytes) else None)


def _path_of_file(source: Any) -> str:
    """The path of a file that can be read again; "" for anything else."""
    path = images.path_of(source) if isinstance(source, str | os.PathLike) and not urls.is_url(source) else ""
    return path if os.path.isfile(path) else ""


def of_sound(source: Any, index: int, extractor: Any, public_only: bool) -> Input:
    """A sound, read and preprocessed; the original is the sound without the padding of the spectrogram."""
    waveform, name = sounds.read(source, extractor.sampling_rate, f"sound {index}", public_only)
    spectrogram = spectrograms.features(extractor, waveform)
    if spectrogram.values.ndim == 1:
        rate = extractor.sampling_rate
        timing = geometry.Timing(duration=len(spectrogram.values) / rate)
        return replace(of_waveform(spectrogram.values, name, rate), timing=timing)
    time, frequency = spectrogram.values.shape
    placement = geometry.Placement(
        (frequency, spectrogram.heard), (frequency, time), offset=(0.0, float(spectrogram.skipped))
    )
    timing = geometry.Timing(duration=spectrogram.heard * spectrogram.hop, start=spectrogram.start)
    image = spectrograms.as_image(spectrogram.values[spectrogram.skipped :][: spectrogram.heard])
    return Input(spectrogram.values, placement, image, name, timing, spectrogram.frequencies)


def of_waveform(tensor: Tensor, name: str, rate: int | None = None) -> Input:
    """A waveform (samples,): the model's input is one row of samples; the image is their spectrogram."""
    image, column = spectrograms.image_of_waveform(tensor)
    rows = len(image)
    placement = geometry.Placement((rows, image.shape[1]), (1, len(tensor)), (1 / rows, float(column)))
    frequencies = () if rate is None else tuple((np.arange(rows) * rate / 2 / (rows - 1)).tolist())
    return Input(tensor, placement, image, name, frequencies=frequencies)
