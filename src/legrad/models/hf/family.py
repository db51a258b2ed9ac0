"""``Family``, the facts by which models of transformers differ, and the ``ViTAnatomy`` that follows from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.checks import holds_matrix

LIBRARY = "transformers"
# where the blocks are; it differs between classes, and has changed between versions of transformers 5
_BLOCKS = ("encoder.layers", "encoder.layer", "layers", "layer", "model.layer")


class Tower(nn.Module):
    """A vision tower and the heads behind it, without the rest of the model (text tower, decoder)."""

    def __init__(self, vision: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.vision_model = vision
        for name, head in heads.items():
            self.add_module(name, head)


@dataclass(frozen=True)
class Family:
    """How the models of one or several classes are built and called.

    Attributes:
        native: (model, vision tower, tokens of the last block) -> the model's result (batch, features), before any L2.
        output: as in ``ViTAnatomy``.
        answer: (model, images, options) -> the same from a plain call of the model.
        vision: model -> its vision tower, the module with the embeddings and the blocks.
        heads: names of the model's modules that follow the tower.
        prefix: (configuration) -> number of class and register tokens in front of the patches.
        averaged: (configuration) -> whether the model averages its patches instead of reading a class token.
        pooler: (model, vision tower, tokens) -> the authors' read-out of an attentional pooler; None without one.
        sizes: whether the model takes images of another size: "option", with ``interpolate_pos_encoding``; "table", it
            interpolates its table of positions unasked; "free", it has no table; "whole", no table, whole patches only;
            "fixed", no.
        eager: attention is written out, although ``_supports_sdpa`` of these models is True.
        options: (vision tower, images) -> more keyword arguments of the call.
        size: (configuration) -> int or (height, width) of the input.
        call_settings: vision tower -> more (owner, attribute, value) during a call.
        suffix: (configuration) -> number of tokens after the patches.
    """

    native: Callable[[Any, Any, Tensor], Tensor]
    output: Literal["embedding", "logits", "feature"]
    answer: Callable[[Any, Tensor, dict[str, Any]], Tensor]
    vision: Callable[[Any], Any] = lambda model: model
    heads: tuple[str, ...] = ()
    prefix: Callable[[Any], int] = lambda config: 1
    averaged: Callable[[Any], bool] = lambda config: False
    pooler: Callable[[Any, Any, Tensor], Tensor] | None = None
    sizes: Literal["option", "table", "free", "whole", "fixed"] = "option"
    eager: bool = False
    options: Callable[[Any, Tensor], dict[str, Any]] = lambda vision, images: {}
    size: Callable[[Any], Any] = lambda config: config.image_size
    call_settings: Callable[[Any], tuple[tuple[Any, str, Any], ...]] = lambda vision: ()
    suffix: Callable[[Any], int] = lambda config: 0


def core(model: Any) -> Any:
    """The module with embeddings and blocks, which transformers 5.0 wraps once more than later versions."""
    while isinstance(inner := getattr(model, "vision_model", None), nn.Module):
        model = inner
    return model


def blocks_of(tower: Any) -> tuple[nn.Module, ...]:
    """The transformer blocks."""
    for path in _BLOCKS:
        try:
            blocks = tower.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(blocks, nn.ModuleList):
            return tuple(blocks)
    raise UnsupportedModelError(
        f"{type(tower).__name__} keeps its blocks in none of {', '.join(_BLOCKS)}: this version of transformers is "
        "not known; describe the model yourself with legrad.wrap(model, anatomy=...)"
    )


def first(output: Any) -> Tensor:
    """Tokens of a block that returns a tensor or a tuple."""
    return output[0] if isinstance(output, tuple) else output


def pooled(output: Any) -> Tensor:
    """The feature in what ``get_image_features`` and its like return: a tensor itself in early versions of 5."""
    return output if isinstance(output, Tensor) else output.pooler_output


def sdpa_settings(tower: nn.Module) -> tuple[tuple[Any, str, Any], ...]:
    """Call settings for SDPA attention in every part of the tower.

    They set the private attribute, because the public setter also overwrites sub-configurations.
    """
    configs = _configurations(tower, "_attn_implementation")
    return tuple((config, "_attn_implementation_internal", "sdpa") for config in configs)


def output_settings(model: nn.Module) -> tuple[tuple[Any, str, Any], ...]:
    """Call settings for outputs with names in every part of the model, also where a user set plain tuples."""
    return tuple((config, "return_dict", True) for config in _configurations(model, "return_dict"))


def _configurations(model: nn.Module, attribute: str) -> list[Any]:
    """The configurations of a model's modules that have an attribute, each once."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in configs if hasattr(config, attribute)}.values())


