"""Shrunk vision towers of every open_clip configuration."""

from typing import Any
from unittest import mock

import torch
from torch import nn

from helpers import tiny

SIDE = 4  # patches


def names() -> list[str]:
    import open_clip

    return open_clip.list_models()


def not_applicable(name: str) -> str:
    from legrad.models.open_clip import not_supported

    return not_supported(name)


def build(name: str) -> nn.Module:
    """The tower of a configuration: its own code and options, narrow and shallow."""
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(name)
    vision: dict[str, Any] = dict(config["vision_cfg"])
    torch.manual_seed(0)
    if "timm_model_name" in vision:
        import timm

        from helpers.zoo import timm as zoo_timm

        vision["timm_model_pretrained"] = False
        create = timm.create_model

        def shrunk(trunk: str, pretrained: bool, **options: Any) -> nn.Module:
            return create(trunk, **zoo_timm.arguments(trunk), **options)

        with mock.patch.object(timm, "create_model", shrunk):
            tower = _build_vision_tower(16, vision)
        tower.image_size = tuple(tower.trunk.patch_embed.img_size)
        return zoo_timm.lively(tower)
    vision.update(layers=3, width=64, head_width=16, patch_size=8, image_size=8 * SIDE)
    vision.pop("mlp_ratio", None)
    if vision.get("attentional_pool"):
        vision.update(attn_pooler_heads=4)
    return tiny.randomised(_build_vision_tower(16, vision, config.get("quick_gelu", False)))
