"""What is shown of an input that is a tensor: images of 8 bits, whatever its channels are."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from legrad import relevance
from legrad.errors import InputError
from legrad.inputs import geometry, images


def of_tensor(batch: Tensor, scale: tuple[Tensor, Tensor] | None) -> Any:
    """Normalised input (batch, ..., channels, H, W) as images (batch, ..., H, W, 3) uint8.

    Three channels are undone by mean and std. Otherwise what the channels mean is not known: one or two become grey
    (their mean), the first three of more a false-colour image, stretched from its darkest to its brightest value.

    Args:
        batch: float.
        scale: mean and std, (channels,) each; None if not known.
    """
    pixels = batch.float()
    channels = pixels.shape[-3]
    if scale is not None and len(scale[0]) == channels and channels in (1, 3):
        mean, std = (part.to(pixels)[:, None, None] for part in scale)
        pixels = mean.addcmul(pixels, std)
    else:
        if channels <= 3:  # three without mean and std may be anything
            pixels = pixels.mean(-3, keepdim=True)
        pixels = relevance.min_max(pixels[..., :3, :, :], pixels.ndim - 1)
    pixels = pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])
    # permute to channels-last before the cast: strided byte copies are slow
    return pixels.clamp(0, 1).mul(255).round_().movedim(-3, -1).contiguous().byte().cpu().numpy()


def with_view(placement: geometry.Placement, view: Any) -> tuple[geometry.Placement, Any]:
    """Another image of the same scene in place of the original, and where the model's input lies in it.

    Args:
        placement: of the model's input in the original.
        view: whatever ``images.read`` takes, of any size; it spans what the original spans.

    Raises:
        InputError: an image that cannot be read.
    """
    pixels = np.asarray(images.read(view))
    return of_size(placement, pixels.shape), pixels


def of_size(placement: geometry.Placement, shape: tuple[int, ...]) -> geometry.Placement:
    """Where the model's input lies in the original once that has another size: (height, width, ...)."""
    size = (shape[0], shape[1])
    factors = [old / new for old, new in zip(placement.original, size, strict=True)]
    scale = (placement.scale[0] * factors[0], placement.scale[1] * factors[1])
    return replace(placement, original=size, scale=scale)


def check_views(count: int, views: Any, video: bool) -> None:
    """Raise ``InputError`` unless there is a view for each of ``count`` inputs, which are images."""
    if video:
        raise InputError("views are for images; videos and sounds are shown as they are")
    if not isinstance(views, list | tuple | np.ndarray) or len(views) != count:
        what = len(views) if isinstance(views, list | tuple | np.ndarray) else type(views).__name__
        raise InputError(f"with_views takes a list with one image for each of {count} inputs, got {what}")
