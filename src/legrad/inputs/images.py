"""Images in: files, folders, globs, URLs, PIL, arrays -> upright RGB PIL images."""

import glob
import io
import os
import threading
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from legrad.checks import first_line
from legrad.errors import InputError, warn
from legrad.inputs import depth, formats
from legrad.inputs.urls import Download, fetched, is_url, safe_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
    | {".jp2", ".j2k", ".heic", ".heif"}
)
SOURCE = "legrad source"  # key of an image's ``info`` that holds its path or URL
TURNED = "legrad orientation"  # key that holds the EXIF orientation, of images that were turned by it
_SCALED = "legrad value range"  # key that holds the user's range, of images that were scaled by it
_ORIENTATION = 0x0112

_loading = threading.Lock()  # one image in memory may be given to several threads, and Pillow loads it lazily
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_loading=threading.Lock()))


def read(
    source: Any, of_video: bool = False, value_range: depth.Range | None = None, public_only: bool = False
) -> Image.Image:
    """One image as upright RGB: EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Args:
        source: path, http(s) URL, PIL image, or (H, W, 3) / (H, W) uint8 array; with ``value_range`` any real numbers.
        of_video: take the current frame of an animation without a warning of the others.
        value_range: the values, in the file's own units, that become black and white; default what the file declares.
        public_only: see ``urls.download``.

    Raises:
        InputError: missing, unreadable, too large (Pillow's limit on decompression bombs), or of another kind.

    Warns:
        UserWarning: an animation, or a file of several pages, of which one image is taken; values whose meaning is
            guessed; hardly any contrast.
    """
    source = fetched(source, public_only)
    if isinstance(source, Image.Image):
        name = source.info.get(SOURCE)
        if formats.is_foreign(source):
            raise InputError(
                f"{name or 'the PIL image'} is of the format {source.format}, which is not read here; load() and "
                "convert('RGB') it yourself first"
            )
        try:
            with _loading:
                image, count = _upright_rgb(source, name, value_range), 1 if of_video else _frames(source)
        except (InputError, UserWarning):  # warnings that the caller has turned into errors
            raise
        except Exception as error:  # a lazily opened file may be broken, or closed by now
            raise InputError(f"cannot read {name or 'the PIL image'}: {first_line(error)}") from error
        _warn_of_frames(count, name or "the PIL image")
        return image
    if isinstance(source, np.ndarray):
        return _of_array(source, value_range)
    if isinstance(source, Download):
        return _open(io.BytesIO(source.data), source.name, value_range)
    if isinstance(source, str | os.PathLike):
        path = path_of(source)
        # os.path returns False where pathlib raises: names that are too long, folders without permission
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder; give its images one by one, or use `legrad explain {path}`")
        if not os.path.isfile(path):
            raise InputError(f"no such image: {_for_message(path)}")
        return _open(path, path, value_range)
    raise InputError(f"an image is a path, a URL, a PIL image or a uint8 array, got {type(source).__name__}")


def path_of(source: "str | os.PathLike[Any]") -> str:
    """A path as text, also of objects that give bytes."""
    try:
        return os.fsdecode(source)
    except Exception as error:  # of the caller's own class
        raise InputError(f"{type(source).__name__} gives no path: {first_line(error)}") from error


def _of_array(array: "NDArray[Any]", value_range: depth.Range | None) -> Image.Image:
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("a masked array is no image: say what stands behind its mask with array.filled(value)")
    grey_or_rgb = array.ndim in (2, 3) and array.shape[2:] in ((), (3,)) and array.size > 0
    if value_range is not None and grey_or_rgb and array.dtype.kind in "biuf":
        if not np.isfinite(array).all():
            raise InputError("the array image holds NaN or infinite values")
        return Image.fromarray(depth.scaled(array, value_range)).convert("RGB")
    if array.dtype != np.uint8 or not grey_or_rgb:
        hint = (
            "other numbers need value_range=(low, high), the values of black and white; normalised input goes in as a "
            "float tensor (batch, channels, height, width)"
        )
        if array.shape[2:] == (4,):
            hint = "four channels with opacity go in as PIL.Image.fromarray(array)"
        elif array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] > 3:
            hint = "put the channels last: array.transpose(1, 2, 0)"
        elif array.shape[2:] == (1,):
            hint = "grey is (height, width): array[..., 0]"
        raise InputError(f"an array image is (height, width, 3) uint8, got {array.shape} {array.dtype}; {hint}")
    return depth.colours_in_range(Image.fromarray(array).convert("RGB"), "the array image", (0.0, 255.0), None)


