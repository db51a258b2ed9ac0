"""One layer's relevance, from its block's tokens and attention: in closed form, by autograd, or through a pooler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from legrad import relevance
from legrad.core import attention, closed_form, hooks, readout
from legrad.core.closed_form import PostAttention, Scratch
from legrad.core.readout import Reader, TokenSpan
from legrad.core.score import ResolvedTarget
from legrad.core.truth import at_least_float32, check_calls
from legrad.errors import TruthCheckError, UnsupportedModelError
from legrad.models.anatomy import ViTAnatomy

# Read-outs (pictures x targets x layers) that are differentiated in one go.
_TOGETHER = 4096
# Numbers that one chunk of pictures x targets holds per activation: on a processor they stay in its cache.
_CHUNK_NUMBERS = {False: 1 << 23, True: 1 << 28}


@dataclass(frozen=True)
class FinishedBlock:
    """A block that has run.

    Attributes:
        layer: its index.
        tokens: its result, (batch, tokens, dim).
        calls: the attentions inside it, none in the pooler route.
    """

    layer: int
    tokens: Tensor
    calls: list[attention.AttentionCall]


def relevance_closed_form(
    anatomy: ViTAnatomy,
    reader: Reader,
    seen: TokenSpan,
    known: Mapping[int, PostAttention],
    visited: Sequence[FinishedBlock],
    scores: Sequence[ResolvedTarget],
    scratch: Scratch,
    numbers: int | None = None,
) -> list[Tensor]:
    """Self-attention route through the closed forms of the blocks' tails, (batch, targets, *grid) each.

    ``numbers`` limits what one chunk of pictures x targets holds per activation.
    """
    images = len(visited[0].tokens)
    above: list[Tensor | None] = [None] * len(visited)
    if seen.rows is not None and images * len(visited) * len(scores) <= _TOGETHER:
        # the read-out of all layers at once: alone they are too small to be fast
        means = torch.cat([seen.of(at_least_float32(one.tokens)).mean(1) for one in visited])
        gradients = reader.grad_at_mean(means, scores, len(visited)) / (seen.rows[1] - seen.rows[0])
        above = list(gradients[:, :, None].split(images))
    return [
        _closed_layer(anatomy, reader, seen, known[one.layer], one, scores, g, scratch, numbers)
        for one, g in zip(visited, above, strict=True)
    ]


def _closed_layer(
    anatomy: ViTAnatomy,
    reader: Reader,
    seen: TokenSpan,
    tail: PostAttention,
    visited: FinishedBlock,
    scores: Sequence[ResolvedTarget],
    above: Tensor | None,
    scratch: Scratch,
    numbers: int | None,
) -> Tensor:
    """Pictures x targets are worked off in chunks; ``above`` is the gradient at the tokens if it is there already."""
    tokens, call = visited.tokens, visited.calls[0]
    images, count = tokens.shape[:2]
    block = anatomy.blocks[visited.layer]
    entered, *hidden = closed_form.activations(tail, block, call)
    assert call.value is not None
    heads = call.value.shape[1]
    rows = seen.of(tokens).shape[1]
    with torch.no_grad():
        parts = closed_form.weights(tail, block, call)
        width = parts.outer.shape[1]
        # folding costs as much as ``4 * dim`` tokens on the way back, and saves a fifth of each but the first
        folded = closed_form.fold(parts) if tail.foldable and (len(scores) - 1) * images * rows > width else None
        usual = _CHUNK_NUMBERS[tokens.device.type == "cuda"]
        numbers = usual if numbers is None else min(usual, numbers)
        targets = max(1, min(len(scores), numbers // (rows * width)))
        pictures = max(1, numbers // (targets * rows * width))
        result = []
        for first in range(0, images, pictures):
            some = slice(first, first + pictures)
            value, keep = call.value[some], _part(call.keep, some, seen.rows or (0, count))
            features = [seen.of(h[some]) for h in hidden]
            state = closed_form.State(parts, folded, seen.of(entered[some]), features, scratch)
            maps = []
            for start in range(0, len(scores), targets):
                asked = slice(start, start + targets)
                if above is None:
                    here = at_least_float32(tokens[some])
                    own = [score.rows(range(first, first + len(here))) for score in scores[asked]]
                    g = reader.grad_at_tokens(seen, here, own)
                else:
                    g = above[some, asked]
                g, undo = scaled_for_half(g, tokens.dtype, 2)
                gradient = state.head_gradient(g).unflatten(-1, (heads, -1)).transpose(2, 3)
                maps.append(relevance.key_relevance(gradient, value, keep, count) / undo.flatten(2))
            result.append(torch.cat(maps, 1))
        keys = torch.cat(result)
    return anatomy.on_grid(keys.flatten(0, 1), 0, images * len(scores)).unflatten(0, (images, -1))


def _part(keep: Tensor | None, pictures: slice, rows: tuple[int, int]) -> Tensor | None:
    """A mask that may be shared by pictures or queries, for some of them."""
    if keep is None:
        return None
    keep = keep[pictures] if keep.shape[0] > 1 else keep
    return keep[:, :, slice(*rows)] if keep.shape[2] > 1 else keep


def relevance_by_autograd(
    anatomy: ViTAnatomy,
    reader: Reader,
    visited: FinishedBlock,
    scores: Sequence[ResolvedTarget],
    reduction: relevance.Reduction = relevance.key_relevance,
) -> Tensor:
    """Self-attention route: autograd from the layer's scores to its head outputs, (batch, targets, *grid).

    ``reduction`` may be another one than the formula; if it keeps the heads apart they come in front of the grid.
    """
    tokens = visited.tokens
    leaf = at_least_float32(tokens.detach()).requires_grad_()
    feature = reader(leaf)
    heads = [visited.calls[tap] for tap in anatomy.explained_attentions]
    results = []
    for score in scores:
        above, undo = scaled_for_half(readout.gradient(score(feature), leaf), tokens.dtype, 1)
        gradients = torch.autograd.grad(
            tokens, [call.output for call in heads], above, retain_graph=True, allow_unused=True
        )
        maps = []
        for tap, call, gradient in zip(anatomy.explained_attentions, heads, gradients, strict=True):
            if gradient is None:
                raise TruthCheckError(
                    f"an attention of block {visited.layer} does not reach the block's output: wrong attention or "
                    "wrong block"
                )
            maps.append(_on_grid(anatomy, _keys(call, gradient, slice(None), reduction), tap, len(tokens)))
        merged = relevance.merge_layers(maps)
        results.append(merged / undo.reshape(-1, *[1] * (merged.ndim - 1)))
    return torch.stack(results, 1)


def relevance_at_pooler(
    anatomy: ViTAnatomy,
    reader: Reader,
    visited: Sequence[FinishedBlock],
    scores: Sequence[ResolvedTarget],
    reduction: relevance.Reduction = relevance.key_relevance,
) -> list[Tensor]:
    """Pooler route: the same at the pooler's attention over the blocks' tokens, query 0 only.

    To the pooler several layers are further pictures.
    """
    images = len(visited[0].tokens)
    leaves = [at_least_float32(one.tokens.detach()) for one in visited]
    leaf = torch.cat(leaves) if len(leaves) > 1 else leaves[0]
    feature, calls = hooks.tapped(lambda: reader(leaf), anatomy.attention)
    check_calls(anatomy, calls, f"the attentional pooler on block {visited[0].layer}")
    heads = [calls[tap] for tap in anatomy.explained_attentions]
    gradients = readout.gradients(scores, feature, [call.output for call in heads], len(visited))
    results = []
    for target in range(len(scores)):
        maps = [
            _on_grid(anatomy, _keys(call, gradient[target], slice(0, 1), reduction), tap, len(leaf))
            for tap, call, gradient in zip(anatomy.explained_attentions, heads, gradients, strict=True)
        ]
        results.append(relevance.merge_layers(maps))
    return list(torch.stack(results, 1).split(images))


def _on_grid(anatomy: ViTAnatomy, keys: Tensor, tap: int, batch: int) -> Tensor:
    """Keys (batch', keys), or (batch', heads, keys), as the anatomy lays them."""
    if keys.ndim == 2:
        return anatomy.on_grid(keys, tap, batch)
    return torch.stack([anatomy.on_grid(one, tap, batch) for one in keys.unbind(1)], 1)


def _keys(call: attention.AttentionCall, gradient: Tensor, queries: slice, reduction: relevance.Reduction) -> Tensor:
    """The reduction of one attention to its keys, (batch, keys) or (batch, heads, keys); heads may be folded into the
    batch."""
    value, keep = call.value, call.keep
    folded = gradient.ndim == 3
    if folded:
        gradient = gradient[:, None]
        value, keep = (None if t is None else t[:, None] for t in (value, keep))
    keep = None if keep is None else keep[:, :, queries]
    keys = reduction(gradient[:, None, :, queries], value, keep)[:, 0]
    if folded and keys.ndim == 3:
        raise UnsupportedModelError(
            "this model's attention has its heads folded into the batch: they cannot be told apart"
        )
    return keys


def scaled_for_half(gradient: Tensor, dtype: torch.dtype, apart: int) -> tuple[Tensor, Tensor]:
    """The gradient in the model's dtype, and what its relevance has to be divided by.

    For half precision each picture's (and target's) gradient is brought near 1 by a power of two, which ReLU lets us
    undo exactly afterwards.

    Args:
        gradient: at least float32.
        dtype: of the model.
        apart: leading dimensions that are shifted apart from each other.
    """
    if gradient.dtype == dtype:
        return gradient, gradient.new_ones([1] * gradient.ndim)
    largest = gradient.abs().flatten(apart).amax(-1)
    exponent = torch.where(largest > 0, -largest.clamp(min=1e-38).log2().floor(), 0)
    shift = exponent.exp2().reshape(*largest.shape, *[1] * (gradient.ndim - apart))
    return (gradient * shift).to(dtype), shift
