"""A tiny random model in the structure that ImageBind is described by; written for these tests, none of it is its code.

Three senses (vision, audio, text), each a preprocessor, a trunk, a head and a postprocessor in a ModuleDict; tokens run
through the trunks as (tokens, batch, dim); an image is repeated to two frames; several clips of a sound are averaged
after their embeddings were scaled.
"""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, FEATURES = 32, 24


class Stem(nn.Module):
    """Images (batch, 3, height, width) -> tokens."""

    def __init__(self, side=4, patch=8):
        super().__init__()
        self.proj = nn.Conv3d(3, WIDTH, (2, patch, patch), (2, patch, patch), bias=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, side**2 + 1, WIDTH))

    def forward(self, x):
        patches = self.proj(torch.stack([x, x], 2)).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self.pos_embed, None


class Spectrograms(nn.Module):
    """(batch, 1, 128 bins, 204 steps) -> tokens of patches that overlap."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(1, WIDTH, 16, 60, bias=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x):
        assert x.shape[1:] == (1, 128, 204)
        patches = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1), None


class Words(nn.Module):
    def __init__(self, context=8, vocabulary=64):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.register_buffer("mask", torch.full((context, context), float("-inf")).triu(1))

    def forward(self, x):
        return self.token_embedding(x), self.mask.to(self.token_embedding.weight)


class Attention(nn.MultiheadAttention):
    def forward(self, x, attn_mask=None):
        return super().forward(x, x, x, need_weights=False, attn_mask=attn_mask)[0]


class Block(nn.Module):
    def __init__(self, heads, bias_kv):
        super().__init__()
        self.attn = Attention(WIDTH, heads, add_bias_kv=bias_kv)
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, attn_mask):
        x = x + self.attn(self.norm_1(x), attn_mask)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    def __init__(self, layers=3, heads=2, bias_kv=False):
        super().__init__()
        self.pre_transformer_layer = nn.LayerNorm(WIDTH, eps=1e-6)
        self.blocks = nn.Sequential(*(Block(heads, bias_kv) for _ in range(layers)))

    def forward(self, tokens, attn_mask=None):
        x = self.pre_transformer_layer(tokens).transpose(0, 1)
        for block in self.blocks:
            x = block(x, attn_mask=attn_mask)
        return x.transpose(0, 1)


class First(nn.Module):
    def forward(self, x):
        return x[:, 0]


class Normalize(nn.Module):
    def forward(self, x):
        return F.normalize(x, dim=-1)


class Scale(nn.Module):
    def forward(self, x):
        return 20 * x


def head():
    return nn.Sequential(nn.LayerNorm(WIDTH, eps=1e-6), First(), nn.Linear(WIDTH, FEATURES, bias=False))


class ImageBindModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.modality_preprocessors = nn.ModuleDict({"vision": Stem(), "audio": Spectrograms(), "text": Words()})
        self.modality_trunks = nn.ModuleDict({"vision": Trunk(), "audio": Trunk(2, bias_kv=True), "text": Trunk(2)})
        self.modality_heads = nn.ModuleDict({sense: head() for sense in self.modality_trunks})
        self.modality_postprocessors = nn.ModuleDict(
            {"vision": Normalize(), "audio": nn.Sequential(Normalize(), Scale()), "text": Normalize()}
        )

    def forward(self, inputs):
        found = {}
        for sense, x in inputs.items():
            clips = x.shape[1] if x.ndim >= 5 else None
            tokens, mask = self.modality_preprocessors[sense](x if clips is None else x.flatten(0, 1))
            x = self.modality_heads[sense](self.modality_trunks[sense](tokens, attn_mask=mask))
            x = self.modality_postprocessors[sense](x)
            found[sense] = x if clips is None else x.unflatten(0, (-1, clips)).mean(1)
        return found


def model():
    torch.manual_seed(0)
    return ImageBindModel().eval()
