"""The streaming pass: one forward, the layers' scores differentiated as their blocks finish."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad import capture, relevance
from legrad.anatomy import Readout, ViTAnatomy
from legrad.errors import InputError, TruthCheckError
from legrad.targets import Score
from legrad.truth import as_float, check_calls, native_feature, same_output


def explain_batch(
    anatomy: ViTAnatomy, batch: Tensor, scores: Sequence[Score], layers: Sequence[int], readout: str
) -> tuple[Tensor, Tensor]:
    """Relevance of every layer, and the model's own scores, from one forward pass.

    Call it inside ``capture.plain``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.
        scores: the targets.
        layers: ascending block indices.
        readout: a key of ``anatomy.readouts``.

    Returns:
        (images, targets, layers, *grid) and (images, targets), detached, on the CPU, float32 or float64.

    Raises:
        TruthCheckError: an attention did not fire as declared, or the native read-out is not the model's output.
    """
    found: dict[int, Tensor] = {}

    def score(feature: Tensor) -> Tensor:
        return torch.stack([one(feature) for one in scores], 1)

    def visit(layer: int, output: Any, calls: list[capture.AttentionCall]) -> None:
        tokens = anatomy.to_tokens(output)
        explain = pooler_layer if anatomy.route == "pooler" else block_layer
        found[layer] = explain(anatomy, anatomy.readouts[readout], tokens, calls, score, layer).cpu()

    in_blocks = anatomy.attention if anatomy.route == "self-attention" else None
    final, last = capture.stream(lambda: anatomy.run(batch), anatomy.blocks, layers, visit, tap=in_blocks)
    final = as_float(final)
    native = native_feature(anatomy, anatomy.to_tokens(last))
    same_output(native, final, "the native read-out of the last block's tokens", batch.dtype)
    if anatomy.output != "logits":
        final = F.normalize(final, dim=-1)
    return torch.stack([found[layer] for layer in layers], 2), score(final).cpu()


def block_layer(
    anatomy: ViTAnatomy,
    readout: Readout,
    tokens: Tensor,
    calls: list[capture.AttentionCall],
    score: Callable[[Tensor], Tensor],
    layer: int,
) -> Tensor:
    """Self-attention route: gradients of the layer's scores at its head outputs, (batch, targets, *grid)."""
    check_calls(anatomy, calls, f"block {layer} ({type(anatomy.blocks[layer]).__name__})")
    leaf = as_float(tokens.detach()).requires_grad_()
    scores = score(capture.in_float(readout, anatomy.tower, anatomy.blocks, leaf))
    heads = [calls[tap] for tap in anatomy.taps]
    results = []
    for target in range(scores.shape[1]):
        above = _gradient(scores[:, target], leaf, layer, target)
        # half precision: bring the gradient near 1 by a power of two, which ReLU lets us undo exactly afterwards
        shift = _power_of_two(above) if tokens.dtype != leaf.dtype else torch.ones(1, 1, 1, device=leaf.device)
        undo = shift.reshape(-1, *[1] * len(anatomy.grid))
        gradients = torch.autograd.grad(
            tokens,
            [call.output for call in heads],
            (above * shift).to(tokens.dtype),
            retain_graph=True,
            allow_unused=True,
        )
        maps = []
        for tap, call, gradient in zip(anatomy.taps, heads, gradients, strict=True):
            if gradient is None:
                raise TruthCheckError(
                    f"an attention of block {layer} does not reach the block's output: wrong attention or wrong block"
                )
            maps.append(anatomy.on_grid(_keys(call, gradient, slice(None)), tap, len(tokens)))
        results.append(relevance.merge_layers(maps) / undo)
    return torch.stack(results, 1)


def pooler_layer(
    anatomy: ViTAnatomy,
    readout: Readout,
    tokens: Tensor,
    calls: list[capture.AttentionCall],
    score: Callable[[Tensor], Tensor],
    layer: int,
) -> Tensor:
    """Pooler route: the same at the pooler's attention over the block's tokens, query 0 only."""
    leaf = as_float(tokens.detach())
    feature, calls = capture.tapped(
        lambda: capture.in_float(readout, anatomy.tower, anatomy.blocks, leaf), anatomy.attention
    )
    check_calls(anatomy, calls, f"the attentional pooler on block {layer}")
    scores = score(feature)
    results = []
    for target in range(scores.shape[1]):
        maps = []
        for tap in anatomy.taps:
            gradient = _gradient(scores[:, target], calls[tap].output, layer, target)
            maps.append(anatomy.on_grid(_keys(calls[tap], gradient, slice(0, 1)), tap, len(tokens)))
        results.append(relevance.merge_layers(maps))
    return torch.stack(results, 1)


def _keys(call: capture.AttentionCall, gradient: Tensor, queries: slice) -> Tensor:
    """Relevance of the keys of one attention, (batch, keys); heads may be folded into the batch."""
    value, keep = call.value, call.keep
    if gradient.ndim == 3:
        gradient = gradient[:, None]
        value, keep = (None if t is None else t[:, None] for t in (value, keep))
    keep = None if keep is None else keep[:, :, queries]
    return relevance.key_relevance(gradient[:, :, queries], value, keep)


def _gradient(score: Tensor, at: Tensor, layer: int, target: int) -> Tensor:
    """d sum(score) / d at; rows of a batch are independent, so the sum keeps them apart."""
    if not score.requires_grad:
        raise InputError(
            f"target {target}: the callable's result does not depend on the feature (was it detached, or computed "
            "without gradients?)"
        )
    (gradient,) = torch.autograd.grad(score.sum(), at, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise TruthCheckError(f"the score of target {target} does not depend on layer {layer}'s attention")
    return gradient


def _power_of_two(gradient: Tensor) -> Tensor:
    """(batch, 1, ...) powers of two that bring each picture's largest gradient to about 1; 1 for a zero gradient."""
    largest = gradient.abs().flatten(1).amax(1)
    exponent = torch.where(largest > 0, -largest.clamp(min=1e-38).log2().floor(), 0)
    return exponent.exp2().reshape(-1, *[1] * (gradient.ndim - 1))
