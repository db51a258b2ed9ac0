"""timm vision transformers, alone or as the trunk of another library's tower."""

import copy
from typing import Any

from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError

PLAIN_CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "VisionTransformerRelPos", "Eva", "Beit")
# timm's files whose models are such classes
PLAIN_MODULES = frozenset(
    {"vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "deit", "eva", "beit", "vitamin"}
)


def is_plain_name(name: str) -> bool:
    """Whether a model's name stands for a plain ViT; from the file that defines it, nothing is built."""
    from timm.models import is_model, model_entrypoint

    return is_model(name) and model_entrypoint(name).__module__.rpartition(".")[2] in PLAIN_MODULES


def check_plain(trunk: nn.Module) -> None:
    """Raise ``UnsupportedModelError`` unless the trunk is a plain ViT: global attention over one patch grid."""
    kinds = {kind.__name__ for kind in type(trunk).__mro__ if kind.__module__.startswith("timm.")}
    if not kinds & set(PLAIN_CLASSES):
        raise UnsupportedModelError(
            f"{type(trunk).__name__} is a convolutional, windowed or hierarchical network, not a plain vision "
            "transformer: LeGrad needs global attention over one grid of patches in every block"
        )


def has_pooler(trunk: Any) -> bool:
    """Whether the image feature comes out of an attentional pooler."""
    return trunk.attn_pool is not None if hasattr(trunk, "attn_pool") else False


def pooler_prefix(trunk: Any) -> int:
    """How many prefix tokens the pooler attends to: Eva's sees them all, the plain ViT's only on request."""
    sees_prefix = type(trunk).__name__ == "Eva" or getattr(trunk, "pool_include_prefix", False)
    return int(trunk.num_prefix_tokens) if sees_prefix else 0


def native_head(trunk: Any, tokens: Tensor) -> Tensor:
    """The trunk's own complete head on block tokens."""
    result: Tensor = trunk.forward_head(trunk.norm(tokens))
    return result


def published_head(trunk: Any, tokens: Tensor) -> Tensor:
    """The authors' read-out: pooler straight on the tokens, else the mean over all tokens, then norms and head."""
    if has_pooler(trunk):
        result: Tensor = trunk.forward_head(tokens)
    else:
        result = trunk.head(trunk.head_drop(trunk.fc_norm(trunk.norm(tokens.mean(1)))))
    return result


def grid(trunk: Any) -> tuple[int, int]:
    """(rows, cols) at the trunk's own input size."""
    rows, cols = trunk.patch_embed.grid_size
    return int(rows), int(cols)


def patch_size(trunk: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Pixels per patch; for a convolutional stem the whole stem's stride."""
    rows, cols = grid(trunk)
    if type(trunk.patch_embed).__name__ == "PatchEmbed":
        height, width = trunk.patch_embed.patch_size
        return int(height), int(width)
    return image_size[0] // rows, image_size[1] // cols


def switches(trunk: nn.Module) -> tuple[tuple[Any, str, Any], ...]:
    """Attributes to set during a call: no checkpointing, fused attention wherever a module has the choice."""
    found = [(module, "fused_attn", True) for module in trunk.modules() if getattr(module, "fused_attn", True) is False]
    return (*found, *([(trunk, "grad_checkpointing", False)] if hasattr(trunk, "grad_checkpointing") else []))


def sharing_copy(model: nn.Module) -> Any:
    """A copy of the module tree that shares every parameter with the original; buffers are copied."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def set_size(trunk: Any, size: tuple[int, int]) -> None:
    """timm's own means to change the input size, in place: use it on a ``sharing_copy``.

    Raises:
        InputError: a trunk of fixed size, or sides that a convolutional stem would round.
    """
    stride = patch_size(trunk, trunk.patch_embed.img_size)
    if type(trunk.patch_embed).__name__ != "PatchEmbed" and any(a % b for a, b in zip(size, stride, strict=True)):
        raise InputError(f"this tower has a convolutional stem: sides must be multiples of {stride}, got {size}")
    if not hasattr(trunk, "set_input_size"):
        raise InputError(
            f"{type(trunk).__name__} takes pictures of {trunk.patch_embed.img_size} pixels only; leave size=None"
        )
    trunk.set_input_size(img_size=size)
