"""Video transformers of transformers: VideoMAE, ViViT, V-JEPA 2, TimeSformer. Input is (batch, frames, 3, H, W)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.checks import holds_matrix
from legrad.models.hf.family import LIBRARY, first, output_settings, sdpa_settings
from legrad.models.hf.video_processors import transform as transform
from legrad.models.resizing import patch_counts

Function = Callable[[Tensor], Tensor]


def fixed_size(model: nn.Module, model_size: Size) -> Callable[[Size], ViTAnatomy]:
    """``ViTAnatomy.at_size`` of a model whose positions are made for one input size."""

    def at_size(size: Size) -> ViTAnatomy:
        raise InputError(
            f"{type(model).__name__} takes frames of {model_size[0]} x {model_size[1]} pixels only, "
            f"got {size[0]} x {size[1]}: its positions cannot be interpolated; leave size=None"
        )

    return at_size


def _video(
    model: Any,
    blocks: Sequence[nn.Module],
    native: Function,
    *,
    frames: int,
    size: Size,
    patch: Sequence[int],
    prefix: int,
    output: Callable[[Any], Tensor],
    inputs: str = "pixel_values",
    published_readout: Function | None = None,
    settings: tuple[tuple[Any, str, Any], ...] = (),
    **changes: Any,
) -> ViTAnatomy:
    """What all families share.

    Args:
        model: the model.
        blocks: its transformer blocks.
        native: tokens of the last block -> the model's result.
        frames: number of frames of the input.
        size: (height, width) of a frame.
        patch: (frames, height, width) of a patch.
        prefix: tokens in front of the patches.
        output: what a call of the model returns -> its result.
        inputs: name of the call's argument.
        published_readout: default as of ``anatomy.published``.
        settings: call settings besides those for outputs.
        changes: more fields of the anatomy.
    """
    patch_frames, *sides = patch
    arguments = {"skip_predictor": True} if hasattr(model, "predictor") else {"return_dict": True}
    return ViTAnatomy(
        library=LIBRARY,
        tower=model,
        run=lambda batch: output(model(**{inputs: batch}, **arguments)),
        blocks=tuple(blocks),
        image_size=size,
        patch_size=(sides[0], sides[1]),
        grid=(frames // patch_frames, size[0] // sides[0], size[1] // sides[1]),
        axes=("frames", "rows", "cols"),
        shape=(frames, 3, *size),
        num_prefix_tokens=prefix,
        num_prefix_keys=prefix,
        readouts={
            "native": Readout(native),
            "published": Readout(published_readout or published(native, prefix)),
        },
        default_readout=None if prefix else "native",
        output="logits" if holds_matrix(getattr(model, "classifier", None)) else "feature",
        at_size=fixed_size(model, size),
        call_settings=(*settings, *output_settings(model)),
        **changes,
    )


def _logits(output: Any) -> Tensor:
    return output.logits


def videomae(model: Any) -> ViTAnatomy:
    """VideoMAE: no prefix, the mean of all tokens (or the first tube's token) goes to the head."""
    trunk, config = getattr(model, "videomae", model), model.config
    norm: Any = trunk.layernorm or nn.Identity()  # None where the mean has a norm of its own

    def native(tokens: Tensor) -> Tensor:
        if trunk is model:
            return norm(tokens).mean(1)
        feature = norm(tokens)[:, 0] if model.fc_norm is None else model.fc_norm(norm(tokens).mean(1))
        return model.classifier(feature)

    return _video(
        model,
        trunk.encoder.layer,
        native,
        frames=config.num_frames,
        size=pair(config.image_size),
        patch=(int(config.tubelet_size), *pair(config.patch_size)),
        prefix=0,
        output=_logits if trunk is not model else lambda output: output.last_hidden_state.mean(1),
        settings=sdpa_settings(model),
    )


def vivit(model: Any) -> ViTAnatomy:
    """ViViT (factorised embedding, joint attention): the class token goes to the head."""
    trunk, config = getattr(model, "vivit", model), model.config

    def native(tokens: Tensor) -> Tensor:
        tokens = trunk.layernorm(tokens)
        if trunk is model:
            return tokens[:, 0] if model.pooler is None else model.pooler(tokens)
        return model.classifier(tokens[:, 0])

    def feature(output: Any) -> Tensor:
        return output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output

    return _video(
        model,
        trunk.layers,
        native,
        frames=config.num_frames,
        size=pair(config.image_size),
        patch=config.tubelet_size,
        prefix=1,
        output=feature if trunk is model else _logits,
        settings=sdpa_settings(model),
    )


def vjepa2(model: Any) -> ViTAnatomy:
    """V-JEPA 2: the classifier pools with self-attention layers and then one cross-attention, which is explained.

    Rotary positions are counted from the config's crop size, so another size would be taken for the wrong places.
    """
    trunk, config = getattr(model, "vjepa2", model), model.config
    norm = trunk.encoder.layernorm
    facts: dict[str, Any] = {
        "frames": config.frames_per_clip,
        "size": pair(config.crop_size),
        "patch": (config.tubelet_size, *pair(config.patch_size)),
        "prefix": 0,
        "inputs": "pixel_values_videos",
        "to_tokens": first,
        "settings": sdpa_settings(model),
    }
    if trunk is model:
        return _video(
            model,
            trunk.encoder.layer,
            lambda tokens: norm(tokens).mean(1),
            output=lambda output: output.last_hidden_state.mean(1),
            **facts,
        )
    num_self_attentions = len(model.pooler.self_attention_layers)
    return _video(
        model,
        trunk.encoder.layer,
        lambda tokens: model.classifier(model.pooler(norm(tokens))),
        # as the authors treat attentional poolers: without the final norm
        published_readout=lambda tokens: model.classifier(model.pooler(tokens)),
        output=_logits,
        route="pooler",
        attentions=num_self_attentions + 1,
        explained_attentions=(num_self_attentions,),
        notes=("the pooler's last attention is explained; its keys were mixed by its self-attention layers",)
        if num_self_attentions
        else (),
        **facts,
    )


def timesformer(model: Any) -> ViTAnatomy:
    """TimeSformer: tokens in the order (row, col, frame) after a class token; attention is written out.

    With divided attention a block attends over time at every place, then over space in every frame: the map is the
    mean of both, each laid on the (frames, rows, cols) grid; the class token's key in every frame is dropped.
    """
    trunk, config = getattr(model, "timesformer", model), model.config
    kind, frames = config.attention_type, config.num_frames
    if kind == "space_only":
        raise UnsupportedModelError(
            f"{type(model).__name__} with attention_type='space_only' answers for every frame alone: explain a model "
            "with 'divided_space_time' or 'joint_space_time'"
        )
    is_divided = kind == "divided_space_time"
    model_size, patch = pair(config.image_size), pair(config.patch_size)

    def native(tokens: Tensor) -> Tensor:
        feature = trunk.layernorm(tokens)[:, 0]
        return feature if trunk is model else model.classifier(feature)

    def keys_to_grid_of(rows: int, cols: int) -> Callable[[Tensor, int], Tensor]:
        def keys_to_grid(keys: Tensor, index: int) -> Tensor:
            if not is_divided:
                return keys[:, 1:].unflatten(1, (rows, cols, frames)).movedim(-1, 1)
            if index == 0:
                return keys.unflatten(0, (-1, rows, cols)).movedim(-1, 1)
            return keys[:, 1:].unflatten(1, (rows, cols)).unflatten(0, (-1, frames))

        return keys_to_grid

    def at_size(size: Size) -> ViTAnatomy:
        rows, cols = patch_counts(size, patch)
        _check_positions(model, (rows, cols), patch_counts(model_size, patch), is_divided)
        return replace(
            anatomy,
            image_size=size,
            shape=(frames, 3, *size),
            grid=(frames, rows, cols),
            keys_to_grid=keys_to_grid_of(rows, cols),
        )

    policy = "every block's map is the mean of its attention over time and its attention over space"
    anatomy = _video(
        model,
        trunk.encoder.layer,
        native,
        frames=frames,
        size=model_size,
        patch=(1, *patch),
        prefix=1,
        output=_logits if trunk is not model else lambda output: output.last_hidden_state[:, 0],
        attention="softmax",
        attentions=2 if is_divided else 1,
        explained_attentions=(0, 1) if is_divided else (0,),
        keys_to_grid=keys_to_grid_of(*patch_counts(model_size, patch)),
        to_tokens=first,
        notes=(policy,) if is_divided else (),
    )
    return replace(anatomy, at_size=at_size)


def _check_positions(model: nn.Module, grid: Size, model_grid: Size, is_divided: bool) -> None:
    """Refuse grids that TimeSformer would silently take for others when it resamples its positions."""
    name = type(model).__name__
    if is_divided and grid[1] != model_grid[1]:
        raise InputError(f"{name} takes any height but only inputs of {model_grid[1]} patches in width, got {grid[1]}")
    same_count = math.prod(grid) == math.prod(model_grid)
    if grid != model_grid and (same_count or model_grid[0] != model_grid[1] or grid[1] == 1):
        raise InputError(f"{name} cannot place a grid of {grid} with positions made for {model_grid}; leave size=None")


# class -> the function that describes its models
FAMILIES: dict[str, Callable[[Any], ViTAnatomy]] = {
    "VideoMAEForVideoClassification": videomae,
    "VideoMAEModel": videomae,
    "VivitForVideoClassification": vivit,
    "VivitModel": vivit,
    "VJEPA2ForVideoClassification": vjepa2,
    "VJEPA2Model": vjepa2,
    "TimesformerForVideoClassification": timesformer,
    "TimesformerModel": timesformer,
}
