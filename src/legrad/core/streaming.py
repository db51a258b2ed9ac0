"""The streaming pass: one forward, the layers' scores differentiated as their blocks finish."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from legrad import relevance
from legrad.core import attention, hooks
from legrad.core.closed_form import Scratch
from legrad.core.planning import Shortcuts
from legrad.core.readout import Reader, TokenSpan
from legrad.core.routes import FinishedBlock, relevance_at_pooler, relevance_by_autograd, relevance_closed_form
from legrad.core.score import ResolvedTarget
from legrad.core.truth import at_least_float32, check_calls, check_same_output, final_answer, native_feature
from legrad.models.anatomy import ViTAnatomy

# So many layers are worked off together, if they have no more tokens than that: the read-outs and poolers of a few
# pictures take their time in the weights and in Python, not in the numbers.
_LAYERS_TOGETHER, _TOKENS_TOGETHER = 4, 2000


@dataclass(frozen=True)
class Explained:
    """What one pass finds, on the CPU, float32 or float64.

    Attributes:
        relevance: (images, targets, layers, *grid); with heads in front of the grid if the reduction kept them apart.
        values: the model's own scores, (images, targets).
        scores: the targets; those that waited for the model's answer are known now.
    """

    relevance: Tensor
    values: Tensor
    scores: list[ResolvedTarget]


def explain_batch(
    anatomy: ViTAnatomy,
    batch: Tensor,
    scores: Sequence[ResolvedTarget],
    layers: Sequence[int],
    readout: str,
    plan: Shortcuts | None = None,
    defer: bool = False,
    numbers: int | None = None,
    reduction: relevance.Reduction = relevance.key_relevance,
) -> Explained:
    """Relevance of every layer, and the model's own scores, from one forward pass.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.
        scores: the targets.
        layers: ascending block indices.
        readout: a key of ``anatomy.readouts``.
        plan: closed forms to use; default autograd everywhere.
        defer: where targets depend on the model's answer, keep what all layers need until it is there, instead of
            running the model twice.
        numbers: most numbers per activation that a chunk inside a layer holds; default a good size for the device.
        reduction: of gradients and values to keys; another one than the formula goes without closed forms.

    Raises:
        TruthCheckError: an attention did not fire as declared, or the native read-out is not the model's output.
    """
    plan = plan or Shortcuts()
    reader = Reader(anatomy, anatomy.readouts[readout])
    tails = plan.tails if reduction is relevance.key_relevance else {}
    known = {layer: tail for layer, tail in tails.items() if layer in layers and tail.fits(anatomy.blocks[layer])}
    # a float64 model is after exactness, and other company rounds differently
    together = 1 if batch.dtype == torch.float64 else _LAYERS_TOGETHER
    waiting = any(score.needs_answer for score in scores)
    if waiting and not defer:
        answer = final_answer(anatomy, anatomy.run(batch))
        scores, waiting = [score.with_answer(answer) for score in scores], False
    scratch = Scratch()
    kept: list[FinishedBlock] = []
    graphs: list[FinishedBlock] = []
    found: dict[int, Tensor] = {}

    def differentiate() -> None:
        while graphs:
            one = graphs.pop()
            found[one.layer] = relevance_by_autograd(anatomy, reader, one, scores, reduction).cpu()

    def explain() -> None:
        """Work off what was kept."""
        if anatomy.route == "pooler":
            results = relevance_at_pooler(anatomy, reader, kept, scores, reduction)
        else:
            if readout not in plan.readings:
                plan.readings[readout] = reader.find_tokens_read(at_least_float32(kept[0].tokens[:1]))
            results = relevance_closed_form(
                anatomy, reader, plan.readings[readout], known, kept, scores, scratch, numbers
            )
        found.update((one.layer, result.cpu()) for one, result in zip(kept, results, strict=True))
        kept.clear()

    def visit(layer: int, output: Any, calls: list[attention.AttentionCall]) -> bool:
        one = FinishedBlock(layer, anatomy.to_tokens(output), calls)
        if anatomy.route == "self-attention":
            check_calls(anatomy, calls, f"block {layer} ({type(anatomy.blocks[layer]).__name__})")
            if layer not in known:
                graphs.append(one)
                if not waiting:
                    differentiate()
                return waiting
        kept.append(one)
        tokens = math.prod(one.tokens.shape[:2])
        if not waiting and len(kept) >= min(together, _TOKENS_TOGETHER // tokens):
            explain()
        return bool(kept)

    final, last = hooks.stream(
        lambda: anatomy.run(batch),
        anatomy.blocks,
        layers,
        visit,
        tap=anatomy.attention if anatomy.route == "self-attention" else None,
        watched={layer: tail.watched(anatomy.blocks[layer]) for layer, tail in known.items()},
    )
    native = native_feature(anatomy, anatomy.to_tokens(last))
    check_same_output(native, at_least_float32(final), "the native read-out of the last block's tokens", batch.dtype)
    answer = final_answer(anatomy, final)
    original, scores = scores, [score.with_answer(answer) for score in scores]
    with torch.enable_grad():
        differentiate()
        if kept:
            explain()
    seen = plan.readings.get(readout)
    if (
        seen is not None
        and seen.mean
        and not reader.depends_on_mean_only(seen, at_least_float32(anatomy.to_tokens(last)))
    ):
        # the read-out changed its ways
        plan.readings[readout] = TokenSpan(None)
        return explain_batch(anatomy, batch, original, layers, readout, plan, defer, numbers, reduction)
    values = torch.stack([one(answer) for one in scores], 1).cpu()
    return Explained(torch.stack([found[layer] for layer in layers], 2), values, scores)
