"""Image transforms out of a few facts, for any input size and fit; all are flat lists of steps."""

from typing import Any

Size = tuple[int, int]


def transform(config: dict[str, Any], size: Size, fit: str) -> Any:
    """A torchvision ``Compose`` that makes model input out of a PIL image.

    Args:
        config: mean, std, interpolation, crop_pct and crop_mode, in timm's words.
        size: (height, width) of the result.
        fit: "model" (as the config says), "squash" (whole image, sides stretched) or "pad" (whole image, borders).
    """
    from timm.data import create_transform

    whole = {"squash": "squash", "pad": "border"}
    changes = {"crop_mode": whole[fit], "crop_pct": 1.0} if fit in whole else {}
    return create_transform(**{**config, "input_size": (3, *size), **changes}, is_training=False)
