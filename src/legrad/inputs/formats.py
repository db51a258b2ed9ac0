"""Which files are opened as images, and what to do about those that are not.

Pillow's full list has readers that hand a file to another program (PostScript to Ghostscript), whatever its name says.
Only formats of images are opened here.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
from typing import Any

from PIL import Image, UnidentifiedImageError

from legrad.checks import first_line

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are opened; HEIF where pillow-heif is installed."""

_NAMES = "PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, JPEG 2000, AVIF"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_CONVERT = "convert it to PNG first"
# how a file begins -> what it is, and what to do
_OTHERS = {
    b"%!PS": f"PostScript, which is a program: {_CONVERT}",
    b"\xc5\xd0\xd3\xc6": f"PostScript, which is a program: {_CONVERT}",
    b"%PDF": f"a PDF document: {_CONVERT}",
    b"\xff\x0a": f"a JPEG XL image: {_CONVERT}",
    b"\x00\x00\x00\x0cJXL ": f"a JPEG XL image: {_CONVERT}",
    b"8BPS": f"a Photoshop file: {_CONVERT}",
    b"<svg": f"an SVG drawing: {_CONVERT}",
    b"\x93NUMPY": "a NumPy array: give the array itself",
}


def open_image(file: Any) -> Image.Image:
    """``Image.open`` of a path or binary file, for the formats of ``FORMATS`` only."""
    if "HEIF" not in Image.OPEN and _heif_is_installed():
        importlib.import_module("pillow_heif").register_heif_opener()
    _load_readers()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


@functools.cache
def _load_readers() -> None:
    """Those of ``FORMATS``; ``Image.init`` would load four times as many."""
    for name in ("Avif", "Bmp", "Gif", "Ico", "Jpeg2K", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP"):
        with contextlib.suppress(ImportError):  # of versions without one
            importlib.import_module(f"PIL.{name}ImagePlugin")


@functools.cache
def _heif_is_installed() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def is_foreign(image: Image.Image) -> bool:
    """Whether reading the pixels of an image that the caller has opened would use another format's reader."""
    return image.format is not None and image.format not in FORMATS and bool(getattr(image, "tile", None))


def reason(file: Any, error: Exception) -> str:
    """Why a file cannot be opened as an image: what it is instead, if that can be told, else Pillow's own words."""
    head = _head(file)
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "a HEIC image, as phones make them: pip install pillow-heif, or convert it to JPEG"
    if head[128:132] == b"DICM":
        return "a DICOM file: read its pixels, and give the array with value_range=(low, high)"
    if text.startswith(b"<?xml") and b"<svg" in text:
        return _OTHERS[b"<svg"]
    for start, kind in _OTHERS.items():
        if text.startswith(start) or head.startswith(start):
            return kind
    if isinstance(error, UnidentifiedImageError):
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return (
                "a TIFF of a kind that Pillow does not read (several bands, colour of 32 bits, ...), or a damaged one: "
                "read it otherwise, and give the array with value_range=(low, high), or a tensor"
            )
        # Pillow's own message repeats the name, or says <_io.BytesIO object at 0x...>
        return f"cannot identify its format ({_NAMES} are read)" if head else "the file is empty"
    return first_line(error)


def _head(file: Any) -> bytes:
    try:
        if isinstance(file, str | os.PathLike):
            with open(file, "rb") as opened:
                return opened.read(1024)
        file.seek(0)
        head: bytes = file.read(1024)
        return head
    except (OSError, ValueError):
        return b""
