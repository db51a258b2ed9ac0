"""Whatever ``explain`` takes as images -> tensors, with their placements in the original images."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from legrad.checks import check_switch
from legrad.defaults import usual_defaults, usual_dtype, with_usual_defaults
from legrad.errors import InputError, UserLine, user_line, warnings_at
from legrad.inputs import depth, geometry, images, sounds, spectrograms, transforms, videos, views
from legrad.inputs.ahead import read_ahead
from legrad.inputs.originals import Allowance
from legrad.inputs.readers import FILES, ImageReader, Input, VideoReader, of_sound, of_waveform
from legrad.inputs.tensors import InputLayout, check_size, check_unfitted, checked_tensor, tensor_shape
from legrad.inputs.transforms import MakeTransform

_THREADS = 16  # reading and resizing images release the GIL
_FIRST_WINDOW = 32  # images: what a processor explains in one pass
_ROWS = 8  # images of a batch whose pixels are computed at once, to bound memory
# names under which processors of transformers return their tensors
_BATCHED = ("pixel_values", "pixel_values_videos", "input_values", "input_features")


@dataclass(frozen=True)
class Fitting:
    """How images become a model's input; attributes as arguments of ``Explainer.explain``."""

    size: int | Sequence[int] | None = None
    fit: str = "model"
    value_range: tuple[float, float] | None = None


USUAL = Fitting()


class Inputs(Sequence[Input]):
    """Inputs that are ready for a model, see ``Explainer.prepare``.

    Args:
        inputs: in the order in which they were given.
        fitting: how they were made, for images that they are compared with.
    """

    def __init__(self, inputs: Sequence[Input], fitting: Fitting = USUAL) -> None:
        self._inputs, self.fitting = tuple(inputs), fitting

    @overload
    def __getitem__(self, index: int) -> Input: ...
    @overload
    def __getitem__(self, index: slice) -> "Inputs": ...
    def __getitem__(self, index: int | slice) -> "Input | Inputs":
        return Inputs(self._inputs[index], self.fitting) if isinstance(index, slice) else self._inputs[index]

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def tensor(self) -> Tensor:
        """(inputs, *shape of one), on the CPU unless a tensor came from elsewhere.

        Raises:
            InputError: they differ in shape.
        """
        if len({item.tensor.shape for item in self._inputs}) > 1:
            raise InputError("these inputs differ in shape and are no single tensor; give size= or fit='squash'")
        return torch.stack([item.tensor for item in self._inputs])

    def with_views(self, images: Sequence[Any]) -> "Inputs":
        """The same inputs, shown as other images: of channels that are no colours, for instance.

        Args:
            images: one for each input, as ``Explainer.explain`` takes single ones, of any size. They show what the
                originals show; maps are laid on them.

        Raises:
            InputError: not one image for each input, one that cannot be read, or inputs that are videos or sounds.
        """
        views.check_views(len(self), images, any(item.tensor.ndim != 3 for item in self._inputs))
        placed = [views.with_view(item.placement, image) for item, image in zip(self._inputs, images, strict=True)]
        pairs = zip(self._inputs, placed, strict=True)
        inputs = [replace(item, placement=placement, image=image) for item, (placement, image) in pairs]
        return Inputs(inputs, self.fitting)


# what ``Explainer.explain`` takes as images, documented there
Images = (
    str
    | os.PathLike[str]
    | PIL.Image.Image
    | np.ndarray[Any, Any]
    | Tensor
    | Mapping[str, Any]
    | Inputs
    | Sequence[Any]
)


# a batch of a processor of transformers -> one tensor per input
Unpack = Callable[[Mapping[str, Any]], list[Tensor]]


