"""COCO's JSON format for instances: https://cocodataset.org/#format-data."""

import os
from typing import Any

import numpy as np

from legrad.choices import Threshold, Upsampling
from legrad.export.common import images_only, library, written
from legrad.results.explanation import Explanation


class CocoFile:
    """The content of a COCO file, collected image by image.

    Args:
        threshold, min_area, upsampling: as of ``Explanation.boxes``.

    Raises:
        InputError: pycocotools is not installed.
    """

    def __init__(
        self, threshold: Threshold | float = "half", min_area: float = 0.001, upsampling: Upsampling = "guided"
    ) -> None:
        self._rle = library("pycocotools.mask", "export")
        self._how: Any = (threshold, min_area, upsampling)
        self._categories: dict[str, int] = {}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, explanation: Explanation) -> None:
        """All images of an explanation."""
        images_only(explanation, "COCO's format")
        for image, boxes_of_targets in enumerate(explanation.boxes(*self._how)):
            height, width = explanation.placements[image].original
            number = len(self._images) + 1
            self._images.append(
                {"id": number, "file_name": explanation.names[image], "width": int(width), "height": int(height)}
            )
            for target in explanation.targets_of(image):
                label = explanation.labels[image][target]
                category = self._categories.setdefault(label, len(self._categories) + 1)
                boxes = boxes_of_targets[target]
                for (left, top, right, bottom), score, area, part in zip(
                    boxes.xyxy.tolist(), boxes.scores.tolist(), boxes.areas.tolist(), boxes.parts.numpy(), strict=True
                ):
                    rle = self._rle.encode(np.asfortranarray(part, np.uint8))
                    self._annotations.append(
                        {
                            "id": len(self._annotations) + 1,
                            "image_id": number,
                            "category_id": category,
                            "segmentation": {"size": [int(height), int(width)], "counts": rle["counts"].decode()},
                            "bbox": [left, top, right - left, bottom - top],
                            "area": area,
                            "iscrowd": 0,
                            "score": score,
                        }
                    )

    @property
    def content(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "info": {"description": "masks out of the maps of legrad"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": ""} for name, number in self._categories.items()
            ],
        }


def coco(
    explanation: Explanation,
    path: str | os.PathLike[str] | None = None,
    threshold: Threshold | float = "half",
    min_area: float = 0.001,
    upsampling: Upsampling = "guided",
) -> dict[str, Any]:
    """An annotation for every connected part of every target's mask.

    Args:
        explanation: of still images.
        path: JSON file to write, whole or not at all.
        threshold, min_area, upsampling: as of ``Explanation.boxes``.

    Returns:
        The content of the file. Categories are the targets' labels. ``segmentation`` is compressed RLE, ``bbox`` is
        (left, top, width, height) in pixels, ``score`` as of ``Boxes``; the best part of a target comes first.

    Raises:
        InputError: pycocotools is not installed, no still images, an argument out of range, or the file cannot be
            written.
    """
    collected = CocoFile(threshold, min_area, upsampling)
    collected.add(explanation)
    return dict(written(collected.content, path))
