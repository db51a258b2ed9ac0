"""Video and image processors of transformers, applied to one frame of a video at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from legrad.inputs.geometry import Placement, Size
from legrad.models.anatomy import ViTAnatomy
from legrad.models.hf.image_processors import edges, pad, size_after_resize, with_border

_SHADES = ("black", "white")


def transform(anatomy: ViTAnatomy, processor: Any) -> Callable[[Size | None, str], Any]:
    """``Adapter.transform`` of a video model's processor.

    Args:
        anatomy: of the model.
        processor: ``VideoMAEImageProcessor``, ``VJEPA2VideoProcessor`` and their like.
    """
    return lambda size, fit: FrameProcessing(processor, size, fit, anatomy.image_size)


@dataclass(frozen=True)
class FrameProcessing:
    """An ``inputs.transforms.Preprocessing`` of single frames by a processor that takes videos.

    Attributes:
        processor: decides resizing, cropping and normalisation; frames are not sampled by it.
        size: (height, width) of the result, None for the processor's.
        fit: "model" (as the processor does), "squash" (whole frame, sides stretched) or "pad" (whole frame, borders).
        model_size: the model's (height, width).
    """

    processor: Any
    size: Size | None
    fit: str
    model_size: Size

    def __call__(self, image: Any) -> Tensor:
        """PIL image -> (3, height, width)."""
        if self.fit == "pad":
            image = pad(image, self.size or self.model_size)
        return self._pixels(image)

    @cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and std, (3,) each, measured on black and white: processors rescale in code, not by attributes only."""
        black, white = (self._pixels(Image.new("RGB", self.model_size[::-1], shade)).mean((1, 2)) for shade in _SHADES)
        return -black / (white - black), 1 / (white - black)

    def placement(self, original: Size) -> Placement:
        """Where the result lies in a frame of (height, width)."""
        placement = Placement(original, original)
        if self.fit == "pad":
            placement = with_border(placement, self.size or self.model_size)
        facts = {**vars(self.processor), **self._changes}
        if facts.get("do_resize"):
            placement = placement.resized(size_after_resize(placement.input, facts["size"]))
        if facts.get("do_center_crop"):
            crop = edges(facts["crop_size"])
            target = (crop["height"], crop["width"])
            # floor for both: a side that is too short is padded, the smaller half in front
            top, left = (
                (side - new) // 2 if side >= new else -((new - side) // 2)
                for side, new in zip(placement.input, target, strict=True)
            )
            placement = placement.moved(top, left, target)
        return placement

    @property
    def _changes(self) -> dict[str, Any]:
        """Arguments of the call that make another size or fit."""
        height, width = size = self.size or self.model_size
        if self.fit != "model":
            return {"do_resize": True, "size": {"height": height, "width": width}, "do_center_crop": False}
        if self.size is None:
            return {}
        crop = {"height": height, "width": width}
        sides = edges(self.processor.size)
        if "shortest_edge" not in sides:
            return {"size": crop, "crop_size": crop}
        edge = round(sides["shortest_edge"] * max(a / b for a, b in zip(size, self.model_size, strict=True)))
        return {"size": {"shortest_edge": edge}, "crop_size": crop}

    def _pixels(self, image: Any) -> Tensor:
        # a video processor may be configured to sample frames of a video, but this is a single one
        options = {"do_sample_frames": False} if hasattr(self.processor, "do_sample_frames") else {}
        batch = self.processor([image], return_tensors="pt", **options, **self._changes)
        tensor = torch.as_tensor(batch[next(key for key in batch if key.startswith("pixel_values"))])
        return tensor.reshape(tensor.shape[-3:])
