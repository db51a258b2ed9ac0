"""Whatever ``explain`` takes as images -> tensors, with their placements in the original images."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from legrad import relevance
from legrad.defaults import usual_defaults, usual_dtype, with_usual_defaults
from legrad.errors import InputError
from legrad.inputs import geometry, images, sounds, spectrograms, transforms, videos
from legrad.inputs.ahead import read_ahead

_TENSORS = {
    "rows": "(batch, 3, height, width)",
    "frames": "(batch, frames, 3, height, width)",
    "frequency": "(batch, time, frequency)",
}
_THREADS = 16  # reading and resizing images release the GIL
_ROWS = 8  # images of a batch whose pixels are computed at once, to bound memory
# names under which processors of transformers return their tensors
_BATCHED = ("pixel_values", "pixel_values_videos", "input_values", "input_features")


@dataclass(frozen=True)
class Input:
    """One image, video or sound, ready for the model.

    Attributes:
        tensor: (3, height, width), normalised; videos have frames in front, sounds are (time, frequency).
        placement: where it lies in the original.
        image: the original, (H, W, 3) uint8; of videos (frames, H, W, 3), of sounds their spectrogram.
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


class Inputs(Sequence[Input]):
    """Inputs that are ready for a model, see ``Explainer.prepare``.

    Args:
        inputs: in the order in which they were given.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = tuple(inputs)

    @overload
    def __getitem__(self, index: int) -> Input: ...
    @overload
    def __getitem__(self, index: slice) -> "Inputs": ...
    def __getitem__(self, index: int | slice) -> "Input | Inputs":
        return Inputs(self._inputs[index]) if isinstance(index, slice) else self._inputs[index]

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


class InputLayout(Protocol):
    """What a model takes: the part of its anatomy that reading inputs has to know."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the grid's axes; the first tells images, videos ("frames") and sounds ("frequency") apart."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input tensor."""
        ...


# (size or None, fit) -> a transform of one image, see ``transforms``
MakeTransform = Callable[[geometry.Size | None, str], Any]
# a batch of a processor of transformers -> one tensor per input
Unpack = Callable[[Mapping[str, Any]], list[Tensor]]


class InputQueue:
    """The inputs of a call; those from files are read when they are needed.

    Args:
        jobs: one per input: the input, or a function that makes it, which may be called in another thread.
    """

    def __init__(self, jobs: Sequence[Input | Callable[[], Input]]) -> None:
        self._jobs = jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def windows(self, count: int | None = None) -> Generator[list[Input]]:
        """The inputs in order, at most ``count`` at a time; threads work on the next ones meanwhile.

        Raises:
            InputError: one of the next inputs cannot be read; those after it are not read any more.
        """
        if len(self) == 1:
            yield [_result(self._jobs[0])]
            return
        step = count or len(self)
        jobs = [functools.partial(_result, job) for job in self._jobs]
        if not usual_dtype():  # nothing runs meanwhile that would see another one
            for start in range(0, len(jobs), step):
                yield [job() for job in jobs[start : start + step]]
            return
        with contextlib.closing(read_ahead(jobs, min(_THREADS, os.cpu_count() or 1), 2 * step)) as inputs:
            while window := list(itertools.islice(inputs, step)):
                yield window


def _result(job: Input | Callable[[], Input]) -> Input:
    if isinstance(job, Input):
        return job
    with usual_defaults():
        return job()


@with_usual_defaults
def sources(
    source: Any,
    layout: InputLayout,
    make_transform: MakeTransform | None = None,
    unpack: Unpack | None = None,
    size: int | Sequence[int] | None = None,
    fit: str = "model",
) -> InputQueue:
    """The queue of inputs to read and preprocess.

    Files and URLs are read when they are needed. Images in memory are loaded here: two threads must not load the same
    lazily opened image.

    Args:
        source: as ``images`` of ``Explainer.explain``.
        layout: of the model's input.
        make_transform: of the model; None if it carries no preprocessing.
        unpack: of the model's processor, for batches that are not simply a tensor.
        size, fit: as for ``Explainer.explain``.

    Raises:
        InputError: nothing, an image in memory that cannot be read, or a tensor of another shape or type.
    """
    kind = layout.axes[0]
    tensor_shape = _tensor_shape(layout)
    if kind == "frequency" and isinstance(source, Tensor) and source.ndim == 1:
        source = source.numpy(force=True)  # a waveform
    if isinstance(source, Tensor | Mapping | Inputs):
        _check_unfitted(size, fit)
        if isinstance(source, Inputs):
            return InputQueue(source)
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
        raise InputError(f"give tensor input as one float tensor {tensor_shape}, not inside a list")
    if make_transform is None:
        raise InputError(
            "this model carries no preprocessing: give legrad.wrap(model, transform=...), or pass a normalised float "
            f"tensor {tensor_shape}"
        )
    transform = make_transform(None if size is None else geometry.as_size(size), fit)
    if kind == "rows":
        items = [item if isinstance(item, str | os.PathLike) else images.read(item) for item in items]
        return InputQueue([functools.partial(_of_image, item, transform, index) for index, item in enumerate(items)])
    if kind == "frames":
        inputs = [_of_video(item, transform, layout.shape[0], index) for index, item in enumerate(items)]
    else:
        inputs = [_of_sound(item, transform, index) for index, item in enumerate(items)]
    return InputQueue(inputs)


def _tensor_shape(layout: InputLayout) -> str:
    """What tensor input looks like, for messages."""
    return "(batch, samples)" if len(layout.shape) == 1 else _TENSORS[layout.axes[0]]


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
    if device.type != "cuda" or rows[0].is_cuda:
        return torch.stack(rows).to(device, dtype)
    # page-locked memory: the copy to the GPU runs while the CPU goes on
    batch = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(rows, out=batch).to(device, non_blocking=True).to(dtype)


def _of_image(source: Any, transform: Any, index: int) -> Input:
    image = images.read(source)
    placement = transforms.follow(transform, (image.height, image.width))
    # images that were read from a file know where they came from
    name = str(image.info.get(images.SOURCE, f"image {index}"))
    return Input(_transformed(image, transform, placement), placement, np.asarray(image), name)


def _of_video(source: Any, transform: Any, count: int, index: int) -> Input:
    """Frames go through the transform one by one."""
    images, name, timing = videos.read(source, count)
    placement = transforms.follow(transform, (images[0].height, images[0].width))
    tensor = torch.stack([_transformed(image, transform, placement) for image in images])
    return Input(tensor, placement, np.stack([np.asarray(image) for image in images]), name or f"video {index}", timing)


def _of_sound(source: Any, extractor: Any, index: int) -> Input:
    """The original is the sound without the padding of the spectrogram."""
    waveform, name = sounds.read(source, extractor.sampling_rate, f"sound {index}")
    spectrogram = spectrograms.features(extractor, waveform)
    if spectrogram.values.ndim == 1:
        rate = extractor.sampling_rate
        timing = geometry.Timing(duration=len(spectrogram.values) / rate)
        return replace(_of_waveform(spectrogram.values, name, rate), timing=timing)
    time, frequency = spectrogram.values.shape
    placement = geometry.Placement(
        (frequency, spectrogram.heard), (frequency, time), offset=(0.0, float(spectrogram.skipped))
    )
    timing = geometry.Timing(duration=spectrogram.heard * spectrogram.hop, start=spectrogram.start)
    image = spectrograms.as_image(spectrogram.values[spectrogram.skipped :][: spectrogram.heard])
    return Input(spectrogram.values, placement, image, name, timing, spectrogram.frequencies)


def _of_waveform(tensor: Tensor, name: str, rate: int | None = None) -> Input:
    """The model's input is one row of samples; the image is their spectrogram."""
    image, column = spectrograms.image_of_waveform(tensor)
    rows = len(image)
    placement = geometry.Placement((rows, image.shape[1]), (1, len(tensor)), (1 / rows, float(column)))
    frequencies = () if rate is None else tuple((np.arange(rows) * rate / 2 / (rows - 1)).tolist())
    return Input(tensor, placement, image, name, frequencies=frequencies)