def _output(family: Family, model: Any) -> Literal["embedding", "logits", "feature"]:
    """A classifier whose heads a user took away gives features."""
    has_head = any(holds_matrix(getattr(model, name)) for name in family.heads)
    return "feature" if family.output == "logits" and not has_head else family.output


def describe(family: Family, model: Any) -> ViTAnatomy:
    """The anatomy of a model of this family, at the size in its configuration."""
    vision = family.vision(model)
    config = vision.config
    patch, image_size = pair(config.patch_size), pair(family.size(config))
    tower = Tower(vision, {name: getattr(model, name) for name in family.heads}) if family.heads else vision
    prefix = family.prefix(config)
    uses_sdpa = bool(model._supports_sdpa) and not family.eager

    def native(tokens: Tensor) -> Tensor:
        return family.native(model, vision, tokens)

    def pooler(tokens: Tensor) -> Tensor:
        assert family.pooler is not None
        return family.pooler(model, vision, tokens)

    def run(images: Tensor, **options: Any) -> Tensor:
        return family.answer(model, images, options | family.options(vision, images))

    anatomy = ViTAnatomy(
        library=LIBRARY,
        tower=tower,
        run=run,
        blocks=blocks_of(vision),
        image_size=image_size,
        patch_size=patch,
        num_prefix_tokens=prefix,
        readouts={
            "native": Readout(native),
            "published": Readout(pooler if family.pooler else published(native, prefix)),
        },
        default_readout="native" if family.averaged(config) or family.pooler else None,
        output=_output(family, model),
        at_size=lambda size: _at_size(anatomy, size, family.sizes, run),
        route="self-attention" if family.pooler is None else "pooler",
        attention="fused" if uses_sdpa else "softmax",
        to_tokens=first,
        num_suffix_keys=family.suffix(config),
        call_settings=(
            *(sdpa_settings(tower) if uses_sdpa else ()),
            *output_settings(model),
            *family.call_settings(vision),
        ),
    )
    return anatomy


def _at_size(base: ViTAnatomy, size: Size, sizes: str, run: Callable[..., Tensor]) -> ViTAnatomy:
    """The same model for another input size.

    Raises:
        InputError: a model of fixed size, or one whose positions the library would interpolate as if they were square.
    """
    if size == base.image_size:
        return base
    name = type(core(base.tower)).__name__
    if sizes == "fixed":
        raise InputError(f"{name} takes images of {base.image_size} pixels only, got {size}; leave size=None")
    if sizes in ("option", "table") and base.grid[0] != base.grid[1]:
        raise InputError(
            f"transformers interpolates positions of square grids only, and {name} has one of {base.grid}: it takes "
            f"images of {base.image_size} pixels only, got {size}; leave size=None"
        )
    if sizes == "whole" and (size[0] % base.patch_size[0] or size[1] % base.patch_size[1]):
        raise InputError(f"{name} takes sides that are multiples of {base.patch_size}, got {size}")
    options = {"interpolate_pos_encoding": True} if sizes == "option" else {}
    return replace(
        base,
        image_size=size,
        run=lambda images: run(images, **options),
        at_size=lambda other: _at_size(base, other, sizes, run),
    )
