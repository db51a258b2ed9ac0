"""Videos in: animations, video files, arrays, lists of frames -> as many upright RGB frames as the model takes."""

import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from legrad.checks import first_line
from legrad.errors import InputError
from legrad.inputs import depth, formats, images, urls
from legrad.inputs.geometry import Timing

SUFFIXES = frozenset({".gif", ".webp", ".apng", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg"})
# what ffmpeg may take a file for: no playlists or scripts, which name other files and addresses to open
_CONTAINERS = (
    "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg,flv,asf,gif,apng,h264,hevc,m4v,ivf,mjpeg,yuv4mpegpipe,"
    "wav,mp3,flac,aac,aiff"  # to say that there are no images in them
)
_MOST_FRAMES = 100_000  # an hour at 25 a second: all are decoded to find those in the middle of their parts
_KINDS = (
    "a video is a path, a URL, a uint8 array (frames, height, width, 3), an animated PIL image or a list of frames "
    "(PIL images or (height, width, 3) arrays)"
)
ReadFrame = Callable[[Any], Image.Image]


def split(source: Any) -> list[Any]:
    """What ``explain`` takes as one video or several -> a list of single ones."""
    if isinstance(source, np.ndarray):
        return list(source) if source.ndim == 5 else [source]
    if not isinstance(source, list | tuple):
        return [source]
    return [source] if source and all(map(_is_frame, source)) else list(source)


def _is_frame(item: Any) -> bool:
    if isinstance(item, Image.Image):
        return not getattr(item, "is_animated", False)
    return isinstance(item, np.ndarray) and item.ndim <= 3


def read(
    source: Any, count: int, value_range: depth.Range | None = None, public_only: bool = False
) -> tuple[list[Image.Image], str | None, Timing]:
    """``count`` frames of one video, evenly spaced in time, its path or URL (None for others), and when they are.

    Args:
        source: as ``images`` of ``Explainer.explain``.
        count: of frames.
        value_range, public_only: as of ``images.read``, for every frame.

    Raises:
        InputError: missing, unreadable, a still image, frames of different sizes, or of another kind.
    """
    name = None
    read_frame = functools.partial(images.read, of_video=True, value_range=value_range)
    source = urls.fetched(source, public_only)
    if isinstance(source, urls.Download):
        name = source.name
        frames, timing = _of_file(io.BytesIO(source.data), name, count, read_frame)
    elif isinstance(source, str | os.PathLike):
        name = images.path_of(source)
        if not os.path.isfile(name):
            raise InputError(f"no such video: {name or repr(name)}; a folder's videos are given one by one")
        try:
            with open(name, "rb") as file:
                frames, timing = _of_file(file, name, count, read_frame)
        except OSError as error:
            raise InputError(f"cannot read {name}: {first_line(error)}") from error
    else:
        frames, timing = _of_object(source, count, read_frame)
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        what = "the frames of a video" if name is None else f"{name}: the frames of a video"
        raise InputError(f"{what} are of one size, got {sorted(sizes)[:4]} (width, height)")
    return frames, name, timing


def sampled(durations: Sequence[float], count: int) -> list[int]:
    """Indices of the frames at the middles of ``count`` equal parts of the time; they repeat if there are too few."""
    lengths = np.asarray(durations, float)
    if not lengths.all():  # players show frames without a duration for a moment, all of them alike
        lengths = np.ones(len(lengths))
    ends = lengths.cumsum()
    middles = (np.arange(count) + 0.5) / count * ends[-1]
    return np.searchsorted(ends, middles, side="right").tolist()


def _of_object(source: Any, count: int, read_frame: ReadFrame) -> tuple[list[Image.Image], Timing]:
    if isinstance(source, Image.Image):
        if formats.is_foreign(source):
            raise InputError(f"the PIL image is of the format {source.format}, which is not read here")
        return _animated(source, "the PIL image", count, read_frame)
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.shape[-1] != 3 or not source.size:
            raise InputError(f"{_KINDS}, got an array {source.shape} {source.dtype}")
    elif not isinstance(source, list | tuple) or not source or not all(map(_is_frame, source)):
        raise InputError(f"{_KINDS}, got {type(source).__name__}")
    indices = sampled([1] * len(source), count)
    return [read_frame(source[index]) for index in indices], Timing(tuple(indices))


def _of_file(file: Any, name: str, count: int, read_frame: ReadFrame) -> tuple[list[Image.Image], Timing]:
    try:
        image = formats.open_image(file)
    except UnidentifiedImageError:
        file.seek(0)
        return _decoded(file, name, count, read_frame)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: {first_line(error)}; make the video smaller first") from error
    except Exception as error:  # Pillow's readers let anything through when a file is broken
        raise InputError(f"cannot read {name}: {first_line(error)}") from error
    with image:
        return _animated(image, name, count, read_frame)


def _animated(image: Image.Image, name: str, count: int, read_frame: ReadFrame) -> tuple[list[Image.Image], Timing]:
    """Frames of anything that Pillow can seek in; the image's current frame is restored."""
    before = image.tell()
    try:
        total = getattr(image, "n_frames", 1)
        if total < 2:
            raise InputError(f"{name} is a still image and the model takes videos; give a list of frames, [image]")
        _check_count(total, name)
        durations = []
        for index in range(total):
            image.seek(index)
            durations.append(float(image.info.get("duration", 0)))
        frames: dict[int, Image.Image] = {}
        indices = sampled(durations, count)
        for index in indices:
            if index not in frames:
                image.seek(index)
                frames[index] = read_frame(image)
    except UserWarning:  # that the caller has turned into an error
        raise
    except InputError as error:
        # frames of an animation have no name of their own
        raise InputError(str(error).replace("the PIL image", name)) from error
    except Exception as error:  # Pillow's readers let anything through when a file is broken
        raise InputError(f"cannot read the frames of {name}: {first_line(error)}") from error
    finally:
        with contextlib.suppress(Exception):
            image.seek(before)
    return [frames[index] for index in indices], _timing(indices, durations)


def _check_count(frames: int, name: str) -> None:
    if frames > _MOST_FRAMES:
        raise InputError(f"{name} holds more than {_MOST_FRAMES} frames; cut it into pieces")


def _timing(indices: Sequence[int], milliseconds: Sequence[float]) -> Timing:
    """Of some frames of a video, by the durations of all its frames; players show those of 0 ms for 100 ms."""
    if not milliseconds:
        return Timing(tuple(indices))
    lengths = np.asarray([duration or 100.0 for duration in milliseconds]) / 1000
    begins = lengths.cumsum() - lengths
    return Timing(tuple(indices), tuple(round(float(begins[i]), 4) for i in indices), round(float(lengths.sum()), 4))


def _decoded(file: Any, name: str, count: int, read_frame: ReadFrame) -> tuple[list[Image.Image], Timing]:
    """Frames of a video file, in two passes: the first counts, so that only the frames to return are kept in memory."""
    if importlib.util.find_spec("av") is None:
        raise InputError(
            f"{name} is no animation that Pillow can read (GIF, WebP, APNG); for video files install PyAV: pip install "
            "'legrad[video]', or give a list of frames"
        )
    av = importlib.import_module("av")
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
    try:
        with av.open(file, container_options=options) as video:
            if not video.streams.video:
                raise InputError(f"{name} holds no images, only sound, and the model takes videos")
            stream = video.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise InputError(f"{name}: frames of more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller first")
            rate = float(stream.average_rate or 0)
            total = sum(1 for _ in itertools.islice(video.decode(video=0), _MOST_FRAMES + 1))
        _check_count(total, name)
        if total == 0:
            raise InputError(f"{name} holds no frames")
        indices = sampled([1] * total, count)
        to_keep = set(indices)
        file.seek(0)
        with av.open(file, container_options=options) as video:
            decoded = enumerate(itertools.islice(video.decode(video=0), max(to_keep) + 1))
            frames = {i: frame.to_image() for i, frame in decoded if i in to_keep}
        missing = [index for index in indices if index not in frames]
        if missing:
            raise InputError(f"cannot read {name} as a video: it ended at another frame the second time")
    except InputError:
        raise
    except Exception as error:  # a broken file can raise anything in its reader
        raise InputError(f"cannot read {name} as a video: {first_line(error)}") from error
    return [read_frame(frames[index]) for index in indices], _timing(indices, [1000 / rate] * total if rate else [])
