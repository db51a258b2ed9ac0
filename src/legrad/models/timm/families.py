"""timm's vision transformers -> ``ViTAnatomy``: one builder per kind of architecture."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models.anatomy import Readout, ViTAnatomy, published_on_grid
from legrad.models.checks import holds_matrix
from legrad.models.resizing import patch_counts, resampled, sharing_copy
from legrad.models.timm import trunk as trunks

Function = Callable[[Tensor], Tensor]


def describe(model: nn.Module) -> ViTAnatomy:
    """The anatomy of a timm model at its own input size.

    Raises:
        UnsupportedModelError: a convolutional, windowed or hierarchical network, or a head that keeps all tokens.
    """
    kinds = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("timm.")]
    builder = next((BUILDERS[kind] for kind in kinds if kind in BUILDERS), None)
    if builder is None:
        raise UnsupportedModelError(
            f"timm's {type(model).__name__} is {_what(kinds)}: LeGrad needs global attention over one grid of patches"
        )
    if getattr(model, "global_pool", "token") == "":
        raise UnsupportedModelError(
            f"this {type(model).__name__} has global_pool='' and returns all tokens, no single feature; build it with "
            "global_pool='avg' (or 'token')"
        )
    return builder(model)


def _what(kinds: list[str]) -> str:
    """What a network without a builder is, for a message."""
    if any(kind.endswith("VitEncoder") for kind in kinds):
        return "an encoder for a language model, which returns many tokens (its classifier without '_enc' is supported)"
    return "no plain vision transformer but a convolutional, windowed, hierarchical or otherwise special network"


def is_projection(model: Any) -> bool:
    """Whether the head projects into a space shared with texts (CLIP, PE-Core, ViTamin): by timm's own weight names."""
    from timm.data import infer_imagenet_subset
    from timm.models import get_pretrained_cfg

    config = getattr(model, "pretrained_cfg", None) or {}
    name = f"{config.get('architecture')}.{config.get('tag')}"
    if not config.get("tag") or not ("clip" in name or "pe_core" in name):
        return False
    registered = get_pretrained_cfg(name, allow_unregistered=False)
    count = getattr(model, "num_classes", 0)
    has_labels = config.get("label_names") or infer_imagenet_subset({"num_classes": count})
    width = getattr(getattr(model, "head", None), "out_features", count)
    return registered is not None and registered.num_classes == count == width != 0 and not has_labels


def _output(model: Any) -> Literal["embedding", "logits", "feature"]:
    """By the head that is there: users replace it, and ``num_classes`` does not follow."""
    heads = [getattr(model, name, None) for name in ("head", "head_dist")]
    if not any(map(holds_matrix, heads)):
        return "feature"
    return "embedding" if is_projection(model) else "logits"


def _readouts(native: Function, published: Function) -> Mapping[str, Readout]:
    return {"native": Readout(native), "published": Readout(published)}


