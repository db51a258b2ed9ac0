"""torchvision's ``vit_*`` classifiers."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.models import transforms
from legrad.models.adapter import Adapter, Size
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.models.resizing import resampled, sharing_copy


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for a torchvision VisionTransformer; None for a model of another library.

    A model in memory does not know its weights, so preprocessing and class names come with ``load`` only.

    Raises:
        UnsupportedModelError: another architecture of torchvision.
    """
    if not any(kind.__module__.startswith("torchvision.models") for kind in type(model).__mro__):
        return None
    from torchvision.models import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise UnsupportedModelError(
            f"torchvision's {type(model).__name__} is a convolutional, windowed or hierarchical network: of "
            "torchvision only the vit_* models are supported"
        )
    return Adapter(model, _anatomy(model), name=f"torchvision {type(model).__name__}")


def _anatomy(model: Any) -> ViTAnatomy:
    side, patch = int(model.image_size), int(model.patch_size)

    def native(tokens: Tensor) -> Tensor:
        result: Tensor = model.heads(model.encoder.ln(tokens)[:, 0])
        return result

    def resized(size: Size) -> ViTAnatomy:
        return _resized(model, size)

    return ViTAnatomy(
        library="torchvision",
        tower=model,
        run=model,
        blocks=tuple(model.encoder.layers),
        image_size=(side, side),
        patch_size=(patch, patch),
        grid=(side // patch, side // patch),
        num_prefix_tokens=1,
        readouts={"native": Readout(native)},
        output="logits" if isinstance(model.heads, nn.Sequential) and len(model.heads) else "feature",
        at_size=resized,
    )


def _resized(model: Any, size: Size) -> ViTAnatomy:
    """The same weights for another size; torchvision's own forward takes a single square size only.

    The position embedding is resampled as torchvision's ``interpolate_embeddings`` does it for squares.
    """
    from dataclasses import replace

    own = _anatomy(model)
    grid = (size[0] // own.patch_size[0], size[1] // own.patch_size[1])
    if isinstance(model.conv_proj, nn.Sequential) and any(a % b for a, b in zip(size, own.patch_size, strict=True)):
        raise InputError(
            f"this model has a convolutional stem: sides must be multiples of {own.patch_size}, got {size}"
        )
    changed = sharing_copy(model)
    old: Size = (own.grid[0], own.grid[1])
    embedding = resampled(model.encoder.pos_embedding[0], old, grid, 1, align_corners=True)
    changed.encoder.pos_embedding = nn.Parameter(embedding[None], requires_grad=False)

    def run(images: Tensor) -> Tensor:
        patches = changed.conv_proj(images).flatten(2).transpose(1, 2)
        first = changed.class_token.expand(len(images), -1, -1)
        result: Tensor = changed.heads(changed.encoder(torch.cat([first, patches], 1))[:, 0])
        return result

    return replace(_anatomy(changed), run=run, image_size=size, grid=grid, at_size=own.at_size)


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """``vit_b_16`` (its default weights) or ``vit_b_16/IMAGENET1K_SWAG_E2E_V1``."""
    from dataclasses import replace

    from torchvision.models import get_model, get_model_weights

    architecture, _, tag = name.partition("/")
    _check_name(architecture)
    weights = get_model_weights(architecture)
    known = [one.name for one in weights]
    if tag and tag not in known:
        raise InputError(f"torchvision has no weights {tag!r} for {architecture}; it has {known}")
    chosen: Any = weights[tag] if tag else weights.DEFAULT
    try:
        model = get_model(architecture, weights=chosen)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"torchvision could not load {name!r}: {error}. Without a network only weights in its cache "
            f"({torch.hub.get_dir()}/checkpoints) work"
        ) from error
    adapter = adapt(model.to(device=device or "cpu", dtype=dtype).eval())
    assert adapter is not None
    return replace(
        adapter,
        transform=_transforms(chosen.transforms()),
        labels=tuple(chosen.meta["categories"]),
        name=f"torchvision:{name}",
    )


def _transforms(preset: Any) -> Any:
    def transform(size: Size | None, fit: str) -> Any:
        if size is None and fit == "model":
            return preset
        (crop,), (resize,) = preset.crop_size, preset.resize_size
        config = {"mean": preset.mean, "std": preset.std, "interpolation": preset.interpolation.value}
        return transforms.transform({**config, "crop_pct": crop / resize}, size or (crop, crop), fit)

    return transform


def _check_name(architecture: str) -> None:
    from torchvision.models import list_models

    names = list_models(module=_classification())
    if architecture not in names:
        near = difflib.get_close_matches(architecture, names, 3)
        raise InputError(f"torchvision has no model {architecture!r}; nearest: {', '.join(near) or 'none'}")
    if reason := not_supported(architecture):
        raise UnsupportedModelError(
            f"torchvision's {architecture} is {reason}; supported: {', '.join(filter(_is_vit, names))}"
        )


def _classification() -> Any:
    import torchvision.models

    return torchvision.models


def _is_vit(architecture: str) -> bool:
    return architecture.startswith("vit_")


def not_supported(architecture: str) -> str:
    """Why an architecture cannot be explained, "" if it can; from its name."""
    return "" if _is_vit(architecture) else "not a ViT"


def available() -> list[tuple[str, str]]:
    """All (``torchvision:NAME/WEIGHTS``, why not or "")."""
    from torchvision.models import get_model_weights, list_models

    return [
        (f"torchvision:{name}/{weights.name}", not_supported(name))
        for name in list_models(module=_classification())
        for weights in get_model_weights(name)
    ]
