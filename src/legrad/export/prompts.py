"""JSON for promptable segmenters (SAM) and for annotators (Label Studio)."""

import os
from typing import Any

from legrad.choices import Threshold, Upsampling
from legrad.export.common import images_only, written
from legrad.results.explanation import Explanation


def sam(
    explanation: Explanation,
    path: str | os.PathLike[str] | None = None,
    k: int = 1,
    negative: int = 0,
    threshold: Threshold | float = "half",
    upsampling: Upsampling = "guided",
) -> list[dict[str, Any]]:
    """Prompts for SAM: points, and the box of the best part.

    Args:
        explanation: of still images.
        path: JSON file to write, whole or not at all.
        k, negative, threshold, upsampling: as of ``Explanation.points``.

    Returns:
        For every image and target {"image", "target", "point_coords", "point_labels", "box"}: the names that
        ``SamPredictor.predict`` takes; x, y in pixels, label 1 on the target and 0 beside it, box as left, top, right,
        bottom, None where nothing was found.

    Raises:
        InputError: no still images, an argument out of range, or the file cannot be written.
    """
    images_only(explanation, "SAM's prompts")
    points = explanation.points(k, negative, threshold, upsampling)
    boxes = explanation.boxes(threshold, upsampling=upsampling)
    prompts = [
        {
            "image": explanation.names[image],
            "target": explanation.labels[image][target],
            "point_coords": points[image][target].xy.tolist(),
            "point_labels": points[image][target].labels.tolist(),
            "box": boxes[image][target].xyxy[0].tolist() if len(boxes[image][target]) else None,
        }
        for image in range(len(explanation.names))
        for target in explanation.targets_of(image)
    ]
    return list(written(prompts, path))


def label_studio(
    explanation: Explanation,
    path: str | os.PathLike[str] | None = None,
    threshold: Threshold | float = "half",
    min_area: float = 0.001,
    upsampling: Upsampling = "guided",
) -> list[dict[str, Any]]:
    """Tasks for Label Studio with a box for every part, as predictions to be corrected.

    The labelling interface needs ``<Image name="image" value="$image"/>`` and ``<RectangleLabels name="label"
    toName="image">`` with the targets' labels.

    Args:
        explanation: of still images.
        path: JSON file to write, whole or not at all.
        threshold, min_area, upsampling: as of ``Explanation.boxes``.

    Returns:
        A task for every image. ``data.image`` is its name: make it a URL that Label Studio can reach.

    Raises:
        InputError: no still images, an argument out of range, or the file cannot be written.
    """
    images_only(explanation, "Label Studio's format")
    tasks = []
    for image, of_targets in enumerate(explanation.boxes(threshold, min_area, upsampling)):
        height, width = explanation.placements[image].original
        result = [
            {
                "id": f"{image}-{target}-{part}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": int(width),
                "original_height": int(height),
                "image_rotation": 0,
                "score": score,
                "value": {
                    "x": 100 * left / width,
                    "y": 100 * top / height,
                    "width": 100 * (right - left) / width,
                    "height": 100 * (bottom - top) / height,
                    "rotation": 0,
                    "rectanglelabels": [explanation.labels[image][target]],
                },
            }
            for target in explanation.targets_of(image)
            for part, ((left, top, right, bottom), score) in enumerate(
                zip(of_targets[target].xyxy.tolist(), of_targets[target].scores.tolist(), strict=True)
            )
        ]
        scores = [one["score"] for one in result]
        prediction = {
            "model_version": f"legrad, {explanation.settings.get('model')}",
            "score": sum(scores) / len(scores) if scores else 0.0,
            "result": result,
        }
        tasks.append({"data": {"image": explanation.names[image]}, "predictions": [prediction]})
    return list(written(tasks, path))
