"""Reading image transforms: where a transform moves pixels, and how it normalises them."""

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from legrad.checks import first_line
from legrad.errors import InputError, LeGradError, warn
from legrad.inputs import tensors
from legrad.inputs.geometry import Placement, Size, pair

MakeTransform = Callable[[Size | None, str], Any]
"""(size or None, fit) -> a transform of one image."""


def _resize(placement: Placement, step: Any) -> Placement:
    size = step.size
    height, width = placement.input
    if size is None:
        raise InputError("cannot follow Resize(size=None); give a size")
    if isinstance(size, int) or len(size) == 1:
        # torchvision: the shorter side becomes `size`, the other is truncated
        short = size if isinstance(size, int) else size[0]
        new = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        longest = getattr(step, "max_size", None)
        if longest is not None and max(new) > longest:
            new = (int(longest * new[0] / max(new)), int(longest * new[1] / max(new)))
        return placement.resized(new)
    return placement.resized((int(size[0]), int(size[1])))


def _resize_keep_ratio(placement: Placement, step: Any) -> Placement:
    ratios = [side / target for side, target in zip(placement.input, step.size, strict=True)]
    ratio = max(ratios) * step.longest + min(ratios) * (1 - step.longest)
    return placement.resized((round(placement.input[0] / ratio), round(placement.input[1] / ratio)))


def _center_crop(placement: Placement, step: Any) -> Placement:
    """Both libraries pad a side that is too short, the smaller half in front, then cut around the centre."""
    size = pair(step.size)
    corner = []
    for side, target in zip(placement.input, size, strict=True):
        corner.append(-((target - side) // 2) if target > side else round((side - target) / 2.0))
    return placement.moved(corner[0], corner[1], size)


def _preset(placement: Placement, step: Any) -> Placement:
    """torchvision's ``weights.transforms()`` of classifiers: resizes the shorter side and crops the centre."""
    placement = _resize(placement, SimpleNamespace(size=step.resize_size))
    return _center_crop(placement, SimpleNamespace(size=tuple(step.crop_size) * (2 // len(step.crop_size))))


# steps that move pixels; those in _COLOUR do not
_STEPS = {
    "Resize": _resize,
    "ResizeKeepRatio": _resize_keep_ratio,
    "CenterCrop": _center_crop,
    "CenterCropOrPad": _center_crop,
    "ImageClassification": _preset,
}

_COLOUR = {
    *("ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor", "ToImage", "ToDtype", "ConvertImageDtype"),
    *("Normalize", "MaybeConvertMode", "Grayscale", "RGB"),
    # functions, by their own name: of open_clip and of the OpenAI package
    *("_convert_to_rgb", "_convert_image_to_rgb"),
}


@runtime_checkable
class Preprocessing(Protocol):
    """A transform with a method that says where pixels go, for libraries whose transforms are no list of steps.

    Attributes:
        normalisation: mean and std, (3,) each, or None.
    """

    normalisation: tuple[Tensor, Tensor] | None

    def placement(self, original: Size) -> Placement:
        """Where the result lies in an image of (height, width)."""

    def __call__(self, image: Any) -> Tensor:
        """PIL image -> (3, height, width)."""


def follow(transform: Any, original: Size) -> Placement:
    """Where a transform's result lies in the original image, from its steps.

    Args:
        transform: a ``Preprocessing``, a ``Compose`` (anything with ``.transforms``) or a single step.
        original: (height, width) of the image that goes in.

    Raises:
        InputError: a step that may move pixels in a way that is not known.
    """
    if isinstance(transform, Preprocessing):
        return transform.placement(original)
    placement = Placement(original, original)
    for step in getattr(transform, "transforms", [transform]):
        name = step.__name__ if isinstance(step, FunctionType) else type(step).__name__
        if name in _STEPS:
            placement = _STEPS[name](placement, step)
        elif hasattr(step, "transforms"):
            raise InputError("a transform inside a transform is not followed; give one flat Compose")
        elif name not in _COLOUR:
            raise InputError(
                f"cannot follow the transform step {name}: known are {', '.join([*_STEPS, *sorted(_COLOUR)])}. "
                "Preprocess yourself and pass a float tensor (batch, channels, height, width)"
            )
    return placement


def usual_size(make_transform: MakeTransform | None, size: Size) -> Size:
    """(height, width) of what a model's own transform makes of an image of ``size``; ``size`` if nobody knows."""
    if make_transform is None:
        return size
    try:
        return follow(make_transform(None, "model"), size).input
    except LeGradError:  # told when an image is prepared
        return size


def normalisation(transform: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and std, (3,) each, of a transform's Normalize step; None without one."""
    if isinstance(transform, Preprocessing):
        return transform.normalisation
    for step in getattr(transform, "transforms", [transform]):
        if type(step).__name__ in ("Normalize", "ImageClassification"):
            return _numbers(step.mean), _numbers(step.std)
    return None


def own_or_library(transform: Any, library_transform: MakeTransform | None) -> MakeTransform:
    """A user's transform where nothing is asked of it, else the library's."""

    def make_transform(size: Size | None, fit: str) -> Any:
        if size is None and fit == "model":
            return transform
        if library_transform is None:
            raise InputError("with your own transform only size=None and fit='model' are possible")
        return library_transform(size, fit)

    return make_transform


def applied(transform: Any, image: Any, placement: Placement, channels: int, name: str) -> Tensor:
    """What a transform makes of an image; ``InputError`` if a model of ``channels`` channels cannot take it."""
    try:
        tensor = transform(image)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a user's own steps may raise anything
        raise InputError(f"the transform fails on {name}: {first_line(error)}") from error
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"the transform returned {type(tensor).__name__} for {name}, a tensor is expected: is a ToTensor() missing "
            "in it?"
        )
    if tensor.ndim != 3 or tensor.shape[0] != channels or not tensor.numel():
        raise InputError(
            f"the transform made {tuple(tensor.shape)} of {name}, the model takes ({channels}, height, width); "
            f"preprocess yourself and pass a float tensor (batch, {channels}, height, width)"
        )
    if tuple(tensor.shape[1:]) != placement.input:
        raise InputError(
            f"the transform gave {tuple(tensor.shape[1:])} pixels where {placement.input} were expected from its "
            f"steps; preprocess yourself and pass a float tensor (batch, {channels}, height, width)"
        )
    if not tensor.is_floating_point() and not tensor.is_complex():
        warn(
            f"the transform makes {str(tensor.dtype).removeprefix('torch.')} of {name}, which is not normalised: does "
            "it lack ToDtype(torch.float32, scale=True), or ToTensor() in place of PILToTensor()?"
        )
        return tensor.float()
    if not tensors.is_usable(tensor):
        raise InputError(f"the transform made a tensor {tensors.kind(tensor)} of {name}, dense floats are expected")
    try:
        tensors.check_values(tensor[None], "input", of_pixels=True)
    except InputError as error:
        raise InputError(str(error).replace("input 0", f"what the transform made of {name}")) from None
    return tensor


def _numbers(values: Any) -> Tensor:
    return torch.as_tensor(values, device="cpu", dtype=torch.float32).flatten()
