"""Objects of libraries that show and evaluate detections: supervision and FiftyOne."""

from typing import Any

import numpy as np

from legrad.choices import Threshold, Upsampling
from legrad.export.common import images_only, index_of, library
from legrad.export.palettes import indices
from legrad.results.explanation import Explanation


def supervision(
    explanation: Explanation,
    image: int = 0,
    threshold: Threshold | float = "half",
    min_area: float = 0.001,
    upsampling: Upsampling = "guided",
) -> Any:
    """One image as ``supervision.Detections``.

    Args:
        explanation: of still images.
        image: index of the image.
        threshold, min_area, upsampling: as of ``Explanation.boxes``.

    Returns:
        Boxes in pixels, masks, confidences, ``class_id`` the index of the target, ``data["class_name"]`` its label.

    Raises:
        InputError: supervision is not installed, no still images, no such image, or an argument out of range.
    """
    sv = library("supervision", "export")
    image = index_of(images_only(explanation, "supervision.Detections"), image)
    (of_targets,) = explanation[image : image + 1].boxes(threshold, min_area, upsampling)
    counts = [len(boxes) for boxes in of_targets]
    if not sum(counts):
        return sv.Detections.empty()
    targets = np.repeat(np.array(explanation.targets_of(image)), counts)
    return sv.Detections(
        xyxy=np.concatenate([boxes.xyxy.numpy() for boxes in of_targets]).astype(np.float32),
        mask=np.concatenate([boxes.parts.numpy() for boxes in of_targets]),
        confidence=np.concatenate([boxes.scores.numpy() for boxes in of_targets]).astype(np.float32),
        class_id=targets,
        data={"class_name": np.array([explanation.labels[image][target] for target in targets])},
    )


def fiftyone(
    explanation: Explanation,
    image: int = 0,
    threshold: Threshold | float = "half",
    min_area: float = 0.001,
    upsampling: Upsampling = "guided",
) -> dict[str, Any]:
    """One image as labels of FiftyOne, to be set as fields of its sample.

    Args:
        explanation: of still images.
        image: index of the image.
        threshold, min_area, upsampling: as of ``Explanation.boxes``.

    Returns:
        "heatmaps": target's label -> ``fiftyone.Heatmap`` (values in [0, 1], bilinear, stretched map by map);
        "segmentation": ``fiftyone.Segmentation``, 0 for background and i + 1 for target i; "detections":
        ``fiftyone.Detections`` with relative boxes and the mask inside each.

    Raises:
        InputError: FiftyOne is not installed, no still images, no such image, or an argument out of range.
    """
    labels = library("fiftyone.core.labels", "fiftyone")
    image = index_of(images_only(explanation, "FiftyOne's labels"), image)
    alone = explanation[image : image + 1]
    height, width = alone.placements[0].original
    saliency, found = alone.target_maps(0, None, "map").numpy(), []
    for target, boxes in zip(alone.targets_of(0), alone.boxes(threshold, min_area, upsampling)[0], strict=True):
        for edges, score, part in zip(boxes.xyxy.tolist(), boxes.scores.tolist(), boxes.parts.numpy(), strict=True):
            left, top, right, bottom = map(int, edges)
            found.append(
                labels.Detection(
                    label=alone.labels[0][target],
                    bounding_box=[left / width, top / height, (right - left) / width, (bottom - top) / height],
                    mask=part[top:bottom, left:right],
                    confidence=score,
                )
            )
    return {
        "heatmaps": {
            alone.labels[0][target]: labels.Heatmap(map=saliency[target], range=[0, 1])
            for target in alone.targets_of(0)
        },
        "segmentation": labels.Segmentation(mask=indices(alone, 0, threshold, upsampling)),
        "detections": labels.Detections(detections=found),
    }
