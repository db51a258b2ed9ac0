"""Whatever ``Explainer.stream`` takes, one image after the other: folders, generators, loaders of batches, bytes."""

import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor

from legrad.checks import brief
from legrad.errors import InputError
from legrad.inputs import images, sounds, urls, videos
from legrad.inputs.prepare import Inputs
from legrad.inputs.readers import Input
from legrad.inputs.tensors import InputLayout

_KEYS = ("image", "images", "img", "pixel_values")  # of the rows of data sets


def singles(sources: Any, layout: InputLayout) -> Iterator[Any]:
    """Single images out of whatever ``stream`` takes.

    Raises:
        InputError: an empty folder, or nothing that has images.
    """
    if isinstance(sources, str | os.PathLike) and not (isinstance(sources, str) and urls.is_url(sources)):
        path = images.path_of(sources)
        if os.path.isdir(path):
            yield from _files_below(path, layout)
        elif glob.has_magic(path) and not os.path.exists(path):
            yield from images.expand([path])
        else:
            yield sources
    elif _is_single(sources) or isinstance(sources, Mapping):
        yield from _of_element(sources, layout)
    elif isinstance(sources, Iterable):
        for element in sources:
            yield from _of_element(element, layout)
    else:
        raise InputError(
            "sources is a folder, an image, or an iterable of images (a list, a generator, Path.glob, a DataLoader), "
            f"got {brief(sources)}"
        )


def _is_single(value: Any) -> bool:
    kinds: Any = str | os.PathLike | bytes | bytearray | memoryview | PIL.Image.Image | np.ndarray | Tensor
    return isinstance(value, kinds) or hasattr(value, "read")


def _of_element(element: Any, layout: InputLayout) -> Iterator[Any]:
    """What an iterable gave at once: an image, a batch, a pair of images and labels, or a row of a data set."""
    dims = len(layout.shape)
    if isinstance(element, Tensor):
        yield from [element] if element.ndim == dims else element.unbind(0) if element.ndim == dims + 1 else [element]
    elif isinstance(element, np.ndarray) and element.ndim == 4 and layout.axes[0] == "rows":
        yield from element
    elif isinstance(element, io.IOBase) or (hasattr(element, "read") and not isinstance(element, PIL.Image.Image)):
        yield element.read()
    elif isinstance(element, Input):
        yield Inputs([element])
    elif isinstance(element, Mapping):
        name = next((key for key in _KEYS if key in element), None)
        yield from [element] if name is None else _of_element(element[name], layout)
    elif isinstance(element, tuple | list) and element and isinstance(element[0], Tensor) and element[0].ndim >= dims:
        yield from _of_element(element[0], layout)
    elif isinstance(element, tuple | list) and element and layout.axes[0] == "rows":
        images_only = isinstance(element, list) and all(map(_is_single, element))
        for part in element if images_only else element[:1]:
            yield from _of_element(part, layout)
    else:
        yield element


def _files_below(folder: str, layout: InputLayout) -> list[str]:
    """The files of a folder and of those in it, sorted, without hidden ones."""
    suffixes = {"rows": images.SUFFIXES, "frames": videos.SUFFIXES, "frequency": sounds.SUFFIXES}[layout.axes[0]]
    paths = []
    for root, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        visible = sorted(name for name in files if not name.startswith("."))
        paths += [os.path.join(root, name) for name in visible if os.path.splitext(name)[1].lower() in suffixes]
    if not paths:
        raise InputError(f"no {kind_of(layout)}s in the folder {folder}, whose folders were searched too")
    return paths


def kind_of(layout: InputLayout) -> str:
    """What one input is called."""
    return {"rows": "image", "frames": "video", "frequency": "sound"}[layout.axes[0]]


def name_of(single: Any, index: int, layout: InputLayout) -> str:
    """Path, URL, or "image 3", ..."""
    is_path = isinstance(single, str | os.PathLike)
    return urls.safe_url(images.path_of(single)) if is_path else f"{kind_of(layout)} {index}"
