"""LeGrad from some attention heads, or head by head. ``legrad.heads`` is the way in for users."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from legrad import relevance
from legrad.core import state
from legrad.core.positions import random_input
from legrad.core.score import Function
from legrad.core.streaming import explain_batch
from legrad.core.undo import guarded
from legrad.errors import InputError
from legrad.methods.ablation import legrad_with
from legrad.methods.call import MethodInput
from legrad.methods.method import Method
from legrad.methods.registry import METHODS
from legrad.models.anatomy import ViTAnatomy

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


@guarded
def num_heads(anatomy: ViTAnatomy) -> int:
    """How many heads the explained attention has, counted in a forward pass of a random image.

    Raises:
        UnsupportedModelError: they are folded into the batch.
    """
    batch, last_layer = random_input(anatomy), [len(anatomy.blocks) - 1]
    score = Function("", lambda feature: feature[:, 0])
    with (
        torch.no_grad(),
        state.exclusive(anatomy.blocks[0]),
        state.evaluation_mode(anatomy.tower, anatomy.call_settings),
    ):
        explained = explain_batch(
            anatomy, batch, [score], last_layer, str(anatomy.default_readout), reduction=relevance.head_relevance
        )
    return explained.relevance.shape[3]


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
    numbers = (heads,) if isinstance(heads, int) else tuple(heads)
    if not numbers or any(not isinstance(head, int) or isinstance(head, bool) or head < 0 for head in numbers):
        raise InputError(f"heads={heads!r}; {hint}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"heads={heads!r} names a head twice; {hint}")
    return numbers


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
