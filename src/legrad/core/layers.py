"""Which blocks are explained."""

import operator
from collections.abc import Sequence

import numpy as np

from legrad.errors import InputError


def resolve_layers(layers: int | Sequence[int] | None, depth: int) -> list[int]:
    """Ascending block indices.

    Args:
        layers: None for all, k >= 1 for the last k, or a sequence of indices (negative ones count from the end).
        depth: number of blocks.

    Raises:
        InputError: 0, a negative int, more than ``depth``, an index out of range, a duplicate, an empty sequence.
    """
    hint = f"use an int from 1 to {depth} for the last blocks, or a sequence of indices such as [-1] or [0, 3]"
    if layers is None:
        return list(range(depth))
    if isinstance(layers, bool):
        raise InputError(f"layers={layers!r}; {hint}")
    if isinstance(layers, int | np.integer):
        if not 1 <= layers <= depth:
            raise InputError(f"layers={layers} but the model has {depth} blocks; {hint}")
        return list(range(depth - int(layers), depth))
    try:
        indices = [operator.index(layer) for layer in layers]
    except TypeError as error:
        raise InputError(f"layers={layers!r}; {hint}") from error
    if not indices:
        raise InputError(f"layers is empty; {hint}")
    outside = [index for index in indices if not -depth <= index < depth]
    if outside:
        raise InputError(f"layer {outside[0]} is outside the model's {depth} blocks; {hint}")
    resolved = sorted(index % depth for index in indices)
    if len(set(resolved)) < len(resolved):
        raise InputError(f"layers={list(layers)!r} names a block twice; {hint}")
    return resolved
