"""One layer's relevance, from its block's tokens and attention: in closed form, by autograd, or through a pooler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from legrad import relevance
from legrad.core import attention, closed_form, hooks, readout
from legrad.core.closed_form import Folded, PostAttention, Scratch, TailDerivative, TailWeights
from legrad.core.readout import Reader, TokenSpan, scaled_for_half
from legrad.core.score import ResolvedTarget
from legrad.core.truth import at_least_float32, check_calls, check_mismatch, coarsest
from legrad.errors import TruthCheckError, UnsupportedModelError
from legrad.models.anatomy import ViTAnatomy

# Read-outs (images x targets x layers) that are differentiated in one go.
_TOGETHER = 4096
# Elements that one chunk of images x targets holds per activation: on the CPU they stay in its cache; more on a GPU
# (True).
_CHUNK_NUMEL = {False: 1 << 23, True: 1 << 28}


@dataclass(frozen=True)
class LayerPass:
    """What all layers of one pass share.

    Attributes:
        anatomy: for the input's size.
        reader: of the read-out whose scores are differentiated.
        targets: what is scored.
        reduction: of gradients and values to keys; in closed form one that does not keep the heads apart.
        tails: layer -> its tail in closed form.
        folds: layer -> whether its folded form holds, filled in.
        max_numel: most elements per activation that a chunk of images x targets holds; None for the device's usual.
        rows_kept: of a block's activations only the rows that the read-out depends on are there, and one more.
        verify: compare every attention of a pooler with an explicit softmax on a few queries.
        scratch: buffers that serve one layer after another.
    """

    anatomy: ViTAnatomy
    reader: Reader
    targets: Sequence[ResolvedTarget]
    reduction: relevance.Reduction = relevance.key_relevance
    tails: Mapping[int, PostAttention] = field(default_factory=dict)
    folds: dict[int, bool] = field(default_factory=dict)
    max_numel: int | None = None
    rows_kept: bool = False
    verify: bool = False
    scratch: Scratch = field(default_factory=Scratch)


@dataclass(frozen=True)
class FinishedBlock:
    """A block that has run.

    Attributes:
        layer: its index.
        tokens: its output, (batch, tokens, dim).
        calls: the attentions inside it, none in the pooler route.
    """

    layer: int
    tokens: Tensor
    calls: list[attention.AttentionCall]


def relevance_closed_form(layer_pass: LayerPass, span: TokenSpan, blocks: Sequence[FinishedBlock]) -> list[Tensor]:
    """Self-attention route through the closed forms of the blocks' tails.

    Args:
        layer_pass: with a tail for each of the blocks.
        span: the tokens that the read-out depends on.
        blocks: of equal shapes.

    Returns:
        (batch, targets, *grid) each.
    """
    images, targets = len(blocks[0].tokens), layer_pass.targets
    grads: list[Tensor | None] = [None] * len(blocks)
    if span.rows is not None and images * len(blocks) * len(targets) <= _TOGETHER:
        # the read-outs of all layers in one batch: a single one is too small to be fast
        means = torch.cat([span.select(at_least_float32(block.tokens)).mean(1) for block in blocks])
        grad_tokens = layer_pass.reader.grad_at_mean(means, targets, len(blocks)) / (span.rows[1] - span.rows[0])
        grads = list(grad_tokens[:, :, None].split(images))
    return [_layer_in_closed_form(layer_pass, span, block, grad) for block, grad in zip(blocks, grads, strict=True)]


def _layer_in_closed_form(
    layer_pass: LayerPass, span: TokenSpan, block: FinishedBlock, grad_tokens: Tensor | None
) -> Tensor:
    """One layer in chunks of images x targets, (batch, targets, *grid).

    ``grad_tokens`` is the gradient at the tokens, (batch, targets, 1 or rows, dim), if it is already computed.
    """
    anatomy, targets = layer_pass.anatomy, layer_pass.targets
    tokens, call = block.tokens, block.calls[0]
    images, count = tokens.shape[:2]
    tail, module = layer_pass.tails[block.layer], anatomy.blocks[block.layer]
    norm_input, *hidden = closed_form.activations(tail, module, call)
    assert call.value is not None
    num_heads, num_rows = call.value.shape[1], span.select(tokens).shape[1]
    with torch.no_grad():
        weights = closed_form.tail_weights(tail, module, call)
        folded = _folded_if_cheaper(tail, weights, len(targets), images * num_rows)
        if folded is not None and block.layer not in layer_pass.folds:
            few = norm_input[:1, :2], [h[:1, :2] for h in hidden]
            layer_pass.folds[block.layer] = closed_form.fold_holds(weights, folded, *few)
        if not layer_pass.folds.get(block.layer):
            folded = None
        images_per_chunk, targets_per_chunk = _chunk_sizes(layer_pass, tokens, num_rows * weights.outer.shape[1])
        chunks = []
        for first in range(0, images, images_per_chunk):
            chunk = slice(first, first + images_per_chunk)
            rows = span.rows or (0, count)
            value, keep = call.value[chunk], _mask_of(call.keep, chunk, rows)
            output = call.output[chunk, :, slice(*rows)]
            read_input, *features = (
                part[chunk, :num_rows] if layer_pass.rows_kept else span.select(part[chunk])
                for part in (norm_input, *hidden)
            )
            derivative = TailDerivative(weights, folded, read_input, features, layer_pass.scratch)
            maps = []
            for first_target in range(0, len(targets), targets_per_chunk):
                target_chunk = slice(first_target, first_target + targets_per_chunk)
                if grad_tokens is None:
                    chunk_tokens = at_least_float32(tokens[chunk])
                    indices = range(first, first + len(chunk_tokens))
                    chunk_targets = [target.rows(indices) for target in targets[target_chunk]]
                    grad = layer_pass.reader.grad_at_tokens(span, chunk_tokens, chunk_targets)
                else:
                    grad = grad_tokens[chunk, target_chunk]
                grad, scale = scaled_for_half(grad, tokens.dtype, 2)
                head_grad = derivative.head_gradient(grad).unflatten(-1, (num_heads, -1)).transpose(2, 3)
                maps.append(layer_pass.reduction(head_grad, value, keep, count, output) / scale.flatten(2))
            chunks.append(torch.cat(maps, 1))
        keys = torch.cat(chunks)
    return anatomy.on_grid(keys.flatten(0, 1), 0, images * len(targets)).unflatten(0, (images, -1))


def _folded_if_cheaper(tail: PostAttention, weights: TailWeights, num_targets: int, num_rows: int) -> Folded | None:
    """Folding costs as much as ``4 * dim`` tokens on the way back, and saves a fifth of each target's but the first."""
    cheaper = tail.foldable and (num_targets - 1) * num_rows > weights.outer.shape[1]
    return closed_form.fold(weights) if cheaper else None


