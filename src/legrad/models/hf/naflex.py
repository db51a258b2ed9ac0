"""SigLIP 2 (NaFlex): every image keeps its aspect ratio and has a patch grid of its own.

The tower takes patches with a mask. A batch here holds images of one size, so there is no padding: attention to
padded keys, whose gradients are as large as those of real ones, cannot occur.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from legrad.errors import InputError
from legrad.inputs.geometry import Placement, Size
from legrad.models.anatomy import ViTAnatomy
from legrad.models.hf import image_processors
from legrad.models.hf.family import Family, core, describe, pooled


def patchify(images: Tensor, patch: int) -> Tensor:
    """(batch, 3, height, width) -> (batch, patches, patch * patch * 3), in the processor's layout."""
    rows, cols = images.shape[-2] // patch, images.shape[-1] // patch
    cropped_images = images[..., : rows * patch, : cols * patch]
    return (
        cropped_images.unflatten(-1, (cols, patch))
        .unflatten(-3, (rows, patch))
        .permute(0, 2, 4, 3, 5, 1)
        .flatten(3)
        .flatten(1, 2)
    )


def unpatchify(patches: Tensor, grid: Size, patch: int) -> Tensor:
    """(patches, patch * patch * 3) -> (3, height, width)."""
    rows, cols = grid
    return patches.reshape(rows, cols, patch, patch, 3).permute(4, 0, 2, 1, 3).reshape(3, rows * patch, cols * patch)


def _inputs(model: Any, images: Tensor) -> dict[str, Tensor]:
    patch = core(model).config.patch_size
    patches = patchify(images, patch)
    grid = torch.tensor([[images.shape[-2] // patch, images.shape[-1] // patch]], device=images.device)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device)  # no patch is padding
    shapes = grid.expand(len(images), -1)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _side(config: Any) -> int:
    return math.isqrt(config.num_patches) * int(config.patch_size)


EMBEDDING = Family(
    lambda model, vision, z: vision.head(vision.post_layernorm(z)),
    "embedding",
    lambda model, images, options: pooled(model.get_image_features(**_inputs(model, images))),
    vision=core,
    prefix=lambda config: 0,
    pooler=lambda model, vision, z: vision.head(z),
    sizes="free",
    size=_side,
)
VISION = replace(
    EMBEDDING, output="feature", answer=lambda model, images, options: model(**_inputs(model, images)).pooler_output
)
HEADLESS = replace(
    VISION,
    native=lambda model, vision, z: vision.post_layernorm(z).mean(1),
    answer=lambda model, images, options: model(**_inputs(model, images)).last_hidden_state.mean(1),
    pooler=None,
    averaged=lambda config: True,
)
CLASSIFIER = replace(
    HEADLESS,
    native=lambda model, vision, z: model.classifier(vision.post_layernorm(z).mean(1)),
    output="logits",
    answer=lambda model, images, options: model(**_inputs(model, images)).logits,
    heads=("classifier",),
)


def _vision(model: Any) -> ViTAnatomy:
    return describe(VISION if core(model).use_head else HEADLESS, model)


# class -> the function that describes its models
FAMILIES: dict[str, Callable[[Any], ViTAnatomy]] = {
    "Siglip2Model": partial(describe, EMBEDDING),
    "Siglip2VisionModel": _vision,
    "Siglip2ForImageClassification": partial(describe, CLASSIFIER),
}


def unpacking(model: Any) -> Callable[[Mapping[str, Any]], list[Tensor]]:
    """``Adapter.unpack`` of a model."""
    return partial(unpack, int(core(model).config.patch_size))


def unpack(patch: int, batch: Mapping[str, Any]) -> list[Tensor]:
    """The processor's own batch -> images (3, height, width), each of its own size, without the padding."""
    missing = {"pixel_values", "pixel_attention_mask", "spatial_shapes"} - set(batch)
    if missing:
        raise InputError(f"a batch of SigLIP 2's processor also holds {', '.join(sorted(missing))}; pass all of it")
    images = []
    masks = torch.as_tensor(batch["pixel_attention_mask"], device="cpu")
    values = int(batch["pixel_values"][0].shape[-1])
    if values != 3 * patch * patch:
        raise InputError(
            f"pixel_values has {values} values per patch, the model has {3 * patch * patch} ({patch} x {patch} x 3): "
            f"call the processor with patch_size={patch}"
        )
    for row, mask, shape in zip(batch["pixel_values"], masks, batch["spatial_shapes"], strict=True):
        rows, cols = (int(side) for side in shape)
        if int(mask.sum()) != rows * cols or not bool(mask[: rows * cols].all()):
            raise InputError(f"a grid of {rows} x {cols} patches does not fit its mask of {int(mask.sum())} patches")
        images.append(unpatchify(torch.as_tensor(row, device="cpu")[: rows * cols], (rows, cols), patch))
    return images


class ProcessorTransform:
    """An ``inputs.transforms.Preprocessing`` around Siglip2ImageProcessor.

    Args:
        processor: of transformers.
        side: of the model's square input, for fits other than "model".
        size: (height, width); with fit "model" only its number of patches matters.
        fit: "model" (own aspect ratio, as many patches as allowed), "squash" or "pad" (exactly ``size``).
    """

    def __init__(self, processor: Any, side: int, size: Size | None, fit: str) -> None:
        patch = processor.patch_size
        if size is not None and (size[0] % patch or size[1] % patch):
            raise InputError(f"SigLIP 2 takes sizes in multiples of its {patch} pixel patches, got {size}")
        self.normalisation: tuple[Tensor, Tensor] | None = image_processors.normalisation(processor)
        self._processor, self._patch, self._fit = processor, patch, fit
        self._size = size or (side, side)
        by_processor = size is None and fit == "model"
        self._patches = (
            processor.max_num_patches if by_processor else (self._size[0] // patch) * (self._size[1] // patch)
        )

    def placement(self, original: Size) -> Placement:
        """Where the result lies in an image of (height, width)."""
        placement = Placement(original, original)
        if self._fit == "model":
            return placement.resized(self._fitting_size(original))
        if self._fit == "pad":
            placement = image_processors.with_border(placement, self._size)
        return placement.resized(self._size)

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> (3, height, width)."""
        resize = self._fit == "model"
        if self._fit == "pad":
            image = image_processors.pad(image, self._size)
        if not resize:
            image = image.resize(self._size[::-1], Image.Resampling(int(self._processor.resample)))
        changes = {"max_num_patches": self._patches, "do_resize": resize}
        batch = self._processor(images=image, return_tensors="pt", **changes)
        return unpack(self._patch, batch)[0]

    def _fitting_size(self, original: Size) -> Size:
        from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

        rows, cols = get_image_size_for_max_num_patches(*original, self._patch, self._patches)
        return int(rows), int(cols)


def transform(anatomy: ViTAnatomy, processor: Any) -> Callable[[Size | None, str], Any]:
    """``Adapter.transform`` of SigLIP 2's image processor."""
    if anatomy.patch_size != (processor.patch_size, processor.patch_size):
        raise InputError(
            f"the processor cuts patches of {processor.patch_size} pixels, the model takes {anatomy.patch_size}"
        )
    return lambda size, fit: ProcessorTransform(processor, anatomy.image_size[0], size, fit)