def _transformed(image: Any, transform: Any, placement: geometry.Placement) -> Tensor:
    tensor: Tensor = transform(image)
    if tuple(tensor.shape[1:]) != placement.input:
        raise InputError(
            f"the transform gave {tuple(tensor.shape[1:])} pixels where {placement.input} were expected from its "
            "steps; preprocess yourself and pass a float tensor (batch, 3, height, width)"
        )
    return tensor


def checked_tensor(
    tensor: Tensor, layout: InputLayout, size: int | Sequence[int] | None = None, fit: str = "model"
) -> Tensor:
    """Tensor input that a model can take, detached.

    Raises:
        InputError: another shape or type, NaN or infinite values, or ``size`` or ``fit`` for a tensor.
    """
    _check_unfitted(size, fit)
    kind, shape = layout.axes[0], layout.shape
    # the last two are the input size, which the anatomy judges
    fits = tensor.ndim == len(shape) + 1 and tensor.shape[1:-2] == shape[:-2]
    if not fits or not tensor.is_floating_point() or len(tensor) == 0:
        sides = "" if kind == "rows" else f" (here {' x '.join(map(str, shape))} each)"
        raise InputError(
            f"tensor input is normalised float {_tensor_shape(layout)} with at least one image{sides}, got "
            f"{tuple(tensor.shape)} {tensor.dtype}"
        )
    # NaN becomes both minimum and maximum, so one pass without a temporary tensor finds it
    if not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
        raise InputError("the input tensor holds NaN or infinite values; check your preprocessing")
    # a tensor made under inference mode cannot take part in autograd
    tensor = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
    return tensor


def _check_unfitted(size: int | Sequence[int] | None, fit: str) -> None:
    if size is not None or fit != "model":
        raise InputError("size and fit are for images; resize tensor input yourself")


def _of_tensor(tensor: Tensor, layout: InputLayout, make_transform: MakeTransform | None) -> list[Input]:
    kind, shape = layout.axes[0], layout.shape
    tensor = checked_tensor(tensor, layout)
    if len(shape) == 1:
        return [_of_waveform(row, f"sound {index}") for index, row in enumerate(tensor)]
    if kind == "frequency":
        size = (tensor.shape[2], tensor.shape[1])
        images = [spectrograms.as_image(row) for row in tensor]
    else:
        size = (tensor.shape[-2], tensor.shape[-1])
        scale = None if make_transform is None else transforms.normalisation(make_transform(None, "model"))
        images = [row for rows in tensor.split(_ROWS) for row in _denormalised(rows, scale)]
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


def _denormalised(batch: Tensor, scale: tuple[Tensor, Tensor] | None) -> Any:
    """Normalised input as images (batch, ..., H, W, 3) uint8; without mean and std as grey values, stretched."""
    pixels = batch.float()
    if scale is None:
        grey = pixels.mean(-3)
        pixels = relevance.min_max(grey, grey.ndim - 1).unsqueeze(-3).expand_as(pixels)
    else:
        mean, std = (part.to(pixels)[:, None, None] for part in scale)
        pixels = torch.addcmul(mean, pixels, std)
    # permute to channels-last before the cast: strided byte copies are slow
    return pixels.clamp(0, 1).mul_(255).round_().movedim(-3, -1).contiguous().byte().cpu().numpy()
