"""What the tests of every tower in ``tiny.TOWERS`` share: input sizes, prefix tokens, random images and targets."""

import torch
import torch.nn.functional as F

from helpers import tiny

PREFIX = {"siglip": 0, "siglip2": 0, "vitamin": 0, "vit-registers": 4, "vit-token-registers": 5}
STEMS = {"mobileclip-b", "vitamin"}  # 16 pixels per patch


def side(name):
    return 64 if name in STEMS else 32


def setting(name, images=2, targets=2):
    size = side(name)
    embeddings = F.normalize(torch.randn(targets, 32, dtype=torch.float64), dim=-1)
    return tiny.TOWERS[name](), torch.randn(images, 3, size, size), embeddings
