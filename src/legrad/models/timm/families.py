"""timm's vision transformers -> ``ViTAnatomy``: one builder per kind of architecture."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.models.resizing import Size, pair, resampled, sharing_copy
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
    if not getattr(model, "global_pool", "token"):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has global_pool='' and returns all tokens, no single feature; build it with "
            "global_pool='avg' (or 'token')"
        )
    return builder(model)


def _what(kinds: list[str]) -> str:
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
    known = get_pretrained_cfg(name, allow_unregistered=False)
    count = getattr(model, "num_classes", 0)
    named = config.get("label_names") or infer_imagenet_subset({"num_classes": count})
    return known is not None and known.num_classes == count != 0 and not named


def _output(model: Any) -> Literal["embedding", "logits", "feature"]:
    if not getattr(model, "num_classes", 0):
        return "feature"
    return "embedding" if is_projection(model) else "logits"


def _readouts(native: Function, published: Function) -> Mapping[str, Readout]:
    return {"native": Readout(native), "published": Readout(published)}


def _configured_size(model: Any, patch: Size, default: Size) -> Size:
    """(height, width) of the pretrained configuration, in whole patches: for models without a size of their own."""
    config = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size") or (3, *default))[1:]
    rows, cols = (max(1, side // step) for side, step in zip(size, patch, strict=True))
    return rows * patch[0], cols * patch[1]


def _whole_patches(model: nn.Module, size: Size, step: Size) -> None:
    if size[0] % step[0] or size[1] % step[1]:
        raise InputError(f"{type(model).__name__} takes sides that are multiples of {step}, got {size}")


# -- blocks of self-attention ---------------------------------------------------------------------------------------


def _tower(model: Any, image_size: Size, grid: Size, patch: Size, resized: Callable[[Size], ViTAnatomy]) -> ViTAnatomy:
    """What the plain transformers have in common: ``blocks``, ``norm``, ``forward_head``."""
    pooled = trunks.has_pooler(model)
    if pooled and getattr(model.attn_pool, "pool", "token") == "avg":
        raise UnsupportedModelError(f"{type(model.attn_pool).__name__} with several averaged queries is not supported")
    prefix = int(model.num_prefix_tokens)
    attentions, taps = (1, (0,)) if pooled else trunks.taps(model.blocks[0])
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
        default_readout="published" if model.global_pool == "token" and not pooled else "native",
        output=_output(model),
        at_size=resized,
        route="pooler" if pooled else "self-attention",
        attentions=attentions,
        explained_attentions=taps,
        num_prefix_keys=trunks.pooler_prefix(model) if pooled else -1,
        call_settings=trunks.switches(model),
        shape=(_channels(model), *image_size),
        notes=_notes(attentions, taps),
    )


def _channels(model: Any) -> int:
    """Input channels; older timm does not keep them."""
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    return int(getattr(model, "in_chans", first))


def _notes(attentions: int, taps: tuple[int, ...]) -> tuple[str, ...]:
    if attentions == 1:
        return ()
    if len(taps) == 1:
        return ("differential attention: the map is that of A = A1 - lambda A2",)
    return (f"{attentions} attentions side by side in a block: their relevances are averaged",)


def _vit(model: Any) -> ViTAnatomy:
    """VisionTransformer, Eva, Beit and their kin, with flat patches or a convolutional stem."""
    image_size = pair(model.patch_embed.img_size)
    patch = trunks.patch_size(model, image_size)

    def resized(size: Size) -> ViTAnatomy:
        if getattr(model, "dynamic_img_size", False):
            if not (trunks.is_flat(model) and model.patch_embed.dynamic_img_pad):
                _whole_patches(model, size, patch)
            return _tower(model, size, pair(model.patch_embed.dynamic_feat_size(size)), patch, resized)
        changed = sharing_copy(model)
        trunks.set_size(changed, size)
        return _vit(changed)

    return _tower(model, image_size, trunks.grid(model), patch, resized)


def _naflex(model: Any) -> ViTAnatomy:
    """NaFlexVit, fed with images: any size in whole patches."""
    patch = pair(model.embeds.patch_size)

    def at(size: Size) -> ViTAnatomy:
        if not model.embeds.dynamic_img_pad:
            _whole_patches(model, size, patch)
        return _tower(model, size, pair(model.embeds.dynamic_feat_size(size)), patch, at)

    return at(_configured_size(model, patch, (24 * patch[0], 24 * patch[1])))


def _on_whole_grid(native: Function) -> Function:
    """The published read-out for heads that look at the grid: the mean over all tokens, at every place of it."""
    return lambda tokens: native(tokens.mean(1, keepdim=True).expand_as(tokens))


def _sam(model: Any) -> ViTAnatomy:
    """Segment Anything's encoder: its global blocks only, the others attend within windows."""
    chosen = tuple(block for block in model.blocks if not block.window_size)
    if not chosen or chosen[-1] is not model.blocks[-1]:
        raise UnsupportedModelError("this VisionTransformerSAM does not end in a block of global attention")
    patch = pair(model.patch_embed.patch_size)
    own = pair(model.patch_embed.img_size)

    def at(size: Size) -> ViTAnatomy:
        grid = pair(model.patch_embed.dynamic_feat_size(size))

        def native(tokens: Tensor) -> Tensor:
            pooled = model.neck(tokens.unflatten(1, grid).permute(0, 3, 1, 2))
            result: Tensor = model.forward_head(pooled)
            return result

        def lay(keys: Tensor, tap: int) -> Tensor:
            # heads are folded into the batch
            return keys.unflatten(0, (-1, chosen[0].attn.num_heads)).mean(1).unflatten(-1, grid)

        def resized(size: Size) -> ViTAnatomy:
            if model.rope_global is not None:
                raise InputError(f"this VisionTransformerSAM takes images of {own} pixels only; leave size=None")
            _whole_patches(model, size, patch)
            return at(size)

        return ViTAnatomy(
            library="timm",
            tower=model,
            run=model,
            blocks=chosen,
            image_size=size,
            patch_size=patch,
            grid=grid,
            num_prefix_tokens=0,
            readouts=_readouts(native, _on_whole_grid(native)),
            default_readout="native",
            output=_output(model),
            at_size=resized,
            keys_to_grid=lay,
            to_tokens=lambda output: output.flatten(1, 2),
            call_settings=trunks.switches(model),
            notes=("only the blocks of global attention are explained, the others attend within windows",),
        )

    return at(own)


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
    merged = getattr(projector, "merge_size", 1)
    norm = getattr(encoder, "norm", None) or nn.Identity()

    def at(size: Size) -> ViTAnatomy:
        _whole_patches(model, size, (merged * patch[0], merged * patch[1]))
        grid = (size[0] // patch[0], size[1] // patch[1])

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
            grid=grid,
            num_prefix_tokens=0,
            readouts=_readouts(native, _on_whole_grid(native)),
            default_readout="native",
            output=_output(model),
            at_size=at,
            call_settings=(*trunks.switches(model), (encoder, "grad_checkpointing", False)),
        )

    return at(_configured_size(model, (merged * patch[0], merged * patch[1]), (768, 768)))