def _configured_size(model: Any, patch: Size, default: Size) -> Size:
    """(height, width) of the pretrained configuration, in whole patches: for models that are built without a size."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size") or (3, *default))[1:]
    rows, cols = (max(1, side // step) for side, step in zip(size, patch, strict=True))
    return rows * patch[0], cols * patch[1]


def _check_multiples(model: nn.Module, size: Size, step: Size) -> None:
    if size[0] % step[0] or size[1] % step[1]:
        raise InputError(f"{type(model).__name__} takes sides that are multiples of {step}, got {size}")


# -- blocks of self-attention ---------------------------------------------------------------------------------------


def _tower(model: Any, image_size: Size, grid: Size, patch: Size, at_size: Callable[[Size], ViTAnatomy]) -> ViTAnatomy:
    """What the plain transformers have in common: ``blocks``, ``norm``, ``forward_head``."""
    has_pooler = trunks.has_pooler(model)
    if has_pooler and getattr(model.attn_pool, "pool", "token") == "avg":
        raise UnsupportedModelError(f"{type(model.attn_pool).__name__} with several averaged queries is not supported")
    prefix = int(model.num_prefix_tokens)
    attentions, explained = (1, (0,)) if has_pooler else trunks.explained_attentions(model.blocks[0])
    return ViTAnatomy(
        library="timm",
        tower=model,
        run=model,
        blocks=tuple(model.blocks),
        image_size=image_size,
        patch_size=patch,
        grid=grid,
        num_prefix_tokens=prefix,
        readouts=_readouts(
            lambda tokens: trunks.native_head(model, tokens),
            lambda tokens: trunks.published_head(model, tokens),
        ),
        default_readout=None if model.global_pool == "token" and not has_pooler else "native",
        output=_output(model),
        at_size=at_size,
        route="pooler" if has_pooler else "self-attention",
        attentions=attentions,
        explained_attentions=explained,
        num_prefix_keys=trunks.pooler_prefix(model) if has_pooler else -1,
        call_settings=trunks.call_settings(model),
        shape=(_channels(model), *image_size),
        notes=_notes(attentions, explained),
    )


def _channels(model: Any) -> int:
    """Number of input channels; older timm does not keep it."""
    of_convolution = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    return int(getattr(model, "in_chans", of_convolution))


def _notes(attentions: int, explained: tuple[int, ...]) -> tuple[str, ...]:
    if attentions == 1:
        return ()
    if len(explained) == 1:
        return ("differential attention: the map is that of A = A1 - lambda A2",)
    return (f"{attentions} attentions side by side in a block: their relevances are averaged",)


def _vit(model: Any) -> ViTAnatomy:
    """VisionTransformer, Eva, Beit and their kin, with flat patches or a convolutional stem."""
    image_size = pair(model.patch_embed.img_size)
    patch = trunks.patch_size(model, image_size)

    def at_size(size: Size) -> ViTAnatomy:
        if getattr(model, "dynamic_img_size", False):
            if not (trunks.is_flat(model) and model.patch_embed.dynamic_img_pad):
                _check_multiples(model, size, patch)
            return _tower(model, size, pair(model.patch_embed.dynamic_feat_size(size)), patch, at_size)
        copy = sharing_copy(model)
        trunks.set_size(copy, size)
        return _vit(copy)

    return _tower(model, image_size, trunks.grid(model), patch, at_size)


def _naflex(model: Any) -> ViTAnatomy:
    """NaFlexVit, fed with images: any size in whole patches."""
    patch = pair(model.embeds.patch_size)

    def at(size: Size) -> ViTAnatomy:
        if not model.embeds.dynamic_img_pad:
            _check_multiples(model, size, patch)
        return _tower(model, size, pair(model.embeds.dynamic_feat_size(size)), patch, at)

    return at(_configured_size(model, patch, (24 * patch[0], 24 * patch[1])))


def _sam(model: Any) -> ViTAnatomy:
    """Segment Anything's encoder: its global blocks only, the others attend within windows."""
    global_blocks = tuple(block for block in model.blocks if not block.window_size)
    if not global_blocks or global_blocks[-1] is not model.blocks[-1]:
        raise UnsupportedModelError("this VisionTransformerSAM does not end in a block of global attention")
    patch = pair(model.patch_embed.patch_size)
    model_size = pair(model.patch_embed.img_size)

    def at(size: Size) -> ViTAnatomy:
        grid = pair(model.patch_embed.dynamic_feat_size(size))

        def native(tokens: Tensor) -> Tensor:
            features = model.neck(tokens.unflatten(1, grid).permute(0, 3, 1, 2))
            result: Tensor = model.forward_head(features)
            return result

        def keys_to_grid(keys: Tensor, index: int) -> Tensor:
            # heads are folded into the batch
            return keys.unflatten(0, (-1, global_blocks[0].attn.num_heads)).mean(1).unflatten(-1, grid)

        def at_size(size: Size) -> ViTAnatomy:
            if model.rope_global is not None:
                raise InputError(f"this VisionTransformerSAM takes images of {model_size} pixels only; leave size=None")
            _check_multiples(model, size, patch)
            return at(size)

        return ViTAnatomy(
            library="timm",
            tower=model,
            run=model,
            blocks=global_blocks,
            image_size=size,
            patch_size=patch,
            grid=grid,
            num_prefix_tokens=0,
            readouts=_readouts(native, published_on_grid(native)),
            default_readout="native",
            output=_output(model),
            at_size=at_size,
            keys_to_grid=keys_to_grid,
            to_tokens=lambda output: output.flatten(1, 2),
            call_settings=trunks.call_settings(model),
            notes=("only the blocks of global attention are explained, the others attend within windows",),
        )

    return at(model_size)


