"""LeGrad from some attention heads, or head by head. ``legrad.heads`` is the way in for users."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from legrad import relevance
from legrad.checks import brief, whole_number
from legrad.errors import InputError
from legrad.methods.ablation import legrad_with
from legrad.methods.attention import num_heads
from legrad.methods.call import MethodInput
from legrad.methods.method import Method
from legrad.methods.registry import METHODS

__all__ = ["CHOICES", "EVERY_HEAD", "num_heads", "of_heads"]

CHOICES = ("strongest", "weakest", "stronger-half", "weaker-half")


def of_heads(heads: int | Sequence[int] | str) -> Method:
    """LeGrad from some heads of each layer only, for ``explain(..., method=of_heads([0, 3]))``.

    Args:
        heads: numbers from 0, the same in every layer; or, selected for every image, target and layer by a head's
            share of the relevance: "strongest", "weakest" (one head), "stronger-half" or "weaker-half".

    Returns:
        A method with the arguments of "legrad", whose maps are the mean over these heads.

    Raises:
        InputError: no such choice, no head at all, or one named twice; when it is used, a number that is too large.
    """
    choice = _checked(heads)
    name = choice if isinstance(choice, str) else "+".join(map(str, choice))
    return replace(
        METHODS["legrad"],
        name=f"legrad:heads={name}",
        summary=f"LeGrad from some heads of each layer: {name}",
        function=lambda call: _mean_over(legrad_with(call, relevance.head_relevance), choice),
        cost="as legrad, by autograd",
    )


def _every_head(call: MethodInput) -> Tensor:
    """All heads as further layers, for the mean over both is LeGrad's map."""
    return legrad_with(call, relevance.head_relevance).flatten(2, 3)


EVERY_HEAD = replace(METHODS["legrad"], name="legrad, head by head", function=_every_head)


def _checked(heads: int | Sequence[int] | str) -> str | tuple[int, ...]:
    hint = f"give numbers from 0, such as [0, 3], or one of {', '.join(map(repr, CHOICES))}"
    if isinstance(heads, str):
        if heads not in CHOICES:
            raise InputError(f"heads={heads!r}; {hint}")
        return heads
    if whole_number(heads) is not None:
        heads = [heads]  # type: ignore[list-item] # a whole number, maybe numpy's
    try:
        numbers = [whole_number(head) for head in heads]  # type: ignore[union-attr] # no int
    except TypeError as error:
        raise InputError(f"heads={brief(heads)}; {hint}") from error
    indices = tuple(number for number in numbers if number is not None and number >= 0)
    if not numbers or len(indices) < len(numbers):
        raise InputError(f"heads={brief(heads)}; {hint}")
    if len(set(indices)) < len(indices):
        raise InputError(f"heads={brief(heads)} names a head twice; {hint}")
    return indices


def _mean_over(maps: Tensor, choice: str | tuple[int, ...]) -> Tensor:
    """Mean over some heads, (images, targets, layers, heads, *grid) -> (images, targets, layers, *grid)."""
    count = maps.shape[3]
    if not isinstance(choice, str):
        if max(choice) >= count:
            raise InputError(f"no head {max(choice)}: the explained attention has {count} heads, 0 to {count - 1}")
        return maps[:, :, :, list(choice)].mean(3)
    ranked = maps.flatten(4).sum(-1).argsort(-1, descending=choice.startswith("strong"))
    best = ranked[..., : max(1, count // 2) if choice.endswith("half") else 1]
    return maps.flatten(4).take_along_dim(best[..., None], 3).mean(3).unflatten(-1, maps.shape[4:])
