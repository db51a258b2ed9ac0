"""Parts of timm's plain vision transformers, alone or as the trunk of another library's tower."""

import inspect
from typing import Any

from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models.anatomy import published

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


def has_own_forward(trunk: Any) -> bool:
    """Whether a plain ViT is of a user's subclass, or got a function, that replaces a step of timm's forward."""
    kinds = [kind.__name__ for kind in type(trunk).__mro__ if kind.__module__.startswith("timm.")]
    steps = [getattr(trunk, step, None) for step in ("forward", "forward_features", "forward_head", "pool")]
    # wrappers that leave the function what it is, of accelerate for instance, are looked through
    plain = [inspect.unwrap(getattr(step, "__func__", step)) for step in steps if step is not None]
    modules = [str(getattr(step, "__module__", "timm.")) for step in plain]
    return bool(set(kinds) & set(PLAIN_CLASSES)) and not all(module.startswith("timm.") for module in modules)


def has_pooler(trunk: Any) -> bool:
    """Whether the image feature comes out of an attentional pooler."""
    return trunk.attn_pool is not None if hasattr(trunk, "attn_pool") else False


def pooler_prefix(trunk: Any) -> int:
    """How many prefix tokens the pooler attends to: Eva's sees them all, the plain ViT's only on request."""
    is_eva = any(kind.__name__ == "Eva" for kind in type(trunk).__mro__)
    sees_prefix = is_eva or getattr(trunk, "pool_include_prefix", False)
    return int(trunk.num_prefix_tokens) if sees_prefix else 0


def native_head(trunk: Any, tokens: Tensor) -> Tensor:
    """The trunk's own complete head on block tokens."""
    result: Tensor = trunk.forward_head(trunk.norm(tokens))
    return result


def published_head(trunk: Any, tokens: Tensor) -> Tensor:
    """The authors' read-out: the pooler on the tokens without the final norm, else ``anatomy.published``."""
    if has_pooler(trunk):
        result: Tensor = trunk.forward_head(tokens)
        return result
    return published(lambda mean: native_head(trunk, mean), int(trunk.num_prefix_tokens))(tokens)


def grid(trunk: Any) -> Size:
    """(rows, cols) at the trunk's own input size."""
    return pair(trunk.patch_embed.grid_size)


def is_flat(trunk: Any) -> bool:
    """Whether patches are embedded by a single convolution, without a stem."""
    return any(kind.__name__ == "PatchEmbed" for kind in type(trunk.patch_embed).__mro__)


def patch_size(trunk: Any, image_size: Size) -> Size:
    """Pixels per patch; for a convolutional stem the whole stem's stride."""
    rows, cols = grid(trunk)
    if is_flat(trunk):
        return pair(trunk.patch_embed.patch_size)
    return image_size[0] // rows, image_size[1] // cols


def explained_attentions(block: Any) -> tuple[int, tuple[int, ...]]:
    """How many attentions a block runs, and the indices of those that make its map.

    Parallel attentions are averaged. Differential attention is A = A1 - lambda A2 on one V, so O = O1 - lambda O2: the
    gradient at O1 gives dS/dA, the second attention adds nothing.
    """
    if hasattr(block, "attns"):
        return len(block.attns), tuple(range(len(block.attns)))
    differential = any(type(part).__name__.startswith("Diff") for part in (block, getattr(block, "attn", None)))
    return (2, (0,)) if differential else (1, (0,))


def call_settings(trunk: nn.Module, *parts: nn.Module) -> tuple[tuple[Any, str, Any], ...]:
    """``ViTAnatomy.call_settings``: no checkpointing; fused attention in ``parts``, by default everywhere."""
    modules = [module for part in parts or (trunk,) for module in part.modules()]
    fused = [(module, "fused_attn", True) for module in modules if getattr(module, "fused_attn", True) is False]
    owners = [trunk] if hasattr(trunk, "grad_checkpointing") else []
    return (*fused, *((owner, "grad_checkpointing", False) for owner in owners))


def set_size(trunk: Any, size: Size) -> None:
    """Change the input size in place by timm's own method; for a ``sharing_copy``.

    Raises:
        InputError: a trunk of fixed size, or sides that a convolutional stem would round.
    """
    stride = patch_size(trunk, trunk.patch_embed.img_size)
    if type(trunk.patch_embed).__name__ != "PatchEmbed" and any(a % b for a, b in zip(size, stride, strict=True)):
        raise InputError(f"this tower has a convolutional stem: sides must be multiples of {stride}, got {size}")
    if not hasattr(trunk, "set_input_size"):
        raise InputError(
            f"{type(trunk).__name__} takes images of {trunk.patch_embed.img_size} pixels only; leave size=None"
        )
    trunk.set_input_size(img_size=size)
