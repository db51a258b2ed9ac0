"""torchvision transforms made of mean, std, interpolation and crop, for any input size and fit: flat lists of steps."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from legrad.errors import LeGradError
from legrad.inputs.geometry import Size


def transform(config: dict[str, Any], size: Size, fit: str) -> Any:
    """A torchvision ``Compose`` that makes model input out of a PIL image.

    Args:
        config: mean, std, interpolation, crop_pct and crop_mode, in timm's words.
        size: (height, width) of the result.
        fit: "model" (as the config says), "squash" (whole image, sides stretched) or "pad" (whole image, borders).
    """
    from timm.data import create_transform

    crop_modes = {"squash": "squash", "pad": "border"}
    changes = {"crop_mode": crop_modes[fit], "crop_pct": 1.0} if fit in crop_modes else {}
    return create_transform(**{**config, "input_size": (3, *size), **changes}, is_training=False)


def try_out(make_transform: Callable[[Size | None, str], Any]) -> None:
    """Preprocess a small image, so that a broken configuration is noticed when it is loaded.

    What this library refuses itself is told when it is used.
    """
    try:
        make_transform(None, "model")(Image.new("RGB", (64, 48), (99, 120, 140)))
    except LeGradError:
        return
