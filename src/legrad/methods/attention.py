"""Methods that read attention maps, with and without their gradients."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from legrad import relevance
from legrad.core import state
from legrad.core.attention import Attention
from legrad.core.positions import random_input
from legrad.core.score import Function, NoTarget
from legrad.core.streaming import explain_batch
from legrad.core.truth import at_least_float32
from legrad.core.undo import guarded
from legrad.errors import InputError, UnsupportedModelError
from legrad.methods.call import MethodInput
from legrad.methods.catalogue import about
from legrad.methods.method import Method
from legrad.methods.whole_pass import Pass, forward, layer_maps
from legrad.models.anatomy import ViTAnatomy


def raw_attention(call: MethodInput) -> Tensor:
    """Attention from the token(s) that the head reads to the patches, mean over heads.

    Class token: its row; averaged models: mean over the patches' rows; attentional pooler: its own attention.
    """
    return layer_maps(forward(call, gradients=False), lambda a, _, patches: a.mean((1, 2)), gradients=False)


RAW_ATTENTION = Method(
    **about("raw-attention"),
    function=raw_attention,
    needs="attention",
    cost="the attention map of one layer",
    layers="last",
    per_layer=True,
    targets=False,
    label="attention",
)


def raw_attention_by_head(call: MethodInput) -> Tensor:
    """``raw_attention`` of one layer, head by head: (images, heads, 1, *grid)."""
    if len(call.layers) > 1:
        raise InputError(
            "heads of different layers have nothing to do with each other: give one layer, such as layers=[-1]"
        )
    graph = forward(call)
    heads = [score.index for score in call.scores if isinstance(score, NoTarget)]
    return torch.cat([layer_maps(graph, partial(_of_head, head), gradients=False)[:, :1] for head in heads], 1)


def _of_head(head: int, attention: Tensor, _: Tensor, patches: slice) -> Tensor:
    return attention[:, head].mean(1)


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
        result = explain_batch(
            anatomy, batch, [score], last_layer, str(anatomy.default_readout), reduction=relevance.head_relevance
        )
    return result.relevance.shape[3]


RAW_ATTENTION_BY_HEAD = replace(
    RAW_ATTENTION,
    name="raw-attention:heads=each",
    summary="one layer's attention to the patches, a map for every head",
    function=raw_attention_by_head,
    per_layer=False,
    labels=lambda anatomy: [f"head {head}" for head in range(num_heads(anatomy))],
)


def gradient_attention(call: MethodInput) -> Tensor:
    """Positive part of attention times gradient, mean over heads: one layer of CheferCAM without the rollout."""
    return layer_maps(forward(call), lambda a, g, patches: (a * g).clamp(min=0).mean((1, 2)))


GRADIENT_ATTENTION = Method(
    **about("gradient-attention"),
    function=gradient_attention,
    needs="gradients",
    cost="1 backward pass per target",
    layers="last",
    per_layer=True,
)


def attention_cam(call: MethodInput) -> Tensor:
    """Grad-CAM on the attention map: heads weighted by their mean gradient over the patches.

    The weighted rows are averaged over heads (and queries), then the positive part is taken.
    """

    def formula(attention: Tensor, gradient: Tensor, patches: slice) -> Tensor:
        weight = gradient[..., patches].mean(-1, keepdim=True)
        return (weight * attention).mean((1, 2)).clamp(min=0)

    return layer_maps(forward(call), formula)


ATTENTION_CAM = Method(
    **about("attentioncam"),
    function=attention_cam,
    needs="gradients",
    cost="1 backward pass per target",
    layers="last",
    per_layer=True,
)


def rollout(call: MethodInput) -> Tensor:
    """Product over the layers of (mean attention over heads + identity) / 2, row(s) that the head reads.

    Of a pooler: its own attention times the rollout of the blocks.
    """
    graph = forward(call, gradients=False)
    product = None
    for layer in call.layers:
        mean = _mean([attention.probabilities().mean(1) for attention in graph.attentions(layer)])
        mixed = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        product = mixed if product is None else mixed @ product
    assert product is not None
    pooler_maps = [attention.probabilities()[:, :, 0].mean(1) for attention in _pooler(graph)]
    weights = _mean(pooler_maps) if pooler_maps else None
    return call.same_for_all_targets(graph.on_grid(_read_by_head(graph, product, weights)))


ROLLOUT = Method(
    **about("rollout"),
    function=rollout,
    needs="attention",
    cost="the attention maps of all layers",
    layers="all",
    pooler_layers=True,
    targets=False,
    label="attention",
)


def chefer_cam(call: MethodInput) -> Tensor:
    """R = I; R += mean over heads of (A * dS/dA)+ times R, layer by layer; row(s) that the head reads, less I.

    Of a pooler: the same product for its query 0, times the R of the blocks.
    """
    graph = forward(call)
    blocks = [graph.attentions(layer) for layer in call.layers]
    pooler = _pooler(graph)
    outputs = [attention.output for layer in [*blocks, pooler] for attention in layer]
    gradients = [iter(graph.required_gradients(target, outputs)) for target in range(len(call.scores))]
    tokens = graph.last_tokens
    identity = torch.eye(tokens.shape[1], dtype=at_least_float32(tokens).dtype, device=tokens.device)
    totals = [identity.expand(len(tokens), -1, -1)] * len(call.scores)
    for layer in blocks:
        totals = [total + mean @ total for total, mean in zip(totals, _weighted(layer, gradients), strict=True)]
    if pooler:
        pooler_maps = [mean[:, 0] for mean in _weighted(pooler, gradients, slice(0, 1))]
        tokens_read = [_read_by_head(graph, total, weights) for total, weights in zip(totals, pooler_maps, strict=True)]
    else:
        # the identity adds the same to every patch that the head reads: it ranks nothing
        tokens_read = [_read_by_head(graph, total - identity) for total in totals]
    return torch.stack([graph.on_grid(values) for values in tokens_read], 1)[:, :, None]


CHEFER_CAM = Method(
    **about("chefercam"),
    function=chefer_cam,
    needs="gradients",
    cost="1 backward pass per target, the attention maps of all layers",
    layers="all",
    pooler_layers=True,
)


def _weighted(layer: list[Attention], gradients: list[Iterator[Tensor]], rows: slice = slice(None)) -> Iterator[Tensor]:
    """Mean over heads (and attentions side by side) of (A * dS/dA)+ for every target, (batch, rows, keys).

    Takes the layer's gradients off each target's iterator.
    """
    maps = [attention.probabilities()[:, :, rows] for attention in layer]
    for of_target in gradients:
        products = [a * attention.sensitivity(next(of_target), rows) for a, attention in zip(maps, layer, strict=True)]
        yield _mean([product.clamp(min=0).mean(1) for product in products])


def _mean(maps: list[Tensor]) -> Tensor:
    return torch.stack(maps).mean(0)


def _pooler(graph: Pass) -> list[Attention]:
    return graph.pooler() if graph.anatomy.route == "pooler" else []


def _read_by_head(graph: Pass, matrix: Tensor, weights: Tensor | None = None) -> Tensor:
    """(batch, tokens, tokens) -> (batch, tokens): mean of the rows read, or of all by a pooler's weights."""
    if weights is None:
        return matrix[:, graph.rows].mean(1)
    anatomy, tokens = graph.anatomy, matrix.shape[1]
    if weights.shape[1] != tokens - anatomy.num_prefix_tokens + anatomy.num_prefix_keys or weights.shape[1] > tokens:
        raise UnsupportedModelError(
            f"the attentional pooler has {weights.shape[1]} keys for the {tokens} tokens of the blocks (a class token "
            "of its own): their attentions cannot be chained"
        )
    # a pooler may leave the prefix tokens out, which come first
    return (weights[:, None] @ matrix[:, -weights.shape[1] :])[:, 0]
