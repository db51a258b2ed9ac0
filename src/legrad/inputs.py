"""Whatever ``explain`` takes as images -> tensors with their frames in the original pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from legrad import geometry, images, relevance
from legrad.adapters import Adapter
from legrad.anatomy import ViTAnatomy
from legrad.errors import InputError


@dataclass(frozen=True)
class Input:
    """One picture, ready for the model.

    Attributes:
        tensor: (3, height, width), normalised.
        frame: where it lies in the original.
        picture: the original, (H, W, 3) uint8.
        name: path, URL, or "image 0", ...
    """

    tensor: Tensor
    frame: geometry.Frame
    picture: Any
    name: str


def prepare(source: Any, adapter: Adapter, size: int | Sequence[int] | None = None, fit: str = "model") -> list[Input]:
    """Read and preprocess; arguments as for ``Explainer.explain``.

    Raises:
        InputError: a picture that cannot be read, or a tensor of another shape or type.
    """
    if isinstance(source, Tensor):
        if size is not None or fit != "model":
            raise InputError("size and fit are for pictures; resize tensor input yourself")
        return _of_tensor(source, adapter)
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise InputError("no images")
    if any(isinstance(item, Tensor) for item in sources):
        raise InputError("give tensor input as one float tensor (batch, 3, height, width), not inside a list")
    if adapter.transform is None:
        raise InputError(
            "this model carries no preprocessing: give legrad.wrap(model, transform=...), or pass a normalised float "
            "tensor (batch, 3, height, width)"
        )
    transform = adapter.transform(None if size is None else geometry.as_size(size), fit)
    return [_of_picture(item, transform, index) for index, item in enumerate(sources)]


def by_size(inputs: Sequence[Input]) -> dict[geometry.Size, list[int]]:
    """Indices of the inputs of every size, in the order of the inputs."""
    groups: dict[geometry.Size, list[int]] = {}
    for index, one in enumerate(inputs):
        groups.setdefault(one.frame.input, []).append(index)
    return groups


def stack(inputs: Sequence[Input], anatomy: ViTAnatomy) -> Tensor:
    """(batch, *anatomy.shape) on the model's device and in its type; the inputs are of one shape."""
    return torch.stack([one.tensor for one in inputs]).to(anatomy.device, anatomy.dtype)


def _of_picture(source: Any, transform: Any, index: int) -> Input:
    picture = images.read(source)
    frame = geometry.follow(transform, (picture.height, picture.width))
    tensor = transform(picture)
    if tuple(tensor.shape[1:]) != frame.input:
        raise InputError(
            f"the transform gave {tuple(tensor.shape[1:])} pixels where {frame.input} were expected from its steps; "
            "preprocess yourself and pass a float tensor (batch, 3, height, width)"
        )
    # pictures that were read from a file know where they came from
    name = str(picture.info.get(images.SOURCE, f"image {index}"))
    return Input(tensor, frame, np.asarray(picture), name)


def _of_tensor(tensor: Tensor, adapter: Adapter) -> list[Input]:
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not tensor.is_floating_point() or len(tensor) == 0:
        raise InputError(
            "tensor input is normalised float (batch, 3, height, width) with at least one picture, got "
            f"{tuple(tensor.shape)} {tensor.dtype}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("the input tensor holds NaN or infinite values; check your preprocessing")
    # a tensor made under inference mode cannot take part in autograd
    tensor = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
    scale = None if adapter.transform is None else geometry.normalisation(adapter.transform(None, "model"))
    size = (tensor.shape[2], tensor.shape[3])
    frame = geometry.Frame(size, size)
    return [Input(row, frame, _denormalised(row, scale), f"image {index}") for index, row in enumerate(tensor)]


def _denormalised(tensor: Tensor, scale: tuple[Tensor, Tensor] | None) -> Any:
    """The picture behind normalised input, (H, W, 3) uint8; stretched to grey if mean and std are not known."""
    pixels = tensor.detach().float().cpu()
    if scale is None:
        grey = pixels.mean(0)
        pixels = relevance.min_max(grey).expand(3, -1, -1)
    else:
        pixels = pixels * scale[1][:, None, None] + scale[0][:, None, None]
    return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
