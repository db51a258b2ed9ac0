"""Models of OpenAI's ``clip`` package (github.com/openai/CLIP), also where its code was copied into another package."""

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from legrad.errors import UnsupportedModelError
from legrad.inputs.geometry import Size, pair
from legrad.models import transforms
from legrad.models.adapter import Adapter
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.resizing import patch_counts, resampled, sharing_copy

# the package's own preprocessing, the same for all its models
CONFIG = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
_OTHER_LIBRARIES = ("open_clip", "transformers", "timm")  # each has a class CLIP, or may have


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for a ``CLIP`` in the structure of OpenAI's code; None for anything else.

    Raises:
        UnsupportedModelError: one of its convolutional models.
    """
    if not _is_clip(model):
        return None
    visual: Any = model.visual
    if hasattr(visual, "attnpool"):
        raise UnsupportedModelError(
            f"the vision tower {type(visual).__name__} is a convolutional network, not a vision transformer: use "
            "one of the ViT-* models of clip.available_models()"
        )
    anatomy = _anatomy(visual)
    return Adapter(
        model=model,
        anatomy=anatomy,
        tokenize=_tokenize if "clip" in sys.modules and hasattr(sys.modules["clip"], "tokenize") else None,
        encode_text=model.encode_text,  # type: ignore[arg-type]
        transform=lambda size, fit: transforms.transform(CONFIG, size or anatomy.image_size, fit),
        name=f"OpenAI {type(model).__name__}",
    )


def _is_clip(model: Any) -> bool:
    """By class name and modules, because the code is often copied into other packages."""
    if type(model).__name__ != "CLIP" or type(model).__module__.partition(".")[0] in _OTHER_LIBRARIES:
        return False
    visual = getattr(model, "visual", None)
    if not hasattr(model, "encode_text"):
        return False
    convolutional = hasattr(visual, "attnpool") and hasattr(visual, "layer4")
    parts = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
    return convolutional or (
        all(hasattr(visual, part) for part in parts) and hasattr(visual.transformer, "resblocks")  # type: ignore[union-attr]
    )


def _tokenize(texts: Sequence[str]) -> Tensor:
    ids: Tensor = sys.modules["clip"].tokenize(list(texts))
    return ids


def _anatomy(visual: Any, image_size: Size | None = None) -> ViTAnatomy:
    """One class token; the blocks take tokens as (tokens, batch, dim)."""
    patch: Size = visual.conv1.kernel_size
    image_size = image_size or pair(visual.input_resolution)

    def native(tokens: Tensor) -> Tensor:
        pooled = visual.ln_post(tokens[:, 0])
        return pooled if visual.proj is None else pooled @ visual.proj

    def at_size(size: Size) -> ViTAnatomy:
        copy = sharing_copy(visual)
        old, new = patch_counts(image_size, patch), patch_counts(size, patch)
        embedding = resampled(visual.positional_embedding, old, new, 1)
        copy.positional_embedding = nn.Parameter(embedding, requires_grad=False)
        return _anatomy(copy, size)

    return ViTAnatomy(
        library="clip",
        tower=visual,
        run=visual,
        blocks=tuple(visual.transformer.resblocks),
        image_size=image_size,
        patch_size=patch,
        num_prefix_tokens=1,
        readouts={"native": Readout(native), "published": Readout(published(native, 1))},
        output="embedding",
        at_size=at_size,
        to_tokens=lambda output: output.transpose(0, 1),
    )


def available() -> list[tuple[str, str]]:
    """Nothing: build the model with ``clip.load`` and give it to ``legrad.wrap``."""
    return []
