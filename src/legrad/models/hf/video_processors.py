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
from legrad.models.hf.image_processors import bordered, edges, padded, resized

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
    """One frame through a processor that takes videos; see ``geometry.Preprocessing``.

    Attributes:
        processor: decides resizing, cropping and normalisation; frames are not sampled by it.
        size: wanted (height, width), None for the processor's own.
        fit: "model" (as the processor does), "squash" (whole frame, sides stretched) or "pad" (whole frame, borders).
        own: the model's (height, width).
    """

    processor: Any
    size: Size | None
    fit: str
    own: Size

    def __call__(self, image: Any) -> Tensor:
        """PIL image -> (3, height, width)."""
        if self.fit == "pad":
            image = padded(image, self.size or self.own)
        return self._processed(image)

    @cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and std, (3,) each: measured, because scale and offset hide in code."""
        black, white = (self._processed(Image.new("RGB", self.own[::-1], shade)).mean((1, 2)) for shade in _SHADES)
        return -black / (white - black), 1 / (white - black)

    def placement(self, original: Size) -> Placement:
        """The frame of the result for an image of (height, width)."""
        frame = Placement(original, original)
        if self.fit == "pad":
            frame = bordered(frame, self.size or self.own)
        facts = {**vars(self.processor), **self._changes}
        if facts.get("do_resize"):
            frame = frame.resized(resized(frame.input, facts["size"]))
        if facts.get("do_center_crop"):
            crop = edges(facts["crop_size"])
            target = (crop["height"], crop["width"])
            # floor for both: a side that is too short is padded, the smaller half in front
            top, left = (
                (side - new) // 2 if side >= new else -((new - side) // 2)
                for side, new in zip(frame.input, target, strict=True)
            )
            frame = frame.moved(top, left, target)
        return frame

    @property
    def _changes(self) -> dict[str, Any]:
        """Arguments of the call that make another size or fit."""
        height, width = size = self.size or self.own
        if self.fit != "model":
            return {"do_resize": True, "size": {"height": height, "width": width}, "do_center_crop": False}
        if self.size is None:
            return {}
        crop = {"height": height, "width": width}
        own = edges(self.processor.size)
        if "shortest_edge" not in own:
            return {"size": crop, "crop_size": crop}
        edge = round(own["shortest_edge"] * max(a / b for a, b in zip(size, self.own, strict=True)))
        return {"size": {"shortest_edge": edge}, "crop_size": crop}

    def _processed(self, image: Any) -> Tensor:
        # a video processor may be told to sample frames: there is only one here
        options = {"do_sample_frames": False} if hasattr(self.processor, "do_sample_frames") else {}
        found = self.processor([image], return_tensors="pt", **options, **self._changes)
        tensor = torch.as_tensor(found[next(key for key in found if key.startswith("pixel_values"))])
        return tensor.reshape(tensor.shape[-3:])