def _classifier_of_encoder(model: Any) -> ViTAnatomy:
    """DeepSeek's, Gemma's and Qwen's vision towers as timm's classifiers, with or without their merging projector."""
    encoder = model.encoder
    if getattr(model, "encoder_pool", "") == "soft":
        raise UnsupportedModelError(
            f"{type(model).__name__} with encoder_pool='soft' pools patches before its head, which is not supported; "
            "build it with encoder_pool=''"
        )
    patch = pair(getattr(encoder, "patch_size", None) or encoder.patch_embed.patch_size)
    projector = getattr(encoder, "aligner", None) or getattr(encoder, "merger", None)
    merge = getattr(projector, "merge_size", 1)  # patches of a side that the projector joins
    norm = getattr(encoder, "norm", None) or nn.Identity()

    def at(size: Size) -> ViTAnatomy:
        _check_multiples(model, size, (merge * patch[0], merge * patch[1]))
        grid = patch_counts(size, patch)

        def native(tokens: Tensor) -> Tensor:
            tokens = norm(tokens)
            result: Tensor = model.forward_head(projector(tokens.unflatten(1, grid)) if projector else tokens)
            return result

        return ViTAnatomy(
            library="timm",
            tower=model,
            run=model,
            blocks=tuple(encoder.blocks),
            image_size=size,
            patch_size=patch,
            num_prefix_tokens=0,
            readouts=_readouts(native, published_on_grid(native)),
            default_readout="native",
            output=_output(model),
            at_size=at,
            call_settings=(*trunks.call_settings(model), (encoder, "grad_checkpointing", False)),
        )

    return at(_configured_size(model, (merge * patch[0], merge * patch[1]), (768, 768)))


# -- class attention as a pooler ------------------------------------------------------------------------------------


def _cait(model: Any) -> ViTAnatomy:
    """CaiT: the class token is updated, the patches stay."""
    image_size, patch = pair(model.patch_embed.img_size), pair(model.patch_embed.patch_size)

    def attend(tokens: Tensor) -> Tensor:
        class_token = model.cls_token.expand(len(tokens), -1, -1)
        for block in model.blocks_token_only:
            class_token = block(tokens, class_token)
        return torch.cat([class_token, tokens], 1)

    def at_size(size: Size) -> ViTAnatomy:
        copy = sharing_copy(model)
        copy.patch_embed.set_input_size(img_size=size)
        old, new = trunks.grid(model), trunks.grid(copy)
        copy.pos_embed = nn.Parameter(resampled(model.pos_embed[0], old, new, 0)[None], requires_grad=False)
        return _cait(copy)

    stage = model.blocks_token_only
    return _class_attention(model, stage, attend, image_size, trunks.grid(model), patch, at_size)


def _xcit(model: Any) -> ViTAnatomy:
    """XCiT: attention between channels in the blocks, so only its class attention can be explained. Any size."""
    patch = pair(model.patch_embed.patch_size)

    def attend(tokens: Tensor) -> Tensor:
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        for block in model.cls_attn_blocks:
            tokens = block(tokens)
        return tokens

    def at(size: Size) -> ViTAnatomy:
        _check_multiples(model, size, patch)
        grid = patch_counts(size, patch)
        return _class_attention(model, model.cls_attn_blocks, attend, size, grid, patch, at)

    return at(pair(model.patch_embed.img_size))


def _class_attention(
    model: Any,
    stage: nn.ModuleList | None,
    attend: Function,
    image_size: Size,
    grid: Size,
    patch: Size,
    at_size: Callable[[Size], ViTAnatomy],
) -> ViTAnatomy:
    """Blocks over patches, then a stage in which one class token attends to them: explained like a pooler.

    ``attend`` runs the stage, (batch, patches, dim) -> (batch, 1 + patches, dim). Its attentions come one after the
    other; their relevances are averaged.
    """
    if stage is None or model.global_pool != "token":
        raise UnsupportedModelError(
            f"this {type(model).__name__} does not read its class-attention stage; build it with global_pool='token'"
        )

    def native(tokens: Tensor) -> Tensor:
        result: Tensor = model.forward_head(model.norm(attend(tokens)))
        return result

    return ViTAnatomy(
        library="timm",
        tower=model,
        run=model,
        blocks=tuple(model.blocks),
        image_size=image_size,
        patch_size=patch,
        grid=grid,
        num_prefix_tokens=0,
        readouts=_readouts(native, native),
        default_readout="native",
        output=_output(model),
        at_size=at_size,
        route="pooler",
        attentions=len(stage),
        explained_attentions=tuple(range(len(stage))),
        num_prefix_keys=1,
        call_settings=trunks.call_settings(model, stage),
        notes=("explained through the class-attention stage on every block's tokens; its attentions are averaged",),
    )


BUILDERS: dict[str, Callable[[Any], ViTAnatomy]] = {
    **dict.fromkeys(trunks.PLAIN_CLASSES, _vit),
    "NaFlexVit": _naflex,
    "VisionTransformerSAM": _sam,
    "Cait": _cait,
    "Xcit": _xcit,
    "DeepseekVitClassifier": _classifier_of_encoder,
    "Gemma4VitClassifier": _classifier_of_encoder,
    "Qwen3VitClassifier": _classifier_of_encoder,
}
# timm's files whose models are of these classes
MODULES = trunks.PLAIN_MODULES | {
    *("naflexvit", "vision_transformer_sam", "cait", "xcit"),
    *("deepseek_vit", "gemma4_vit", "qwen3_vit"),
}
