"""The same weights for another input size: copies that share every parameter, and resampled position embeddings."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad.errors import InputError
from legrad.inputs.geometry import Size


def sharing_copy(model: nn.Module) -> Any:
    """A copy of the module tree that shares every parameter with the original; buffers are copied.

    Hooks are shared too, and tensors that modules keep as attributes, such as saved activations.

    Raises:
        InputError: a module holds something that cannot be copied.
    """
    shared: list[Any] = list(model.parameters())
    for module in model.modules():
        shared += [value for value in vars(module).values() if isinstance(value, Tensor)]
        shared += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    try:
        return copy.deepcopy(model, {id(value): value for value in shared})
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{type(model).__name__} cannot be copied for another input size: {error}") from error


def patch_counts(size: Size, patch: Size) -> Size:
    """(rows, cols) of patches side by side that fit into (height, width)."""
    return size[0] // patch[0], size[1] // patch[1]


def resampled(embedding: Tensor, old: Size, new: Size, prefix: int, align_corners: bool = False) -> Tensor:
    """Position embeddings for another grid: bicubic, antialiased unless the corners are aligned.

    Args:
        embedding: (prefix + rows * cols, dim), patches row-major.
        old: (rows, cols) of the embedding.
        new: (rows, cols) of the result.
        prefix: leading entries that belong to no patch; they are kept.
        align_corners: see ``F.interpolate``.

    Returns:
        (prefix + rows * cols, dim) for the new grid, same dtype.
    """
    head, patches = embedding[:prefix], embedding[prefix:]
    lines = patches.to(torch.promote_types(patches.dtype, torch.float32)).T.reshape(1, -1, *old)
    lines = F.interpolate(lines, new, mode="bicubic", align_corners=align_corners, antialias=not align_corners)
    return torch.cat([head, lines[0].flatten(1).T.to(embedding.dtype)])