# -- class attention as a pooler ------------------------------------------------------------------------------------


def _cait(model: Any) -> ViTAnatomy:
    """CaiT: the class token is updated, the patches stay."""
    image_size, patch = pair(model.patch_embed.img_size), pair(model.patch_embed.patch_size)

    def attend(tokens: Tensor) -> Tensor:
        first = model.cls_token.expand(len(tokens), -1, -1)
        for block in model.blocks_token_only:
            first = block(tokens, first)
        return torch.cat([first, tokens], 1)

    def resized(size: Size) -> ViTAnatomy:
        changed = sharing_copy(model)
        changed.patch_embed.set_input_size(img_size=size)
        old, new = trunks.grid(model), trunks.grid(changed)
        changed.pos_embed = nn.Parameter(resampled(model.pos_embed[0], old, new, 0)[None], requires_grad=False)
        return _cait(changed)

    stage = model.blocks_token_only
    return _class_attention(model, stage, attend, image_size, trunks.grid(model), patch, resized)


def _xcit(model: Any) -> ViTAnatomy:
    """XCiT: attention between channels in the blocks, so only its class attention can be explained. Any size."""
    patch = pair(model.patch_embed.patch_size)

    def attend(tokens: Tensor) -> Tensor:
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        for block in model.cls_attn_blocks:
            tokens = block(tokens)
        return tokens

    def at(size: Size) -> ViTAnatomy:
        _whole_patches(model, size, patch)
        grid = (size[0] // patch[0], size[1] // patch[1])
        return _class_attention(model, model.cls_attn_blocks, attend, size, grid, patch, at)

    return at(pair(model.patch_embed.img_size))


def _class_attention(
    model: Any,
    stage: nn.ModuleList | None,
    attend: Function,
    image_size: Size,
    grid: Size,
    patch: Size,
    resized: Callable[[Size], ViTAnatomy],
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
        at_size=resized,
        route="pooler",
        attentions=len(stage),
        explained_attentions=tuple(range(len(stage))),
        num_prefix_keys=1,
        call_settings=trunks.switches(model, stage),
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
