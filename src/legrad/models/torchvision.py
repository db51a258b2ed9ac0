"""torchvision's ``vit_*`` classifiers."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models import messages, network, transforms
from legrad.models.adapter import Adapter
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.checks import holds_matrix
from legrad.models.files import damage
from legrad.models.resizing import patch_counts, resampled, sharing_copy


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
    def native(tokens: Tensor) -> Tensor:
        result: Tensor = model.heads(model.encoder.ln(tokens)[:, 0])
        return result

    return ViTAnatomy(
        library="torchvision",
        tower=model,
        run=model,
        blocks=tuple(model.encoder.layers),
        image_size=pair(model.image_size),
        patch_size=pair(model.patch_size),
        num_prefix_tokens=1,
        readouts={"native": Readout(native), "published": Readout(published(native, 1))},
        output="logits" if holds_matrix(model.heads) else "feature",
        at_size=lambda size: _at_size(model, size),
    )


def _at_size(model: Any, size: Size) -> ViTAnatomy:
    """The same weights for another size; torchvision's own forward takes one square size only.

    The position embedding is resampled as torchvision's ``interpolate_embeddings`` does it for squares.
    """
    from dataclasses import replace

    patch = pair(model.patch_size)
    if isinstance(model.conv_proj, nn.Sequential) and any(a % b for a, b in zip(size, patch, strict=True)):
        raise InputError(f"this model has a convolutional stem: sides must be multiples of {patch}, got {size}")
    copy = sharing_copy(model)
    old, new = patch_counts(pair(model.image_size), patch), patch_counts(size, patch)
    embedding = resampled(model.encoder.pos_embedding[0], old, new, 1, align_corners=True)
    copy.encoder.pos_embedding = nn.Parameter(embedding[None], requires_grad=False)

    def run(images: Tensor) -> Tensor:
        patches = copy.conv_proj(images).flatten(2).transpose(1, 2)
        class_token = copy.class_token.expand(len(images), -1, -1)
        result: Tensor = copy.heads(copy.encoder(torch.cat([class_token, patches], 1))[:, 0])
        return result

    return replace(_anatomy(copy), run=run, image_size=size, at_size=lambda other: _at_size(model, other))


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """``vit_b_16`` (its default weights) or ``vit_b_16/IMAGENET1K_SWAG_E2E_V1``."""
    from dataclasses import replace

    from torchvision.models import get_model, get_model_weights

    architecture, _, tag = name.partition("/")
    architecture, tag = architecture.lower(), tag.upper()
    _check_name(architecture)
    weights = get_model_weights(architecture)
    tags = [entry.name for entry in weights]
    if tag and tag not in tags:
        raise messages.unknown_weights("torchvision", tag, architecture, tags)
    entry: Any = weights[tag] if tag else weights.DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / entry.url.rpartition("/")[2]
    _check_cached(file, name)
    offline = f"weights in its cache ({folder})"
    try:
        with contextlib.nullcontext() if file.is_file() else network.server(entry.url):
            model = get_model(architecture, weights=entry)
    except Exception as error:  # a damaged file comes out of pickle in every shape
        cached = file if file.is_file() else None
        raise messages.not_loaded("torchvision", name, error, offline, cached) from error
    adapter = adapt(model.to(device=device or "cpu", dtype=dtype).eval())
    assert adapter is not None
    return replace(
        adapter,
        transform=_transforms(entry.transforms()),
        labels=tuple(entry.meta["categories"]),
        name=f"torchvision:{name}",
    )


def _check_cached(file: Path, name: str) -> None:
    """Refuse a file in the cache that is more than tensors: torchvision would unpickle it, with any code in it.

    A file that is not there yet is downloaded, and its hash compared.
    """
    if file.is_file() and (fault := damage(file)):
        raise InputError(
            f"torchvision could not load {name!r}: {file.parent}/{fault}; remove the file, and it is downloaded again"
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
    """Refuse unknown or unsupported names before anything is downloaded or built."""
    names = architectures()
    if architecture not in names:
        raise messages.unknown_model("torchvision", architecture, names)
    if reason := not_supported(architecture):
        raise UnsupportedModelError(
            f"torchvision's {architecture} is {reason}; supported: {', '.join(filter(_is_vit, names))}"
        )


def architectures() -> list[str]:
    """Names of torchvision's classifiers."""
    from torchvision.models import list_models

    names: list[str] = list_models(module=_classification())
    return names


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
    from torchvision.models import get_model_weights

    return [
        (f"torchvision:{name}/{weights.name}", not_supported(name))
        for name in architectures()
        for weights in get_model_weights(name)
    ]