def _open(file: Any, name: str, value_range: depth.Range | None) -> Image.Image:
    try:
        # no filter for warnings here: filters are global, and images are read in threads
        with formats.open_image(file) as opened:
            image = _upright_rgb(opened, name, value_range)
            count = _frames(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} has too many pixels to be opened safely: {first_line(error)}; make it smaller first"
        ) from error
    except (InputError, UserWarning):
        raise
    except Exception as error:  # Pillow's readers let anything through when a file is broken
        raise InputError(f"{name} is not an image that Pillow can read: {formats.reason(file, error)}") from error
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
    """A path or URL for a message, in at most 300 characters, never empty."""
    path = safe_url(path)
    return (path if len(path) <= 300 else path[:300] + "…") or "''"


def _upright_rgb(image: Image.Image, source: str | None, value_range: depth.Range | None) -> Image.Image:
    name = source or "the PIL image"
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise InputError(f"{name} has {image.width} x {image.height} pixels, more than Pillow's limit of {limit}")
    if image.width == 0 or image.height == 0:
        raise InputError(f"{name} is empty ({image.width} x {image.height} pixels)")
    seen_before = SOURCE in image.info
    given_range = value_range
    if image.info.get(_SCALED) == value_range:  # done when it was read for the first time
        value_range = None
    declared_range = depth.declared(image)  # while the file is open: loading forgets it
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):  # without one it would copy the image
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        opaque = _opaque(image)
        image = depth.deep_in_8_bits(image, name, declared_range, value_range)
        if opaque is not None:
            image.putalpha(opaque)
        image = _on_white(image)
    else:
        image = _on_white(image)
        if value_range is not None or not seen_before:
            image = depth.colours_in_range(image, name, declared_range or (0.0, 255.0), value_range)
    image.info = {} if source is None else {SOURCE: source}
    if orientation in range(2, 9):
        image.info[TURNED] = orientation
    if given_range is not None:
        image.info[_SCALED] = given_range
    return image


def _opaque(image: Image.Image) -> Image.Image | None:
    """The opacity (mode L) of a grey image with more than 8 bits of which one value is transparent, else None."""
    value = image.info.get("transparency")
    return Image.fromarray(np.asarray(np.asarray(image) != value, np.uint8) * 255) if isinstance(value, int) else None


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB, what is transparent laid on white."""
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def expand(sources: Iterable[str], suffixes: frozenset[str] = SUFFIXES) -> Iterator[str]:
    """Files, folders (their images and those in sub-folders, sorted), glob patterns and URLs -> single files and URLs.

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
            paths = sorted(path for path in _matches(source) if os.path.isfile(path))
            if not paths:
                raise InputError(f"no file matches {source!r}")
            yield from paths
        else:
            raise InputError(f"no such image: {_for_message(source)}")


def _matches(pattern: str) -> set[str]:
    """``glob`` whose ``**`` does not follow links to folders: two links of a folder to itself have no end."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return set(glob.glob(pattern))
    place = parts.index("**")
    above, below = os.path.join("", *parts[:place]), os.path.join("", *parts[place + 1 :])
    matches: set[str] = set()
    for root in glob.glob(above) if above else ["."]:
        for folder, inner, files in os.walk(root):
            inner[:] = [name for name in inner if not name.startswith(".")]
            folder = os.path.normpath(folder) if not above else folder
            if below:
                matches |= _matches(os.path.join(glob.escape("" if folder == "." else folder), below))
            else:
                matches |= {os.path.join(folder, name) for name in files if not name.startswith(".")}
    return matches


def left_out(source: str, suffixes: frozenset[str], known: Container[Path] = ()) -> str | None:
    """What ``expand`` leaves out of a folder, in a line; None if nothing but ``known`` files, or if it is no folder."""
    if not os.path.isdir(source):
        return None
    paths = [path for path in _walk(Path(source)) if path.suffix.lower() not in suffixes or not path.is_file()]
    names = [os.path.relpath(path, source) + "/" * path.is_dir() for path in paths if path.resolve() not in known]
    if not names:
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"of the folder {source} this is left out, for its suffix or as a link: {', '.join(names[:3])}{more}"


def _files_in(folder: Path, suffixes: frozenset[str]) -> list[str]:
    return [str(path) for path in _walk(folder) if path.suffix.lower() in suffixes and path.is_file()]


def _walk(folder: Path) -> Iterator[Path]:
    """Files and links to folders in a folder and its sub-folders, those of each folder sorted.

    Without hidden ones (the "._" files of macOS are no images), and without following links: two links of a folder to
    itself have no end.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        folders = {path for path in entries if path.is_dir() and not path.is_symlink()}
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {first_line(error)}") from error
    yield from (path for path in entries if path not in folders)
    for path in sorted(folders):
        yield from _walk(path)
