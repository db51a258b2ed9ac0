"""Shrunk timm models: the class and options of every name, with few narrow blocks and random weights."""

from functools import partial
from typing import Any

import torch
from torch import nn

from helpers import tiny

NARROW = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def names() -> list[str]:
    import timm

    return timm.list_models()


def not_applicable(name: str) -> str:
    from legrad.models.timm import not_supported

    return not_supported(name)


def module_of(name: str) -> str:
    from timm.models import model_entrypoint

    return model_entrypoint(name).__module__.rpartition(".")[2]


def build(name: str) -> nn.Module:
    """A shrunk copy in eval mode, every parameter random."""
    import timm

    torch.manual_seed(0)
    return lively(timm.create_model(name, **arguments(name)))


def arguments(name: str) -> dict[str, Any]:
    """What makes a model small."""
    return ARGUMENTS.get(module_of(name), _flat)(name)


def lively(model: nn.Module) -> nn.Module:
    """The same model, with random weights that no map is flat for."""
    tiny.randomised(model)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("pos_embed"):
                # tokens that hardly differ would have maps without contrast
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _patch(name: str, default: int = 16) -> int:
    """The patch size in the name: vit_base_patch14_..., xcit_nano_12_p8_224."""
    for part in name.split("_"):
        for prefix in ("patch", "p"):
            if part.startswith(prefix) and part.removeprefix(prefix).isdigit():
                return int(part.removeprefix(prefix))
    return default


def _flat(name: str) -> dict[str, Any]:
    return {**NARROW, "img_size": 4 * _patch(name)}


def _eva(name: str) -> dict[str, Any]:
    flat = {**_flat(name), "embed_dim": 64, "num_heads": 4}  # rotary embeddings need a head width divisible by 4
    if "sapiens2" in name:
        return {**flat, "depth": 3, "num_kv_heads": (4, 2, 4)}
    return flat


def _naflex(name: str) -> dict[str, Any]:
    # it has no size of its own: the configured one has to be small
    return {**NARROW, "pretrained_cfg_overlay": {"input_size": (3, 4 * _patch(name), 4 * _patch(name))}}


def _hybrid(name: str) -> dict[str, Any]:
    """The transformer behind a convolutional stem of the name's kind and stride, which is shrunk too."""
    import timm
    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models import resnetv2
    from timm.models import vision_transformer_hybrid as hybrid

    stride = 32 if "s32" in name or name.endswith(("resnet26d_224", "resnet50d_224")) else 16
    project = True
    if "mci" in name:
        widths = (12, 12, 48)
        stem = hybrid.ConvStem(channels=widths, stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU)
        project = False
    elif "resnet" in name:
        widths = {"layers": (1, 1, 1, 1), "channels": (16, 16, 24, 24), "stem_width": 8}
        kind = "resnet26d" if "26d" in name else "resnet50d"
        stem = timm.create_model(kind, features_only=True, out_indices=[4 if stride == 32 else 3], **widths)
    elif "_r_" in name:
        return {**NARROW, "img_size": 4 * 4 * _patch(name)}
    else:
        layers = (1, 1, 1, 1) if stride == 32 else (1, 1, 1)
        stem = resnetv2.ResNetV2(
            layers=layers,
            channels=(128, 128, 256, 256),
            stem_chs=32,
            num_classes=0,
            global_pool="",
            preact=False,
            stem_type="same",
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
    return {**NARROW, "img_size": 4 * stride, "embed_layer": partial(HybridEmbed, backbone=stem, proj=project)}


def _vitamin(name: str) -> dict[str, Any]:
    from timm.models.vitamin import VitCfg, VitConvCfg

    conv = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    stem = VitCfg(embed_dim=(16, 32, 48), depths=(1, 1, 1), stem_width=16, conv_cfg=conv, head_type="1d")
    return {**NARROW, "img_size": 64, "embed_cfg": stem}


def _sam(name: str) -> dict[str, Any]:
    return {**NARROW, "depth": 4, "img_size": 64, "window_size": 3, "global_attn_indexes": (1, 3)}


def _encoder(name: str) -> dict[str, Any]:
    size = {"deepseek": 4 * 14, "gemma4": 4 * 16, "qwen3": 4 * 16}[name.partition("_")[0]]
    kwargs: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": size}
    kwargs["pretrained_cfg_overlay"] = {"input_size": (3, size, size)}
    if name.startswith("gemma4"):
        return {**kwargs, "head_dim": 16, "intermediate_size": 96, "num_kv_heads": 2}
    return {**kwargs, **({"out_features": 40} if name.endswith(("_align", "_merge")) else {})}


ARGUMENTS = {
    "eva": _eva,
    "naflexvit": _naflex,
    "vision_transformer_hybrid": _hybrid,
    "vitamin": _vitamin,
    "vision_transformer_sam": _sam,
    "deepseek_vit": _encoder,
    "gemma4_vit": _encoder,
    "qwen3_vit": _encoder,
}