class InputQueue:
    """The inputs of a call; those from files are read when they are needed.

    Args:
        jobs: one per input: the input, or a function that makes it, which may be called in another thread.
        fitting: how they are made.
    """

    def __init__(self, jobs: Sequence[Input | Callable[[], Input]], fitting: Fitting = USUAL) -> None:
        self._jobs, self.fitting = jobs, fitting

    def __len__(self) -> int:
        return len(self._jobs)

    def windows(self, count: int | None = None) -> Generator[list[Input]]:
        """The inputs in order, at most ``count`` at a time; threads work on the next ones meanwhile.

        The first windows are small, so that the model has something to do while the others are read.

        Raises:
            InputError: one of the next inputs cannot be read; those after it are not read any more.
        """
        if len(self) == 1:
            yield [_result(self._jobs[0])]
            return
        step = count or len(self)
        line = user_line()
        jobs = [functools.partial(_result_of_thread, line, job) for job in self._jobs]
        if not usual_dtype():  # nothing runs meanwhile that would see another one
            for start in range(0, len(jobs), step):
                yield [job() for job in jobs[start : start + step]]
            return
        # two windows at most: one that is used, one that is being read
        with contextlib.closing(read_ahead(jobs, min(_THREADS, os.cpu_count() or 1), step)) as inputs:
            size = step if count is None else min(step, _FIRST_WINDOW)
            while window := list(itertools.islice(inputs, size)):
                yield window
                del window
                size = min(step, 2 * size)


def _result(job: Input | Callable[[], Input]) -> Input:
    if isinstance(job, Input):
        return job
    with usual_defaults():
        return job()


def _result_of_thread(line: UserLine, job: Input | Callable[[], Input]) -> Input:
    with warnings_at(line):
        return _result(job)


@with_usual_defaults
def sources(
    source: Any,
    layout: InputLayout,
    make_transform: MakeTransform | None = None,
    unpack: Unpack | None = None,
    size: int | Sequence[int] | None = None,
    fit: str = "model",
    value_range: Any = None,
    allow_private_urls: bool = True,
    kept_bytes: int | None = None,
) -> InputQueue:
    """The queue of inputs to read and preprocess.

    Files and URLs are read when they are needed. Images in memory are loaded here: two threads must not load the same
    lazily opened image.

    Args:
        source: as ``images`` of ``Explainer.explain``.
        layout: of the model's input.
        make_transform: of the model; None if it carries no preprocessing.
        unpack: of the model's processor, for batches that are not simply a tensor.
        size, fit, value_range, allow_private_urls: as for ``Explainer.explain``.
        kept_bytes: originals of image files beyond so many bytes are read again when they are shown; None keeps all.

    Raises:
        InputError: nothing, an image in memory that cannot be read, a tensor of another shape or type, or inputs that
            were prepared for another model.
    """
    kind = layout.axes[0]
    value_range, public_only = depth.checked(value_range), not check_switch("allow_private_urls", allow_private_urls)
    if kind == "frequency" and isinstance(source, Tensor) and source.ndim == 1:
        source = source.numpy(force=True)  # a waveform
    if isinstance(source, Tensor | Mapping | Inputs):
        check_unfitted(size, fit, value_range)
        if isinstance(source, Inputs):
            return InputQueue([_of_this_model(item, layout) for item in source], source.fitting)
        inputs = (
            _of_tensor(source, layout, make_transform)
            if isinstance(source, Tensor)
            else _of_batch(source, layout, make_transform, unpack)
        )
        return InputQueue(inputs)
    split = {"rows": _split_images, "frames": videos.split, "frequency": sounds.split}[kind]
    items = split(source)
    if not items:
        raise InputError("no images")
    if kind != "frequency" and any(isinstance(item, Tensor) for item in items):
        raise InputError(f"give tensor input as one float tensor {tensor_shape(layout)}, not inside a list")
    if make_transform is None:
        raise InputError(
            "this model carries no preprocessing: give legrad.wrap(model, transform=...), or pass a normalised float "
            f"tensor {tensor_shape(layout)}"
        )
    input_size = None if size is None else geometry.as_size(size)
    if input_size is not None and kind == "rows":
        check_size(*input_size, layout)
    transform = make_transform(input_size, fit)
    make: Callable[[Any, int], Input]
    if kind == "frequency":
        check_unfitted(None, "model", value_range)
        make = functools.partial(of_sound, extractor=transform, public_only=public_only)
    else:
        options = {"value_range": value_range, "public_only": public_only}
        allowance = Allowance(kept_bytes)
        if kind == "rows":
            make = ImageReader(transform, layout.shape[0], functools.partial(images.read, **options), allowance)
        else:
            read = functools.partial(videos.read, count=layout.shape[0], **options)
            make = VideoReader(transform, layout.shape[1], read, allowance)
        items = [item if isinstance(item, FILES) else make.read(item) for item in items]
    jobs = [functools.partial(make, item, index) for index, item in enumerate(items)]
    return InputQueue(jobs, Fitting(size, fit, value_range))


