"""Slow twins of the methods: one image and one target at a time, float64, the transformer written out by hand.

Shares no code with the library. Gradients at attention maps are plain autograd at zeros that are added to the maps;
relevance is propagated backwards by explicit rules without autograd.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor, frozen: bool = False) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred**2).mean(-1, keepdim=True).add(self.eps).sqrt()
        return centred / (deviation.detach() if frozen else deviation) * self.weight + self.bias


@dataclass
class Linear:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@dataclass
class Layer:
    """A block; or a pooler: ``latent`` is its query, and it has no first norm and no residual at the attention."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    norm2: Norm
    up: Linear
    down: Linear
    heads: int
    norm1: Norm | None = None
    latent: Tensor | None = None
    tanh: bool = False


@dataclass
class Twin:
    """A vision transformer by its weights.

    ``pool`` is "token", "average" (of the normalised patches, all tokens) or "map".
    """

    embed: Any
    blocks: list[Layer]
    norm: Norm
    pool: str
    prefix: int
    grid: tuple[int, int]
    head: Linear
    logits: bool
    pooler: Layer | None = None

    def rows(self, tokens: int) -> list[int]:
        return [0] if self.pool == "token" else list(range(self.prefix, tokens))


@dataclass
class Seen:
    tokens: list[Tensor] = field(default_factory=list)  # entering each block, then leaving the last
    maps: list[Tensor] = field(default_factory=list)
    zeros: list[Tensor] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    k: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def gelu(x: Tensor, tanh: bool) -> Tensor:
    if tanh:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def split(x: Tensor, heads: int) -> Tensor:
    """(tokens, dim) -> (heads, tokens, dim / heads)."""
    return torch.stack(x.chunk(heads, dim=-1))


def run_layer(layer: Layer, z: Tensor, seen: Seen, frozen: bool = False, values: bool = False) -> Tensor:
    x = z if layer.norm1 is None else layer.norm1(z, frozen)
    source = x if layer.latent is None else layer.latent
    q, k, v = (split(f(y), layer.heads) for f, y in ((layer.query, source), (layer.key, x), (layer.value, x)))
    a = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    zero = torch.zeros_like(a, requires_grad=True)
    o = v if values else (a + zero) @ v
    seen.maps.append(a)
    seen.zeros.append(zero)
    seen.q.append(q)
    seen.k.append(k)
    seen.v.append(v)
    seen.outputs.append(o)
    attended = layer.out(torch.cat(tuple(o), -1))
    z = attended if layer.latent is not None else z + attended
    return z + layer.down(gelu(layer.up(layer.norm2(z, frozen)), layer.tanh))


def read(twin: Twin, z: Tensor, seen: Seen, frozen: bool = False) -> Tensor:
    """The native head."""
    normed = twin.norm(z, frozen)
    if twin.pool == "token":
        pooled = normed[0]
    elif twin.pool == "average":
        pooled = normed[twin.prefix :].mean(0)
    else:
        pooled = run_layer(twin.pooler, normed, seen, frozen)[0]
    return twin.head(pooled)


def score_of(twin: Twin, feature: Tensor, target: Tensor, frozen: bool = False) -> Tensor:
    if twin.logits:
        return feature @ target
    length = feature.norm()
    return feature @ target / (length.detach() if frozen else length)


def forward(twin: Twin, image: Tensor, target: Tensor, frozen: bool = False) -> tuple[Seen, Tensor]:
    """Everything seen on the way, and the score."""
    seen = Seen()
    z = twin.embed(image).detach().requires_grad_()
    seen.tokens.append(z)
    for block in twin.blocks:
        z = run_layer(block, z, seen, frozen)
        seen.tokens.append(z)
    return seen, score_of(twin, read(twin, z, seen, frozen), target, frozen)


