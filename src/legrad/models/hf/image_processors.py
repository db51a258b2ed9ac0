"""Image processors of transformers as ``Preprocessing``: image transforms that say where their pixels come from."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from legrad.errors import InputError
from legrad.inputs.geometry import Placement, Size
from legrad.models.anatomy import ViTAnatomy

_EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
# processors that resize, crop the centre, rescale and normalise, as their base class does; see ``kind``
_STANDARD = {
    *("Beit", "Bit", "Blip", "ChineseCLIP", "CLIP", "DeiT", "DINOv3ViT", "Flava", "OwlViT", "Siglip", "ViT", "Tipsv2"),
    *("Sapiens2", "GotOcr2", "Owlv2"),
}
_SQUARED = {"Owlv2"}  # these first make the image square by a border at the bottom or the right


def kind(processor: Any) -> str:
    """Class name without ``ImageProcessor`` and the words for the backend."""
    name = type(processor).__name__
    return name.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")


def edges(size: Any) -> dict[str, int]:
    """A processor's size, a mapping or its SizeDict, without the empty entries."""
    sides = {edge: size.get(edge) if isinstance(size, Mapping) else getattr(size, edge, None) for edge in _EDGES}
    return {edge: int(side) for edge, side in sides.items() if side}


def size_after_resize(image: Size, size: Any) -> Size:
    """(height, width) that an image of (height, width) has after the processor's resize to ``size``."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    sides = edges(size)
    height, width = image
    if "shortest_edge" in sides and "longest_edge" in sides:
        height, width = get_size_with_aspect_ratio(image, sides["shortest_edge"], sides["longest_edge"])
    elif "shortest_edge" in sides:
        short = sides["shortest_edge"]
        # the library's own order of operations, for the same rounding
        long = int(short * max(image) / min(image))
        height, width = (long, short) if width <= height else (short, long)
    elif "max_height" in sides:
        scale = min(sides["max_height"] / height, sides["max_width"] / width)
        height, width = int(height * scale), int(width * scale)
    elif "height" in sides:
        height, width = sides["height"], sides["width"]
    else:
        raise InputError(f"cannot follow a resize to {size}; preprocess yourself and pass a float tensor")
    return height, width


def normalisation(processor: Any) -> tuple[Tensor, Tensor]:
    """Mean and std, (3,) each, for pixels in [0, 1]."""
    mean, std = (torch.full((3,), value, device="cpu", dtype=torch.float32) for value in (0.0, 1.0))
    if getattr(processor, "do_normalize", False):
        mean, std = (
            torch.as_tensor(value, device="cpu", dtype=torch.float32).expand(3)
            for value in (processor.image_mean, processor.image_std)
        )
    factor = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    return mean / (255 * factor), std / (255 * factor)


def with_border(placement: Placement, size: Size) -> Placement:
    """After adding borders on either side, so that the input has the aspect ratio of ``size``."""
    height, width = placement.input
    tall, wide = max(height, round(width * size[0] / size[1])), max(width, round(height * size[1] / size[0]))
    return placement.moved(-((tall - height) // 2), -((wide - width) // 2), (tall, wide))


def pad(image: Image.Image, size: Size) -> Image.Image:
    """The image with the black borders of ``with_border``."""
    placement = with_border(Placement((0, 0), (image.height, image.width)), size)
    canvas = Image.new("RGB", placement.input[::-1])
    canvas.paste(image, (int(placement.offset[1]), int(placement.offset[0])))
    return canvas


class ProcessorTransform:
    """An ``inputs.transforms.Preprocessing`` around an image processor.

    Args:
        processor: of transformers.
        model_size: input size of the model, where the processor leaves it open.
        size: (height, width) of the result; None for the processor's own.
        fit: "model" (as the processor does it), "squash" (whole image, sides stretched) or "pad" (black borders).
    """

    def __init__(self, processor: Any, model_size: Size, size: Size | None, fit: str) -> None:
        if kind(processor) not in _STANDARD:
            raise InputError(
                f"cannot follow where {type(processor).__name__} puts the pixels; preprocess yourself and pass a float "
                "tensor (batch, 3, height, width)"
            )
        self.normalisation: tuple[Tensor, Tensor] | None = normalisation(processor)
        self._processor = processor
        self._by_processor = size is None and fit == "model"
        self._size, self._fit = size or _result_size(processor, model_size), fit

    def placement(self, original: Size) -> Placement:
        """Where the result lies in an image of (height, width)."""
        placement = Placement(original, original)
        if self._fit == "pad":
            placement = with_border(placement, self._size)
        if self._fit != "model":
            return placement.resized(self._size)
        if kind(self._processor) in _SQUARED and self._processor.do_pad:
            placement = placement.moved(0, 0, (max(original), max(original)))
        resize, crop = self._plan(placement.input)
        if resize:
            placement = placement.resized(resize)
        return self._after_crop(placement, crop) if crop else placement

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image -> (3, height, width)."""
        changes: dict[str, Any] = {}
        if self._fit == "pad":
            image = pad(image, self._size)
        if self._fit != "model":
            steps = ("do_center_crop", "do_pad")
            off = {step: False for step in steps if getattr(self._processor, step, None)}
            changes = {"do_resize": True, "size": _size_dict(self._size), **off}
        elif not self._by_processor:
            resize, crop = self._plan((image.height, image.width))
            changes = {"do_resize": True, "size": _size_dict(resize or self._size)}
            if crop:
                changes["crop_size"] = _size_dict(crop)
        if getattr(self._processor, "crop_to_patches", False):
            changes["crop_to_patches"] = False  # tiles for a language model
        pixels: Tensor = self._processor(images=image, return_tensors="pt", **changes)["pixel_values"]
        if len(pixels) != 1:
            raise InputError(
                f"{type(self._processor).__name__} made {len(pixels)} inputs out of one image, expected one; "
                "preprocess yourself and pass a float tensor"
            )
        return pixels[0]

    def _plan(self, image: Size) -> tuple[Size | None, Size | None]:
        """Sizes of the resize and of the crop for an image of (height, width), each None if it does not happen."""
        processor = self._processor
        crop = _crop_size(processor)
        if self._by_processor:
            return size_after_resize(image, processor.size) if processor.do_resize else None, crop
        if crop is None:
            return self._size, None
        # as much is cut off as by the processor itself
        sides = edges(processor.size)
        factors = tuple(
            sides.get("shortest_edge", sides.get(side, length)) / length
            for side, length in zip(("height", "width"), crop, strict=True)
        )
        if "shortest_edge" not in sides:
            rows, cols = (round(a * b) for a, b in zip(self._size, factors, strict=True))
            return (rows, cols), self._size
        scale = max(a * b / c for a, b, c in zip(self._size, factors, image, strict=True))
        rows, cols = (max(a, round(b * scale)) for a, b in zip(self._size, image, strict=True))
        return (rows, cols), self._size

    def _after_crop(self, placement: Placement, crop: Size) -> Placement:
        pil = getattr(self._processor, "backend", "pil") == "pil" and not type(self._processor).__name__.endswith(
            "Fast"
        )
        corner = []
        for side, target in zip(placement.input, crop, strict=True):
            missing = max(0, target - side)
            # the two backends disagree where half a pixel goes
            border = -(-missing // 2) if pil else missing // 2
            corner.append(-border if missing else (side - target) // 2)
        return placement.moved(corner[0], corner[1], crop)


def _size_dict(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _crop_size(processor: Any) -> Size | None:
    sides = edges(processor.crop_size) if getattr(processor, "do_center_crop", False) else {}
    return (sides["height"], sides["width"]) if sides else None


def _result_size(processor: Any, model_size: Size) -> Size:
    """The processor's result size, or the model's where it depends on the image."""
    sides = edges(processor.size) if processor.do_resize else {}
    full_size = (sides["height"], sides["width"]) if "height" in sides else model_size
    return _crop_size(processor) or full_size


def transform(anatomy: ViTAnatomy, processor: Any) -> Callable[[Size | None, str], Any]:
    """``Adapter.transform`` of an image processor."""

    def make_transform(size: Size | None, fit: str) -> Any:
        if kind(processor) == "TimmWrapper":
            from legrad.models import transforms

            config = processor.data_config
            if size is None and fit == "model":
                return processor.val_transforms
            return transforms.transform(config, size or tuple(config["input_size"][1:]), fit)
        return ProcessorTransform(processor, anatomy.image_size, size, fit)

    return make_transform
