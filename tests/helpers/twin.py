"""The slow, obvious twin: attention written out with its map as a leaf, plain autograd, float64.

It shares no code with the library: attention is replaced at the level of Python functions, nothing is streamed, chunked
or detached, and the read-outs are spelled out per model family.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def written_out() -> Iterator[list[Tensor]]:
    """Replace attention by its definition; collects the attention maps, each a fresh leaf."""
    maps: list[Tensor] = []

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *_: Any, scale: Any = None, **__: Any
    ) -> Tensor:
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if mask is not None:
            logits = logits + (
                mask if mask.dtype != torch.bool else torch.zeros_like(logits).masked_fill(~mask, -torch.inf)
            )
        leaf = logits.softmax(-1).detach().requires_grad_()
        maps.append(leaf)
        return torch.einsum("bhqk,bhkd->bhqd", leaf, v)

    def multi_head(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if self.in_proj_weight is not None:
            wq, wk, wv = self.in_proj_weight.chunk(3)
        else:
            wq, wk, wv = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        bq, bk, bv = self.in_proj_bias.chunk(3)

        def heads(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return (x @ w.T + b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        out = attend(heads(query, wq, bq), heads(key, wk, bk), heads(value, wv, bv)).transpose(1, 2).flatten(2)
        out = out @ self.out_proj.weight.T + self.out_proj.bias
        return (out if self.batch_first else out.transpose(0, 1)), None

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(nn.MultiheadAttention, "forward", multi_head),
    ):
        yield maps


def normalised(feature: Tensor) -> Tensor:
    return feature / feature.norm(dim=-1, keepdim=True)


# -- read-outs, spelled out ---------------------------------------------------------------------------------------


def _native_open_clip(model: Any, z: Tensor) -> Tensor:
    v = model.visual
    if v.attn_pool is not None:
        pooled = v.ln_post(v.attn_pool(z))[:, 0]
    elif v.pool_type == "tok":
        pooled = v.ln_post(z[:, 0])
    elif v.final_ln_after_pool:
        pooled = v.ln_post(z[:, 1:].mean(1))
    else:
        pooled = v.ln_post(z)[:, 1:].mean(1)
    return normalised(pooled @ v.proj)


def _published_open_clip(model: Any, z: Tensor) -> Tensor:
    v = model.visual
    if v.attn_pool is not None:
        return v.attn_pool(z)[:, 0] @ v.proj
    return normalised(v.ln_post(z.mean(1)) @ v.proj)


def _native_timm(model: Any, z: Tensor) -> Tensor:
    t = model.visual.trunk
    if t.attn_pool is not None:
        pooled = t.attn_pool(t.norm(z))
    elif t.global_pool == "token":
        pooled = t.fc_norm(t.norm(z)[:, 0])
    else:
        pooled = t.fc_norm(t.norm(z)[:, t.num_prefix_tokens :].mean(1))
    return normalised(model.visual.head(t.head(pooled)))


def _published_timm(model: Any, z: Tensor) -> Tensor:
    t = model.visual.trunk
    pooled = t.attn_pool(z) if t.attn_pool is not None else t.fc_norm(t.norm(z.mean(1)))
    return normalised(model.visual.head(t.head(pooled)))


READOUTS: dict[tuple[bool, str], Callable[[Any, Tensor], Tensor]] = {
    (False, "native"): _native_open_clip,
    (False, "published"): _published_open_clip,
    (True, "native"): _native_timm,
    (True, "published"): _published_timm,
}


def relevance(
    model: Any,
    images: Tensor,
    score: Callable[[Tensor], Tensor],
    readout: str,
    prefix: int,
    grid: tuple[int, int],
    by_head: bool = False,
) -> Tensor:
    """Relevance of every layer, (images, layers, rows, cols) float64.

    Args:
        score: (images, features) -> (images,).
        readout: "native" or "published".
        prefix: keys in front of the patches.
        by_head: (images, layers, heads, rows, cols) instead.
    """
    model = copy.deepcopy(model).double().eval()
    is_timm = hasattr(model.visual, "trunk")
    read = READOUTS[is_timm, readout]
    blocks = model.visual.trunk.blocks if is_timm else model.visual.transformer.resblocks
    pooler = model.visual.trunk.attn_pool is not None if is_timm else model.visual.attn_pool is not None
    outputs: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    layers = []
    with torch.enable_grad(), written_out() as maps:
        model.visual(images.double())
        tokens, attentions = list(outputs), list(maps)
        for z, attention in zip(tokens, attentions, strict=False):
            maps.clear()
            feature = read(model, z)
            attention = maps[-1] if pooler else attention
            (gradient,) = torch.autograd.grad(score(feature).sum(), attention, retain_graph=True)
            positive = gradient.clamp(min=0)
            positive = positive[:, :, 0] if pooler else positive.mean(2)
            heads = positive[:, :, prefix:].unflatten(-1, grid)
            layers.append(heads if by_head else heads.mean(1))
    return torch.stack(layers, 1)


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest |a - b| / max |b| over the maps (the last two dimensions)."""
    found, expected = found.double(), expected.double()
    scale = expected.abs().amax((-2, -1), keepdim=True)
    assert bool((scale > 0).all()), "a map of zeros proves nothing"
    return float(((found - expected).abs() / scale).max())
