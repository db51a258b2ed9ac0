"""Which blocks are explained."""

from collections.abc import Sequence

from legrad.checks import brief, whole_number
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
    count = whole_number(layers)
    if count is not None:
        if not 1 <= count <= depth:
            raise InputError(f"layers={count} but the model has {depth} blocks; {hint}")
        return list(range(depth - count, depth))
    try:
        numbers = [whole_number(layer) for layer in layers]  # type: ignore[union-attr] # no int, checked
    except TypeError as error:
        raise InputError(f"layers={brief(layers)}; {hint}") from error
    if not numbers:
        raise InputError(f"layers is empty; {hint}")
    indices = [number for number in numbers if number is not None]
    if len(indices) < len(numbers):
        raise InputError(f"layers={brief(layers)}; {hint}")
    outside = [index for index in indices if not -depth <= index < depth]
    if outside:
        raise InputError(f"layer {outside[0]} is outside the model's {depth} blocks; {hint}")
    resolved = sorted(index % depth for index in indices)
    if len(set(resolved)) < len(resolved):
        raise InputError(f"layers={brief(indices)} names a block twice; {hint}")
    return resolved
