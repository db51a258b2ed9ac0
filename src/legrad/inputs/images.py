"""Images in: files, folders, globs, URLs, PIL, arrays -> upright RGB PIL images."""

import glob
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from legrad.errors import InputError, warn
from legrad.inputs.urls import download, is_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
SOURCE = "legrad source"  # key of an image's ``info`` that holds its path or URL


def read(source: Any, of_video: bool = False) -> Image.Image:
    """One image as upright RGB: EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Args:
        source: path, http(s) URL, PIL image, or (H, W, 3) / (H, W) uint8 array.
        of_video: take the current frame of an animation without a warning of the others.

    Raises:
        InputError: missing, unreadable, too large (Pillow's limit on decompression bombs), or of another kind.

    Warns:
        UserWarning: an animation, or a file of several pages, of which one image is taken.
    """
    if isinstance(source, Image.Image):
        name = source.info.get(SOURCE)
        try:
            image, count = _upright_rgb(source, name), 1 if of_video else _frames(source)
        except InputError:
            raise
        except Exception as error:  # a lazily opened file may be broken, or closed by now
            raise InputError(f"cannot read {name or 'the PIL image'}: {error or type(error).__name__}") from error
        _warn_of_frames(count, name or "the PIL image")
        return image
    if isinstance(source, np.ndarray):
        grey_or_rgb = source.ndim in (2, 3) and source.shape[2:] in ((), (3,))
        if source.dtype != np.uint8 or not grey_or_rgb or source.size == 0:
            raise InputError(
                f"an array image is (height, width, 3) uint8, got {source.shape} {source.dtype}; normalised input "
                "goes in as a float tensor (batch, 3, height, width)"
            )
        return Image.fromarray(source).convert("RGB")
    if is_url(source):
        return _open(io.BytesIO(download(source)), source)
    if isinstance(source, str | os.PathLike):
        # os.path returns False where pathlib raises: names that are too long, folders without permission
        path = os.fspath(source)
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder; give its images one by one, or use `legrad explain {path}`")
        if not os.path.isfile(path):
            raise InputError(f"no such image: {_for_message(path)}")
        return _open(path, path)
    raise InputError(f"an image is a path, a URL, a PIL image or a uint8 array, got {type(source).__name__}")


def _open(file: Any, name: str) -> Image.Image:
    try:
        # no filter for warnings here: filters are global, and images are read in threads
        with Image.open(file) as opened:
            image = _upright_rgb(opened, name)
            count = _frames(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} has too many pixels to be opened safely: {error}; make it smaller first") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's readers let anything through when a file is broken
        raise InputError(f"{name} is not an image that Pillow can read: {error or type(error).__name__}") from error
    _warn_of_frames(count, name)
    return image


def _frames(image: Image.Image) -> int:
    """How many images a file holds; MPO counts as one: a JPEG in which phones put a second view of the same scene."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # broken after the first image, which is the one that is read
        return 1


def _warn_of_frames(count: int, name: str) -> None:
    if count > 1:
        warn(
            f"{name} holds {count} frames or pages and this model takes single images: only one is "
            "explained, of a file the first"
        )


def _for_message(path: str) -> str:
    """A path for a message, in at most 300 characters, never empty."""
    return (path if len(path) <= 300 else path[:300] + "…") or "''"


def _upright_rgb(image: Image.Image, source: str | None) -> Image.Image:
    name = source or "the PIL image"
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise InputError(f"{name} has {image.width} x {image.height} pixels, more than Pillow's limit of {limit}")
    if image.width == 0 or image.height == 0:
        raise InputError(f"{name} is empty ({image.width} x {image.height} pixels)")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_in_8_bits(np.asarray(image, np.float64), image.mode))
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.info = {} if source is None else {SOURCE: source}
    return image


def _in_8_bits(values: "NDArray[np.float64]", mode: str) -> "NDArray[np.uint8]":
    """Grey values of a Pillow mode with more than 8 bits -> uint8, the scale guessed from the largest value."""
    values = np.nan_to_num(values, posinf=0, neginf=0)
    largest = values.max()
    if mode == "F" and largest <= 1:
        top = 1.0
    elif largest <= 255:
        top = 255.0
    else:
        top = largest if mode == "F" else 65535.0
    return np.asarray((np.clip(values / top, 0, 1) * 255).round(), np.uint8)


def expand(sources: Iterable[str], suffixes: frozenset[str] = SUFFIXES) -> Iterator[str]:
    """Files, folders (their images, sorted), glob patterns and URLs -> single files and URLs.

    Args:
        sources: what the user names.
        suffixes: which files of a folder count, lower case.

    Raises:
        InputError: a pattern or folder without images, or a missing file.
    """
    for source in sources:
        if is_url(source) or os.path.isfile(source):
            yield source
        elif os.path.isdir(source):
            paths = _files_in(Path(source), suffixes)
            if not paths:
                raise InputError(f"no {'images' if suffixes is SUFFIXES else 'matching files'} in the folder {source}")
            yield from paths
        elif glob.has_magic(source):
            paths = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
            if not paths:
                raise InputError(f"no file matches {source!r}")
            yield from paths
        else:
            raise InputError(f"no such image: {_for_message(source)}")


def _files_in(folder: Path, suffixes: frozenset[str]) -> list[str]:
    """Sorted files without hidden ones: the "._" files of macOS are no images."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error}") from error
    return sorted(str(path) for path in files if not path.name.startswith("."))
