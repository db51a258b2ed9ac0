"""Pictures in: files, folders, globs, URLs, PIL, arrays -> upright RGB PIL pictures."""

import glob
import io
import ipaddress
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from legrad.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
URL_BYTES = 50_000_000
URL_SECONDS = 30.0
SOURCE = "legrad source"  # key of a picture's ``info`` that holds its path or URL


def is_url(source: Any) -> bool:
    """Whether a string looks like a URL rather than a path."""
    return isinstance(source, str) and "://" in source[:12]


def read(source: Any) -> Image.Image:
    """One picture as upright RGB: EXIF rotation applied, transparency laid on white, 16 bits scaled to 8.

    Args:
        source: path, http(s) URL, PIL image, or (H, W, 3) / (H, W) uint8 array.

    Raises:
        InputError: missing, unreadable, too large (Pillow's limit on decompression bombs), or of another kind.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, source.info.get(SOURCE))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
            raise InputError(
                f"an array image is (height, width, 3) uint8, got {source.shape} {source.dtype}; normalised input "
                "goes in as a float tensor (batch, 3, height, width)"
            )
        return Image.fromarray(source).convert("RGB")
    if is_url(source):
        return _open(io.BytesIO(download(source)), source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give its pictures one by one, or use `legrad explain {path}`")
        if not path.is_file():
            raise InputError(f"no such picture: {path}")
        return _open(path, str(path))
    raise InputError(f"an image is a path, a URL, a PIL image or a uint8 array, got {type(source).__name__}")


def _open(file: Any, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                return _upright_rgb(picture, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} has too many pixels to be opened safely: {error}; make it smaller first") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is not a picture that Pillow can read: {error}") from error


def _upright_rgb(picture: Image.Image, source: str | None) -> Image.Image:
    name = source or "the PIL image"
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise InputError(f"{name} has {picture.width} x {picture.height} pixels, more than Pillow's limit of {limit}")
    if picture.width == 0 or picture.height == 0:
        raise InputError(f"{name} is empty ({picture.width} x {picture.height} pixels)")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        # integer modes hold 16-bit grey values; float pictures are stretched
        top = 65535.0 if picture.mode.startswith("I") and values.max() > 255 else max(float(values.max()), 255.0)
        picture = Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    picture.info = {} if source is None else {SOURCE: source}
    return picture


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, public_only: bool) -> None:
        self.public_only = public_only

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl, self.public_only)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str, public_only: bool = False) -> None:
    """Raise ``InputError`` unless the URL is http(s), and, if asked, does not point into a private network."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"only http and https URLs are read, got {url!r}")
    if public_only:
        try:
            found = {info[4][0] for info in socket.getaddrinfo(parts.hostname, None)}
        except OSError as error:
            raise InputError(f"cannot resolve {parts.hostname!r}: {error}") from error
        if not all(ipaddress.ip_address(address).is_global for address in found):
            raise InputError(f"{url!r} points to a local or private address")


def download(url: str, public_only: bool = False) -> bytes:
    """The bytes behind a URL, at most ``URL_BYTES`` within ``URL_SECONDS``; every redirect is checked again."""
    check_url(url, public_only)
    opener = urllib.request.build_opener(_CheckedRedirects(public_only))
    request = urllib.request.Request(url, headers={"User-Agent": "legrad"})
    deadline = time.monotonic() + URL_SECONDS
    data = bytearray()
    try:
        with opener.open(request, timeout=URL_SECONDS) as response:
            while chunk := response.read(1 << 16):
                data += chunk
                if len(data) > URL_BYTES:
                    raise InputError(f"{url} is larger than {URL_BYTES // 1_000_000} MB")
                if time.monotonic() > deadline:
                    raise InputError(f"{url} took longer than {URL_SECONDS:.0f} s")
    except (urllib.error.URLError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {url}: {error}") from error
    return bytes(data)


def expand(sources: Iterable[str]) -> Iterator[str]:
    """Files, folders (their pictures, sorted), glob patterns and URLs -> single files and URLs.

    Raises:
        InputError: a pattern or folder without pictures, or a missing file.
    """
    for source in sources:
        if is_url(source) or Path(source).is_file():
            yield source
        elif Path(source).is_dir():
            found = sorted(str(path) for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(f"no pictures in the folder {source}")
            yield from found
        elif glob.has_magic(source):
            found = sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file())
            if not found:
                raise InputError(f"no file matches {source!r}")
            yield from found
        else:
            raise InputError(f"no such picture: {source}")