def _of_this_model(item: Input, layout: InputLayout) -> Input:
    if item.tensor.ndim != len(layout.shape) or item.tensor.shape[:-2] != layout.shape[:-2]:
        raise InputError(
            f"{item.name} was prepared for another model: it is {tuple(item.tensor.shape)}, this model takes "
            f"{tensor_shape(layout)}"
        )
    return item


def _split_images(source: Any) -> list[Any]:
    if isinstance(source, np.ndarray) and source.ndim == 4:
        return list(source)
    return list(source) if isinstance(source, list | tuple) else [source]


def by_size(inputs: Sequence[Input], first: int = 0) -> dict[geometry.Size, list[int]]:
    """(height, width) -> indices of the inputs of that size, ascending, from index ``first`` on."""
    groups: dict[geometry.Size, list[int]] = {}
    for index, item in enumerate(inputs[first:], first):
        groups.setdefault(item.placement.input, []).append(index)
    return groups


def stack(inputs: Sequence[Input], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(batch, *shape) on a device and in a type; the inputs are of one shape."""
    rows = [item.tensor for item in inputs]
    if dtype == torch.float16:
        for item in inputs:
            if float(item.tensor.abs().max()) > torch.finfo(dtype).max:
                raise InputError(f"{item.name} holds values beyond those of float16, in which the model computes")
    if device.type != "cuda" or rows[0].is_cuda:
        return torch.stack(rows).to(device, dtype)
    # page-locked memory: the copy to the GPU runs while the CPU goes on
    batch = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True, device="cpu")
    return torch.stack(rows, out=batch).to(device, non_blocking=True).to(dtype)


def _of_tensor(tensor: Tensor, layout: InputLayout, make_transform: MakeTransform | None) -> list[Input]:
    kind, shape = layout.axes[0], layout.shape
    tensor = checked_tensor(tensor, layout)
    if len(shape) == 1:
        return [of_waveform(row, f"sound {index}") for index, row in enumerate(tensor)]
    if kind == "frequency":
        size = (tensor.shape[2], tensor.shape[1])
        images = [spectrograms.as_image(row) for row in tensor]
    else:
        size = (tensor.shape[-2], tensor.shape[-1])
        scale = None if make_transform is None else transforms.normalisation(make_transform(None, "model"))
        images = [row for rows in tensor.split(_ROWS) for row in views.of_tensor(rows, scale)]
    placement = geometry.Placement(size, size)
    what = {"rows": "image", "frames": "video", "frequency": "sound"}[kind]
    return [
        Input(row, placement, image, f"{what} {index}")
        for index, (row, image) in enumerate(zip(tensor, images, strict=True))
    ]


def _of_batch(
    batch: Mapping[str, Any], layout: InputLayout, make_transform: MakeTransform | None, unpack: Unpack | None
) -> list[Input]:
    """Inputs of a batch that a processor of transformers returned."""
    if unpack is None:
        values = next((batch[name] for name in _BATCHED if name in batch), None)
        if not isinstance(values, Tensor):
            raise InputError(
                f"a batch holds a tensor under one of {', '.join(_BATCHED)}, got "
                f'{", ".join(map(str, batch)) or "nothing"}; call the processor with return_tensors="pt"'
            )
        return _of_tensor(values, layout, make_transform)
    singles = [_of_tensor(row[None], layout, make_transform)[0] for row in unpack(batch)]
    if not singles:
        raise InputError("no images")
    return [replace(item, name=f"image {index}") for index, item in enumerate(singles)]
