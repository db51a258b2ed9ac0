"""DenseAV's scorer for sound- and speech-prompted segmentation (Hamilton et al., CVPR 2024).

All pixels of all prompts of a class are pooled. AP_c is their exact average precision; IoU_c is the best of 20
thresholds, equally spaced from the least to the greatest of the class's scores (score > threshold, strictly; an empty
union is 0). mAP and mIoU are plain means over classes.

The threshold is chosen per class on the evaluated data, and the lowest one takes almost everything: IoU_c is never
below the class's share of the pixels by more than the pixels at the minimum, which is also the chance level of AP_c.

Because pixels are pooled, it matters how maps are scaled: ``normalisation="dataset"`` as DenseAV does (minimum and
maximum over the whole data set, at the resolution of the features, then bilinear to S x S), or ``"image"`` (each map
resized, then stretched to [0, 1], as LeGrad's maps usually are). Report both.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from legrad.errors import InputError
from legrad.metrics import ranking
from legrad.metrics.ranges import is_flat, unit_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

Normalisation = Literal["dataset", "image"]
_THRESHOLDS = 20


@dataclass(frozen=True, eq=False)
class Prompted:
    """One prompt's result, kept whole: the scores of a class are known only when all its pixels are.

    Attributes:
        name: the class.
        relevance: (rows, cols), raw, at the resolution of the features.
        mask: (S, S) bool, in the frame of the model's input.
    """

    name: str
    relevance: "NDArray[Any]"
    mask: "NDArray[Any]"

    def to_json(self) -> dict[str, Any]:
        """For a result file; ``relevance`` is kept in float32."""
        values = np.ascontiguousarray(self.relevance, "<f4")
        return {
            "name": self.name,
            "shape": list(values.shape),
            "relevance": base64.b64encode(values.tobytes()).decode("ascii"),
            "side": list(np.shape(self.mask)),
            "mask": base64.b64encode(np.packbits(self.mask).tobytes()).decode("ascii"),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Prompted":
        """What ``to_json`` gave."""
        try:
            values = np.frombuffer(base64.b64decode(content["relevance"]), "<f4").reshape(content["shape"])
            bits = np.unpackbits(np.frombuffer(base64.b64decode(content["mask"]), np.uint8))
            mask = bits[: int(np.prod(content["side"]))].reshape(content["side"]).astype(bool)
            return cls(str(content["name"]), values.astype(np.float32), mask)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"not a stored prompt of the audio benchmark: {error}") from error


def class_scores(scores: "NDArray[Any]", truth: "NDArray[Any]") -> tuple[float, float]:
    """(AP, best IoU) of one class.

    Args:
        scores: its pooled scores, any shape.
        truth: bool, same shape.

    Returns:
        both in [0, 1]; 0 and 0 for a class without a single pixel.
    """
    pooled, there = np.asarray(scores, np.float32).ravel(), np.asarray(truth, bool).ravel()
    if pooled.shape != there.shape or not pooled.size:
        raise InputError(f"scores and truth have one shape, got {np.shape(scores)} and {np.shape(truth)}")
    precision = ranking.average_precision(there, pooled)
    if precision is None:
        return 0.0, 0.0
    best = 0.0
    for threshold in torch.linspace(float(pooled.min()), float(pooled.max()), _THRESHOLDS).numpy():
        above = pooled > threshold
        union = int((above | there).sum())
        best = max(best, int((above & there).sum()) / union if union else 0.0)
    return precision, best


def summarise(items: Sequence[Prompted], normalisation: Normalisation) -> dict[str, Any]:
    """The data set's numbers.

    Returns:
        ``map`` and ``miou`` in [0, 1]; ``per_class``, name -> [AP, IoU, share of the pixels]; the normalisation, and
        counts: prompts, classes, classes without a pixel (they count as 0), flat maps.
    """
    if normalisation not in ("dataset", "image"):
        raise InputError(f"normalisation is dataset or image, got {normalisation!r}")
    if not items:
        raise InputError("no prompt to summarise")
    low = min(float(np.min(item.relevance)) for item in items)
    spread = max(float(np.max(item.relevance)) for item in items) - low
    members: dict[str, list[Prompted]] = {}
    for item in items:
        members.setdefault(item.name, []).append(item)
    per_class: dict[str, list[float]] = {}
    for name, group in members.items():
        maps = [
            _resized((item.relevance - low) / (spread or 1.0), item.mask.shape)
            if normalisation == "dataset"
            else np.nan_to_num(unit_range(_resized(item.relevance, item.mask.shape)))
            for item in group
        ]
        scores, truth = (np.concatenate([one.ravel() for one in all_]) for all_ in (maps, [i.mask for i in group]))
        per_class[name] = [*class_scores(scores, truth), float(truth.mean())]
    table = np.array(list(per_class.values()))
    return {
        "map": float(table[:, 0].mean()),
        "miou": float(table[:, 1].mean()),
        "per_class": per_class,
        "normalisation": normalisation,
        "prompts": len(items),
        "classes": len(per_class),
        "classes_without_pixels": int((table[:, 2] == 0).sum()),
        "flat": sum(is_flat(item.relevance) for item in items),
    }


def _resized(values: "NDArray[Any]", size: Sequence[int]) -> "NDArray[np.float32]":
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return F.interpolate(tensor[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()
