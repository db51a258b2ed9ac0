"""Shrunk torchvision models."""

import torch
from torch import nn

from helpers import tiny


def names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def not_applicable(name: str) -> str:
    from legrad.models.torchvision import not_supported

    return not_supported(name)


def build(name: str) -> nn.Module:
    """Their one class of plain ViTs, with the patch size of the name."""
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    patch = {"16": 8, "32": 16, "14": 7}[name.rpartition("_")[2]]
    model = VisionTransformer(
        image_size=4 * patch, patch_size=patch, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7
    )
    return tiny.randomised(model)
