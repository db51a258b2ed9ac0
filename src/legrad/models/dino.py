"""Vision transformers in the structure of Meta's DINO, DINOv2 and DINOv3 repositories, recognised by their modules.

timm's first versions have the same structure, and their code was copied into many projects: ``patch_embed``, ``blocks``
with ``attn.qkv``, ``norm``, ``head``, and tokens in front of the patches.
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models import pooling
from legrad.models.adapter import Adapter
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.resizing import patch_counts
from legrad.models.timm.trunk import call_settings

# parameters (1, tokens, dim) that the model puts in front of its patches
_PREFIX_TOKENS = ("cls_token", "register_tokens", "storage_tokens", "dist_token", "reg_token")


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for a tower in this structure, or for its linear classifier; None for anything else.

    Raises:
        UnsupportedModelError: a linear classifier that reads several blocks.
    """
    backbone, linear_head = getattr(model, "backbone", None), getattr(model, "linear_head", None)
    if isinstance(backbone, nn.Module) and isinstance(linear_head, nn.Module) and _is_tower(backbone):
        anatomies = _of_linear_classifier(model, backbone, linear_head)
    elif _is_tower(model):
        anatomies = [candidate for anatomy in _of_tower(model) for candidate in pooling.candidates(anatomy)]
    else:
        return None
    return Adapter(model, anatomies[0], name=type(model).__name__, candidates=tuple(anatomies[1:]))


def _is_tower(model: Any) -> bool:
    if not all(isinstance(getattr(model, name, None), nn.Module) for name in ("patch_embed", "blocks", "norm")):
        return False
    blocks = _blocks(model)
    has_patches = any(isinstance(module, nn.Conv2d) for module in model.patch_embed.modules())
    return has_patches and bool(blocks) and all(hasattr(getattr(block, "attn", None), "qkv") for block in blocks)


def _blocks(model: Any) -> list[nn.Module]:
    """DINOv2 may keep its blocks in chunks, which are filled up with identities."""
    blocks: list[nn.Module] = []
    for block in model.blocks.children():
        blocks += block.children() if isinstance(block, nn.ModuleList) else [block]
    return [block for block in blocks if not isinstance(block, nn.Identity)]


def _of_tower(model: Any) -> list[ViTAnatomy]:
    """With fused attention, and with attention written out, as older code has it."""
    convolution = next(module for module in model.patch_embed.modules() if isinstance(module, nn.Conv2d))
    patch = pair(convolution.kernel_size)
    tokens = [getattr(model, name, None) for name in _PREFIX_TOKENS]
    prefix = sum(token.shape[1] for token in tokens if isinstance(token, Tensor) and token.ndim == 3)
    rows, cols = patch_counts(_image_size(model, patch, prefix), patch)

    def native(z: Tensor) -> Tensor:
        result: Tensor = model.head(model.norm(z)[:, 0])
        return result

    fused = ViTAnatomy(
        library="dino",
        tower=model,
        run=model,
        blocks=tuple(_blocks(model)),
        image_size=(rows * patch[0], cols * patch[1]),
        patch_size=patch,
        num_prefix_tokens=prefix,
        readouts={"native": Readout(native)},
        output="feature",
        call_settings=(*call_settings(model), *_without_xformers(model)),
        at_size=lambda size: _at_size(fused, size),
    )
    written_out = replace(fused, attention="softmax", at_size=lambda size: _at_size(written_out, size))
    return [fused, written_out]


def _image_size(model: Any, patch: Size, prefix: int) -> Size:
    """That of the patch embedding, else that of the table of positions."""
    if size := getattr(model.patch_embed, "img_size", None):
        return pair(size)
    table = getattr(model, "pos_embed", None)
    count = table.shape[1] if isinstance(table, Tensor) and table.ndim == 3 else 0
    side = max(round(max(0, count - prefix) ** 0.5), 1)
    return (side * patch[0], side * patch[1]) if count else (14 * patch[0], 14 * patch[1])


def _without_xformers(model: nn.Module) -> tuple[tuple[Any, str, Any], ...]:
    """Attention of xformers cannot be seen: switch it off where the code of a block has a switch."""
    files = {id(file): file for file in (sys.modules.get(type(module).__module__) for module in model.modules())}
    return tuple((file, "XFORMERS_AVAILABLE", False) for file in files.values() if hasattr(file, "XFORMERS_AVAILABLE"))


def _at_size(base: ViTAnatomy, size: Size) -> ViTAnatomy:
    name = type(base.tower).__name__
    if not hasattr(base.tower, "interpolate_pos_encoding") and getattr(base.tower, "rope_embed", None) is None:
        raise InputError(f"{name} takes images of {base.image_size} pixels only, got {size}; leave size=None")
    if size[0] % base.patch_size[0] or size[1] % base.patch_size[1]:
        raise InputError(f"{name} takes sides that are multiples of {base.patch_size}, got {size}")
    return replace(base, image_size=size, grid=(), shape=(base.shape[0], *size))


def _of_linear_classifier(model: Any, backbone: Any, linear_head: nn.Module) -> list[ViTAnatomy]:
    """Class token and mean of the patches, side by side."""
    if getattr(model, "layers", 1) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} reads the class tokens of its last {model.layers} blocks, and LeGrad explains the "
            "tokens of one: build it with layers=1, or give legrad.wrap its `backbone`"
        )

    def native(z: Tensor) -> Tensor:
        tokens = backbone.norm(z)
        class_token = backbone.cls_norm(z)[:, 0] if getattr(backbone, "cls_norm", None) is not None else tokens[:, 0]
        result: Tensor = linear_head(torch.cat([class_token, tokens[:, prefix:].mean(1)], 1))
        return result

    towers = _of_tower(backbone)
    prefix = towers[0].num_prefix_tokens
    readouts = {"native": Readout(native), "published": Readout(published(native, prefix))}
    classifiers = []
    for tower in towers:
        changes: Any = {"tower": model, "run": model, "readouts": readouts, "output": "logits"}
        at_size = _classifier_at_size(tower, changes)
        classifiers.append(replace(tower, **changes, at_size=at_size))
    return classifiers


def _classifier_at_size(tower: ViTAnatomy, changes: dict[str, Any]) -> Any:
    def at_size(size: Size) -> ViTAnatomy:
        return replace(tower.at(size), **changes, at_size=at_size)

    return at_size


def available() -> list[tuple[str, str]]:
    """Nothing: build the model with its own repository and give it to ``legrad.wrap``."""
    return []
