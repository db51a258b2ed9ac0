"""Tiny models in the structure of Meta's DINO, DINOv2 and DINOv3 repositories, and of MAE's subclass of timm."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import tiny

WIDTH, HEADS, PATCH, SIDE = 48, 4, 8, 32


class PatchEmbed(nn.Module):
    def __init__(self, flat: bool = True) -> None:
        super().__init__()
        self.img_size, self.patch_size = (SIDE, SIDE), (PATCH, PATCH)
        self.flat, self.norm = flat, nn.Identity()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.norm(self.proj(images).flatten(2).mT)
        return patches if self.flat else patches.unflatten(1, (images.shape[-2] // PATCH, -1))


class Attention(nn.Module):
    """As DINOv2's without xformers: fused in later versions, written out in earlier ones."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused
        self.attn_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, rope: Any = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if rope is not None:
            sin, cos = rope
            q, k = (self._turned(t, sin, cos) for t in (q, k))
        if self.fused:
            heads = F.scaled_dot_product_attention(q, k, v)
        else:
            attention = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)
            heads = self.attn_drop(attention) @ v
        return self.proj(heads.transpose(1, 2).flatten(2))

    @staticmethod
    def _turned(t: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        prefix, patches = t[..., : -len(sin), :], t[..., -len(sin) :, :]
        half = patches.chunk(2, -1)
        return torch.cat([prefix, patches * cos + torch.cat([-half[1], half[0]], -1) * sin], -2)


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class NestedTensorBlock(nn.Module):
    """DINOv2's and DINOv3's: a tensor, or a list of them, one for each crop."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.ls1, self.ls2 = Attention(fused), LayerScale(), LayerScale()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Any, rope: Any = None) -> Any:
        if isinstance(x, list):
            ropes = rope or [None] * len(x)
            return [self._of_crop(crop, of_crop) for crop, of_crop in zip(x, ropes, strict=True)]
        return self._of_crop(x, rope)

    def _of_crop(self, x: Tensor, rope: Any) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        return x + self.ls2(self.mlp(self.norm2(x)))


class BlockChunk(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class DinoVisionTransformer(nn.Module):
    """Version 2 with registers and a table of positions, version 3 with storage tokens, rotation and lists."""

    def __init__(self, version: int = 2, tokens: int = 0, fused: bool = True, chunked: bool = False) -> None:
        super().__init__()
        self.version = version
        self.patch_embed = PatchEmbed(flat=version == 2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        extra = nn.Parameter(torch.randn(1, tokens, WIDTH)) if tokens else None
        if version == 2:
            self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
            self.register_tokens = extra
        else:
            self.storage_tokens, self.rope_embed = extra, nn.Identity()
            self.cls_norm = None
        blocks = [NestedTensorBlock(fused) for _ in range(4)]
        self.chunked = chunked
        chunks = [BlockChunk(blocks[:2]), BlockChunk([nn.Identity(), nn.Identity(), *blocks[2:]])]
        self.blocks = nn.ModuleList(chunks if chunked else blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Identity()

    def interpolate_pos_encoding(self, rows: int, cols: int) -> Tensor:
        side = SIDE // PATCH
        if (rows, cols) == (side, side):
            return self.pos_embed
        table = self.pos_embed[:, 1:].mT.unflatten(-1, (side, side))
        table = F.interpolate(table, (rows, cols), mode="bicubic").flatten(2).mT
        return torch.cat([self.pos_embed[:, :1], table], 1)

    def _rope(self, rows: int, cols: int) -> tuple[Tensor, Tensor]:
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).float()
        angles = (places @ torch.linspace(0.1, 1, 2 * (WIDTH // HEADS // 2)).view(2, -1)).repeat(1, 2)
        return angles.sin(), angles.cos()

    def forward_features(self, images: Tensor, masks: Any = None) -> dict[str, Any]:
        rows, cols = (side // PATCH for side in images.shape[-2:])
        x = self.patch_embed(images)
        x = x if x.ndim == 3 else x.flatten(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        extra = self.register_tokens if self.version == 2 else self.storage_tokens
        if self.version == 2:
            x = x + self.interpolate_pos_encoding(rows, cols)
        if extra is not None:
            x = torch.cat([x[:, :1], extra.expand(len(x), -1, -1), x[:, 1:]], 1)
        if self.version == 2:
            for block in self.blocks:
                x = block(x)
        else:
            crops = [x]
            for block in self.blocks:
                crops = block(crops, [self._rope(rows, cols)])
            x = crops[0]
        normed, first = self.norm(x), 1 + (0 if extra is None else extra.shape[1])
        return {"x_norm_clstoken": normed[:, 0], "x_norm_patchtokens": normed[:, first:], "x_prenorm": x}

    def forward(self, images: Tensor, is_training: bool = False) -> Any:
        features = self.forward_features(images)
        return features if is_training else self.head(features["x_norm_clstoken"])


class LinearClassifierWrapper(nn.Module):
    """The classifiers of both repositories' hubs; version 2's reads four blocks by default."""

    def __init__(self, backbone: nn.Module, classes: int = 5, layers: int = 1) -> None:
        super().__init__()
        self.backbone, self.layers = backbone, layers
        self.linear_head = nn.Linear((1 + layers) * WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone.forward_features(images)
        tokens = [features["x_norm_clstoken"]] * self.layers
        return self.linear_head(torch.cat([*tokens, features["x_norm_patchtokens"].mean(1)], 1))


class DinoOne(DinoVisionTransformer):
    """The first DINO returns the class token and leaves the head to others."""

    def forward(self, images: Tensor, is_training: bool = False) -> Any:
        return self.forward_features(images)["x_norm_clstoken"]


class Mae(timm.models.VisionTransformer):
    """MAE's and RETFound's subclass: pooled inside ``forward_features``, one norm dropped, another brought."""

    def __init__(self, global_pool: bool, **options: Any) -> None:
        super().__init__(**options)
        self.global_pool = global_pool
        if global_pool:
            self.fc_norm = nn.LayerNorm(self.embed_dim)
            del self.norm

    def forward_features(self, x: Tensor, **_: Any) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:].mean(1)) if self.global_pool else self.norm(x)[:, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x)


def build(version: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return tiny.randomised(DinoVisionTransformer(version, **options))


def mae(global_pool: bool, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 3, "num_heads": HEADS}
    return tiny.randomised(Mae(global_pool, num_classes=classes, **sizes))