def _chunk_sizes(layer_pass: LayerPass, tokens: Tensor, numel: int) -> tuple[int, int]:
    """Images and targets per chunk, if one of each takes ``numel`` elements per activation."""
    max_numel = _CHUNK_NUMEL[tokens.device.type == "cuda"]
    if layer_pass.max_numel is not None:
        max_numel = min(max_numel, layer_pass.max_numel)
    num_targets = max(1, min(len(layer_pass.targets), max_numel // numel))
    return max(1, max_numel // (num_targets * numel)), num_targets


def _mask_of(keep: Tensor | None, images: slice, rows: tuple[int, int]) -> Tensor | None:
    """A mask for some images and rows; it may be shared by all images or all rows."""
    if keep is None:
        return None
    keep = keep[images] if keep.shape[0] > 1 else keep
    return keep[:, :, slice(*rows)] if keep.shape[2] > 1 else keep


def relevance_by_autograd(layer_pass: LayerPass, block: FinishedBlock) -> Tensor:
    """Self-attention route: autograd from the layer's scores to its head outputs, (batch, targets, *grid).

    If the reduction keeps the heads apart they come before the grid.
    """
    anatomy, tokens = layer_pass.anatomy, block.tokens
    leaf = at_least_float32(tokens.detach()).requires_grad_()
    feature = layer_pass.reader(leaf)
    calls = [block.calls[tap] for tap in anatomy.explained_attentions]
    precision = coarsest(tokens.dtype, *(call.output.dtype for call in calls))
    results = []
    for target in layer_pass.targets:
        grad_leaf = readout.gradient(target(feature), leaf)
        grad_tokens, scale = scaled_for_half(grad_leaf, tokens.dtype, 1, precision)
        head_grads = torch.autograd.grad(
            tokens, [call.output for call in calls], grad_tokens, retain_graph=True, allow_unused=True
        )
        maps = []
        for tap, call, head_grad in zip(anatomy.explained_attentions, calls, head_grads, strict=True):
            if head_grad is None:
                raise TruthCheckError(
                    f"an attention of block {block.layer} does not reach the block's output: wrong attention or "
                    "wrong block"
                )
            maps.append(_on_grid(anatomy, _keys(call, head_grad, slice(None), layer_pass.reduction), tap, len(tokens)))
        mean_map = relevance.merge_layers(maps)
        results.append(mean_map / scale.reshape(-1, *[1] * (mean_map.ndim - 1)))
    return torch.stack(results, 1)


def relevance_at_pooler(layer_pass: LayerPass, blocks: Sequence[FinishedBlock]) -> list[Tensor]:
    """Pooler route: the same at the pooler's attention over each block's tokens, query 0 only.

    To the pooler the layers are further images of a batch.
    """
    anatomy, targets = layer_pass.anatomy, layer_pass.targets
    images = len(blocks[0].tokens)
    leaves = [at_least_float32(block.tokens.detach()) for block in blocks]
    leaf = torch.cat(leaves) if len(leaves) > 1 else leaves[0]
    feature, calls = hooks.tapped(lambda: layer_pass.reader(leaf), anatomy.attention, verify=layer_pass.verify)
    where = f"the attentional pooler on block {blocks[0].layer}"
    check_calls(anatomy, calls, where)
    if layer_pass.verify:
        check_mismatch(calls, where, blocks[0].tokens.dtype)
    calls = [calls[tap] for tap in anatomy.explained_attentions]
    head_grads = readout.gradients(targets, feature, [call.output for call in calls], len(blocks))
    results = []
    for target in range(len(targets)):
        maps = [
            _on_grid(anatomy, _keys(call, head_grad[target], slice(0, 1), layer_pass.reduction), tap, len(leaf))
            for tap, call, head_grad in zip(anatomy.explained_attentions, calls, head_grads, strict=True)
        ]
        results.append(relevance.merge_layers(maps))
    return list(torch.stack(results, 1).split(images))


def _on_grid(anatomy: ViTAnatomy, keys: Tensor, tap: int, batch: int) -> Tensor:
    """Keys (batch', keys), or (batch', heads, keys), on the grid as the anatomy's ``on_grid`` says."""
    if keys.ndim == 2:
        return anatomy.on_grid(keys, tap, batch)
    return torch.stack([anatomy.on_grid(head_keys, tap, batch) for head_keys in keys.unbind(1)], 1)


def _keys(call: attention.AttentionCall, head_grad: Tensor, queries: slice, reduction: relevance.Reduction) -> Tensor:
    """The reduction of one attention to its keys, (batch, keys) or (batch, heads, keys); heads may be folded into the
    batch."""
    value, keep, output = call.value, call.keep, call.output.detach()
    heads_in_batch = head_grad.ndim == 3
    if heads_in_batch:
        head_grad, output = head_grad[:, None], output[:, None]
        value, keep = (None if tensor is None else tensor[:, None] for tensor in (value, keep))
    if keep is not None and keep.shape[2] > 1:  # else it is shared by all queries
        keep = keep[:, :, queries]
    keys = reduction(head_grad[:, None, :, queries], value, keep, head_output=output[:, :, queries])[:, 0]
    if heads_in_batch and keys.ndim == 3:
        raise UnsupportedModelError(
            "this model's attention has its heads folded into the batch: they cannot be told apart"
        )
    return keys