def grad(score: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(score, at, retain_graph=True)[0]


def lay(twin: Twin, tokens: Tensor) -> Tensor:
    """Values of all tokens, or of patches alone, on the grid."""
    count = twin.grid[0] * twin.grid[1]
    return tokens[len(tokens) - count :].detach().reshape(twin.grid)


def read_rows(twin: Twin, seen: Seen, layer: int = -1) -> list[tuple[int, int]]:
    """(index of the attention, row) that the head looks at."""
    if twin.pool == "map":
        return [(len(twin.blocks), 0)]
    index = layer % len(twin.blocks)
    return [(index, row) for row in twin.rows(seen.maps[index].shape[-1])]


# -- the methods --------------------------------------------------------------------------------------------------


def raw_attention(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, _ = forward(twin, image, target)
    rows = [seen.maps[i][h, r] for i, r in read_rows(twin, seen) for h in range(len(seen.maps[i]))]
    return lay(twin, sum(rows) / len(rows))


def rollout(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, _ = forward(twin, image, target)
    count = seen.maps[0].shape[-1]
    total = torch.eye(count, dtype=torch.float64)
    for layer in range(len(twin.blocks)):
        total = (0.5 * seen.maps[layer].mean(0) + 0.5 * torch.eye(count, dtype=torch.float64)) @ total
    if twin.pool == "map":
        return lay(twin, seen.maps[-1].mean(0)[0] @ total)
    rows = twin.rows(count)
    return lay(twin, sum(total[r] for r in rows) / len(rows))


def grad_cam(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, score = forward(twin, image, target)
    tokens = seen.tokens[-1] if twin.pool == "map" else seen.tokens[-2]
    above = grad(score, tokens)
    weights = above[twin.prefix :].mean(0)
    return lay(twin, torch.relu(tokens @ weights))


def attention_cam(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, score = forward(twin, image, target)
    parts = []
    count = twin.grid[0] * twin.grid[1]
    for index, row in read_rows(twin, seen):
        above = grad(score, seen.zeros[index])
        for h in range(len(above)):
            parts.append(above[h, row, -count:].mean() * seen.maps[index][h, row])
    return lay(twin, torch.relu(sum(parts) / len(parts)))


def gradient_attention(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, score = forward(twin, image, target)
    parts = []
    for index, row in read_rows(twin, seen):
        above = grad(score, seen.zeros[index])
        parts += [torch.relu(above[h, row] * seen.maps[index][h, row]) for h in range(len(above))]
    return lay(twin, sum(parts) / len(parts))


def chefer_cam(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, score = forward(twin, image, target)
    count = seen.maps[0].shape[-1]
    total = torch.eye(count, dtype=torch.float64)
    for layer in range(len(twin.blocks)):
        total = total + torch.relu(grad(score, seen.zeros[layer]) * seen.maps[layer]).mean(0) @ total
    if twin.pool == "map":
        return lay(twin, torch.relu(grad(score, seen.zeros[-1]) * seen.maps[-1]).mean(0)[0] @ total)
    rows = twin.rows(count)
    return lay(twin, sum(total[r] - torch.eye(count, dtype=torch.float64)[r] for r in rows) / len(rows))


def grad_eclip(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, score = forward(twin, image, target)
    count = twin.grid[0] * twin.grid[1]
    parts = []
    for index, row in read_rows(twin, seen):
        above = torch.cat(tuple(grad(score, seen.outputs[index])[:, row]))
        q = torch.cat(tuple(seen.q[index][:, row]))
        keys, values = torch.cat(tuple(seen.k[index]), -1)[-count:], torch.cat(tuple(seen.v[index]), -1)[-count:]
        cosine = torch.stack([q @ k / (q.norm() * k.norm()) for k in keys])
        loosened = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        parts.append(torch.stack([loosened[j] * (above * values[j]).sum() for j in range(count)]))
    return lay(twin, torch.relu(sum(parts) / len(parts)))


def value_map(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, _ = forward(twin, image, target)
    tokens = seen.tokens[-1]
    if twin.pool != "map":
        tokens = run_layer(twin.blocks[-1], seen.tokens[-2], Seen(), values=True)
    scores = []
    for token in tokens[twin.prefix :]:
        normed = twin.norm(token[None])
        if twin.pool == "map":
            normed = run_layer(twin.pooler, normed, Seen())
        scores.append(score_of(twin, twin.head(normed[0]), target))
    return lay(twin, torch.stack(scores))


def decomposition(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, score = forward(twin, image, target, frozen=True)
    if twin.pool == "map":
        above = grad(score, seen.outputs[-1])[:, 0]
        return lay(twin, sum(a[0, :, None] * v @ g for a, v, g in zip(seen.maps[-1], seen.v[-1], above, strict=True)))
    last = seen.tokens[-1]
    feature = read(twin, last, Seen())
    direction = twin.head.weight.T @ target / (1 if twin.logits else feature.norm())
    rows = twin.rows(len(last))
    total = 0
    for index, block in enumerate(twin.blocks):
        outs = block.out.weight.chunk(block.heads, dim=1)
        for h in range(block.heads):
            messages = seen.v[index][h] @ outs[h].T  # (tokens, dim)
            for row in rows:
                centred = last[row] - last[row].mean()
                deviation = (centred.square().mean() + twin.norm.eps).sqrt()
                written = seen.maps[index][h, row][:, None] * messages
                through = (written - written.mean(-1, keepdim=True)) / deviation * twin.norm.weight
                total = total + through @ direction / len(rows)
    return lay(twin, total / len(twin.blocks))


def legrad_norelu(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    """The read-outs of readout="auto": mean over all tokens for the class token, else the head itself."""
    seen = Seen()
    z = twin.embed(image)
    maps = []
    for block in twin.blocks:
        own = Seen()
        z = run_layer(block, z.detach(), own)
        feature = twin.head(twin.norm(z.mean(0))) if twin.pool == "token" else read(twin, z, seen)
        zero = seen.zeros[-1] if twin.pool == "map" else own.zeros[0]
        above = grad(score_of(twin, feature, target), zero)
        maps.append(lay(twin, above[:, 0].mean(0) if twin.pool == "map" else above.mean((0, 1))))
    return sum(maps) / len(maps)


def _refined(twin: Twin, image: Tensor, target: Tensor, formula: Any) -> Tensor:
    """Mean over the last two thirds of the blocks, with the native head; ``formula``: G, A -> (heads, rows, keys)."""
    seen = Seen()
    z = twin.embed(image)
    maps = []
    for block in twin.blocks:
        own = Seen()
        z = run_layer(block, z.detach(), own)
        feature = read(twin, z, seen)
        of = seen if twin.pool == "map" else own
        above = formula(grad(score_of(twin, feature, target), of.zeros[-1]), of.maps[-1].detach())
        maps.append(lay(twin, above[:, 0].mean(0) if twin.pool == "map" else above.mean((0, 1))))
    last = maps[len(maps) - round(len(maps) * 2 / 3) :]
    return sum(last) / len(last)


def legrad_centred(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    return _refined(twin, image, target, lambda g, _: torch.relu(g - g.mean(-1, keepdim=True)))


def legrad_simplex(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    signed = _refined(twin, image, target, lambda g, a: g - (a * g).sum(-1, keepdim=True))
    return torch.relu(signed)


# -- relevance, rule by rule --------------------------------------------------------------------------------------


def back_linear(linear: Linear, x: Tensor, relevance: Tensor) -> Tensor:
    return x * ((relevance / linear(x)) @ linear.weight)


def back_norm(norm: Norm, x: Tensor, relevance: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred**2).mean(-1, keepdim=True).add(norm.eps).sqrt()
    above = relevance / norm(x) * norm.weight / deviation
    return x * (above - above.mean(-1, keepdim=True))


def back_attention(layer: Layer, x: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of what attention gets, and of its map."""
    source = x if layer.latent is None else layer.latent
    q, k, v = (split(f(y), layer.heads) for f, y in ((layer.query, source), (layer.key, x), (layer.value, x)))
    width = math.sqrt(q.shape[-1])
    logits = q @ k.transpose(-2, -1) / width
    a = logits.softmax(-1)
    o = a @ v
    shares = split(relevance, layer.heads) / o
    of_map = a * (shares @ v.transpose(-2, -1)) / 2
    of_values = v * (a.transpose(-2, -1) @ shares) / 2
    of_logits = logits * (of_map - a * of_map.sum(-1, keepdim=True))
    shares = of_logits / logits / width
    of_queries, of_keys = q * (shares @ k) / 2, k * (shares.transpose(-2, -1) @ q) / 2
    total = back_linear(layer.key, x, torch.cat(tuple(of_keys), -1))
    total = total + back_linear(layer.value, x, torch.cat(tuple(of_values), -1))
    if layer.latent is None:
        total = total + back_linear(layer.query, x, torch.cat(tuple(of_queries), -1))
    return total, of_map


def back_layer(layer: Layer, z: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the tokens that enter, and of the attention map."""
    x = z if layer.norm1 is None else layer.norm1(z)
    seen = Seen()
    result = run_layer(layer, z, seen)
    heads = torch.cat(tuple(seen.outputs[0]), -1)
    attended = layer.out(heads)
    middle = attended if layer.latent is not None else z + attended
    normed = layer.norm2(middle)
    inner = layer.up(normed)
    branch = layer.down(gelu(inner, layer.tanh))
    # a sum shares by its parts; an activation function hands relevance on
    of_branch = back_linear(layer.down, gelu(inner, layer.tanh), relevance * branch / result)
    of_branch = back_norm(layer.norm2, middle, back_linear(layer.up, normed, of_branch))
    of_middle = relevance * middle / result + of_branch
    of_attended = of_middle if layer.latent is not None else of_middle * attended / middle
    of_input, of_map = back_attention(layer, x, back_linear(layer.out, heads, of_attended))
    if layer.latent is not None:
        return of_input, of_map
    return of_middle * z / middle + back_norm(layer.norm1, z, of_input), of_map


def propagate(twin: Twin, image: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Relevance of the embedded tokens, and of all attention maps (a pooler's last)."""
    with torch.no_grad():
        tokens = [twin.embed(image)]
        for block in twin.blocks:
            tokens.append(run_layer(block, tokens[-1], Seen()))
        last = tokens[-1]
        normed = twin.norm(last)
        maps = []
        pooled = {
            "token": lambda: normed[0],
            "average": lambda: normed[twin.prefix :].mean(0),
            "map": lambda: run_layer(twin.pooler, normed, Seen())[0],
        }[twin.pool]()
        feature = twin.head(pooled)
        relevance = feature * target / (1 if twin.logits else feature.norm())
        relevance = back_linear(twin.head, pooled, relevance)
        of_normed = torch.zeros_like(normed)
        if twin.pool == "token":
            of_normed[0] = relevance
        elif twin.pool == "average":
            part = normed[twin.prefix :]
            of_normed[twin.prefix :] = part / part.sum(0) * relevance
        else:
            of_normed, of_map = back_layer(twin.pooler, normed, relevance[None])
            maps.append(of_map)
        relevance = back_norm(twin.norm, last, of_normed)
        for block, z in zip(reversed(twin.blocks), reversed(tokens[:-1]), strict=True):
            relevance, of_map = back_layer(block, z, relevance)
            maps.insert(0, of_map)
    return relevance, maps


def lrp(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    return lay(twin, propagate(twin, image, target)[0].sum(-1))


def partial_lrp(twin: Twin, image: Tensor, target: Tensor) -> Tensor:
    seen, _ = forward(twin, image, target)
    _, maps = propagate(twin, image, target)
    parts = [torch.relu(maps[index][:, row]).mean(0) for index, row in read_rows(twin, seen)]
    return lay(twin, sum(parts) / len(parts))


METHODS = {
    "raw-attention": raw_attention,
    "rollout": rollout,
    "gradcam": grad_cam,
    "attentioncam": attention_cam,
    "gradient-attention": gradient_attention,
    "chefercam": chefer_cam,
    "lrp": lrp,
    "partial-lrp": partial_lrp,
    "grad-eclip": grad_eclip,
    "maskclip": value_map,
    "textspan": decomposition,
    "legrad-norelu": legrad_norelu,
    "legrad-centred": legrad_centred,
    "legrad-simplex": legrad_simplex,
}


# -- tiny models as twins -----------------------------------------------------------------------------------------


def _linear(module: Any) -> Linear:
    return Linear(module.weight.detach(), module.bias.detach())


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.bias.detach(), module.eps)


def of_open_clip(model: Any) -> Twin:
    """A class-token CLIP of open_clip."""
    v = model.visual
    blocks = []
    for block in v.transformer.resblocks:
        w, b = block.attn.in_proj_weight.detach(), block.attn.in_proj_bias.detach()
        q, k, value = (Linear(*pair) for pair in zip(w.chunk(3), b.chunk(3), strict=True))
        mlp = block.mlp
        blocks.append(
            Layer(
                q, k, value, _linear(block.attn.out_proj), _norm(block.ln_2), _linear(mlp.c_fc), _linear(mlp.c_proj),
                block.attn.num_heads, _norm(block.ln_1),
            )
        )  # fmt: skip

    def embed(image: Tensor) -> Tensor:
        patches = v.conv1(image[None])[0].flatten(1).T
        return v.ln_pre(torch.cat([v.class_embedding[None], patches]) + v.positional_embedding).detach()

    head = Linear(v.proj.detach().T, torch.zeros(v.proj.shape[1], dtype=torch.float64))
    return Twin(embed, blocks, _norm(v.ln_post), "token", 1, v.grid_size, head, logits=False)


def _timm_block(block: Any, tanh: bool = False) -> Layer:
    w, b = block.attn.qkv.weight.detach(), block.attn.qkv.bias.detach()
    q, k, v = (Linear(*pair) for pair in zip(w.chunk(3), b.chunk(3), strict=True))
    return Layer(
        q, k, v, _linear(block.attn.proj), _norm(block.norm2), _linear(block.mlp.fc1), _linear(block.mlp.fc2),
        block.attn.num_heads, _norm(block.norm1), tanh=tanh,
    )  # fmt: skip


def _timm_embed(trunk: Any) -> Any:
    def embed(image: Tensor) -> Tensor:
        patches = trunk.patch_embed(image[None])[0]
        if trunk.cls_token is not None:
            patches = torch.cat([trunk.cls_token[0], patches])
        return (patches + trunk.pos_embed[0]).detach()

    return embed


def of_siglip(model: Any) -> Twin:
    """A SigLIP of timm inside open_clip: attentional pooler, no projection."""
    trunk = model.visual.trunk
    pool = trunk.attn_pool
    k, v = (
        Linear(*pair) for pair in zip(pool.kv.weight.detach().chunk(2), pool.kv.bias.detach().chunk(2), strict=True)
    )
    tanh = getattr(pool.mlp.act, "approximate", "none") == "tanh"
    pooler = Layer(
        _linear(pool.q), k, v, _linear(pool.proj), _norm(pool.norm), _linear(pool.mlp.fc1), _linear(pool.mlp.fc2),
        pool.num_heads, latent=pool.latent[0].detach(), tanh=tanh,
    )  # fmt: skip
    tanh = getattr(trunk.blocks[0].mlp.act, "approximate", "none") == "tanh"
    blocks = [_timm_block(block, tanh) for block in trunk.blocks]
    width = trunk.embed_dim
    head = Linear(torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
    return Twin(
        _timm_embed(trunk), blocks, _norm(trunk.norm), "map", 0, trunk.patch_embed.grid_size, head, False, pooler
    )


def of_timm(model: Any) -> Twin:
    """A timm classifier that averages its normalised patches."""
    blocks = [_timm_block(block) for block in model.blocks]
    return Twin(
        _timm_embed(model), blocks, _norm(model.norm), "average", 1, model.patch_embed.grid_size, _linear(model.head),
        logits=True,
    )  # fmt: skip
