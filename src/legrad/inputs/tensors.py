"""Tensors that are given as input: whether a model can take them, and what is wrong with those that it cannot."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from legrad.errors import InputError, warn

_NAMES = {
    "rows": "(batch, {channels}, height, width)",
    "frames": "(batch, frames, {channels}, height, width)",
    "frequency": "(batch, time, frequency)",
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# pixels, and how many times the model's own: attention takes the square of that longer
_LARGE, _LARGE_TIMES = 4_000_000, 64
_TOO_LARGE, _TOO_LARGE_TIMES = 16_000_000, 256
_FAR = 1e6  # beyond any normalised or physical value
_PIXELS = 30.0  # normalised pixels stay far below, those of 8 bits go up to 255


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


def tensor_shape(layout: InputLayout) -> str:
    """What tensor input looks like, for messages."""
    if len(layout.shape) == 1:
        return "(batch, samples)"
    return _NAMES[layout.axes[0]].format(channels=layout.shape[-3] if len(layout.shape) > 2 else 0)


def checked_tensor(
    tensor: Tensor,
    layout: InputLayout,
    size: int | Sequence[int] | None = None,
    fit: str = "model",
    value_range: object = None,
) -> Tensor:
    """Tensor input that a model can take, detached.

    Raises:
        InputError: another shape or type, without data, NaN, infinite or far too large values, or ``size``, ``fit`` or
            ``value_range`` for a tensor.

    Warns:
        UserWarning: values that look like pixels of 8 bits.
    """
    check_unfitted(size, fit, value_range)
    rows, shape = layout.axes[0] == "rows", layout.shape
    if tensor.is_nested:
        raise InputError(f"a nested tensor is no input; give {tensor_shape(layout)}, or images in a list")
    # the last two are the input size, which the anatomy judges
    fits = tensor.ndim == len(shape) + 1 and tensor.shape[1:-2] == shape[:-2]
    if not fits or not is_usable(tensor) or tensor.numel() == 0:
        sides = "" if rows else f" (here {' x '.join(map(str, shape))} each)"
        expectation = f"tensor input is normalised float {tensor_shape(layout)} with at least one image{sides}"
        raise InputError(f"{expectation}, got {kind(tensor)}")
    if rows:
        check_size(tensor.shape[-2], tensor.shape[-1], layout)
    check_values(tensor, "input", rows or layout.axes[0] == "frames")
    # a tensor made under inference mode cannot take part in autograd
    tensor = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
    return tensor


def check_size(height: int, width: int, layout: InputLayout) -> None:
    """Refuse an input size, (height, width) in pixels, that would take for ever.

    Raises:
        InputError: hundreds of times the pixels of the model's own input.

    Warns:
        UserWarning: it will take long.
    """
    own_height, own_width = layout.shape[-2:]
    times = height * width / (own_height * own_width)
    if height * width <= _LARGE or times <= _LARGE_TIMES:
        return
    message = (
        f"an input of {height} x {width} pixels has {times:,.0f} times as many patches as the model's own of "
        f"{own_height} x {own_width}, and attention takes up to {times**2:,.0f} times as long"
    )
    if height * width > _TOO_LARGE and times > _TOO_LARGE_TIMES:
        raise InputError(f"{message}; give a smaller size")
    warn(message)


def check_values(batch: Tensor, what: str, of_pixels: bool, first: int = 0) -> None:
    """Name the first of a batch's inputs with NaN, infinite or absurd values.

    Args:
        batch: (inputs, ...), floating.
        what: they are, for messages: "input" -> "input 3".
        of_pixels: whether pixels that are not normalised can be told by their values.
        first: number of the first one.

    Raises:
        InputError: NaN, infinite or far too large values.

    Warns:
        UserWarning: values that look like pixels of 8 bits.
    """
    # NaN becomes both minimum and maximum, so one pass without a temporary tensor finds it
    low, high = (float(end) for end in batch.aminmax())
    if low > -_FAR and high < _FAR:
        if of_pixels and low >= 0 and _PIXELS < high <= 255 and batch.shape[-3] == 3:
            warn(
                f"the {what} has values up to {high:g}, as pixels of 8 bits have them: models want them normalised, "
                "unless they do that themselves"
            )
        return
    for index, row in enumerate(batch, first):
        low, high = (float(end) for end in row.aminmax())
        if low > -_FAR and high < _FAR:
            continue
        if not bool(torch.isfinite(row).all()):
            raise InputError(f"{what} {index} holds NaN or infinite values; check your preprocessing")
        raise InputError(
            f"{what} {index} is far out of range: its values go from {low:.3g} to {high:.3g}; check your preprocessing"
        )


def is_usable(tensor: Tensor) -> bool:
    """Whether it is a dense float tensor with data, of a type that models compute in."""
    return (
        tensor.layout == torch.strided
        and tensor.dtype in _DTYPES
        and not tensor.is_quantized
        and tensor.device.type != "meta"
    )


def kind(tensor: Tensor) -> str:
    """A tensor for messages: its shape and type, and what is odd about it."""
    odd = [] if tensor.layout == torch.strided else [str(tensor.layout).removeprefix("torch.")]
    odd += ["without data (meta)"] if tensor.device.type == "meta" else []
    return " ".join([str(tuple(tensor.shape)), str(tensor.dtype), *odd])


def check_unfitted(size: int | Sequence[int] | None, fit: str, value_range: object = None) -> None:
    """Raise ``InputError`` for arguments that are for images only."""
    if size is not None or fit != "model":
        raise InputError("size and fit are for images; resize tensor input yourself")
    if value_range is not None:
        raise InputError("value_range is for images; scale tensor input yourself")
