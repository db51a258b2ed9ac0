"""One row for every image and target: records, a pyarrow table, a Parquet file."""

import io
import os
from typing import Any

from legrad.choices import Threshold, Upsampling
from legrad.export.common import images_only, library, save
from legrad.results.explanation import Explanation


def table(
    explanation: Explanation,
    path: str | os.PathLike[str] | None = None,
    threshold: Threshold | float = "half",
    min_area: float = 0.001,
    upsampling: Upsampling = "guided",
) -> Any:
    """What was found as a ``pyarrow.Table``.

    Args:
        explanation: of still images.
        path: Parquet file to write, whole or not at all.
        threshold, min_area, upsampling: as of ``Explanation.boxes``.

    Returns:
        Columns: image, target, width, height, score (the model's own), grid (rows, cols), relevance (row by row, raw),
        mask_area (share of the image), boxes and box_scores (left, top, right, bottom in pixels, the best first).

    Raises:
        InputError: pyarrow is not installed, no still images, an argument out of range, or the file cannot be written.
    """
    pa, parquet = library("pyarrow", "export"), library("pyarrow.parquet", "export")
    images_only(explanation, "a table")
    rows = []
    for image, of_targets in enumerate(explanation.boxes(threshold, min_area, upsampling)):
        height, width = explanation.placements[image].original
        masks, _ = explanation.image_masks(image, threshold, upsampling)
        grid_rows, grid_cols = explanation.patch_grids[image].grid
        rows += [
            {
                "image": explanation.names[image],
                "target": explanation.labels[image][target],
                "width": int(width),
                "height": int(height),
                "score": float(explanation.scores[image, target]),
                "grid": [grid_rows, grid_cols],
                "relevance": explanation.relevance[image, target, :grid_rows, :grid_cols].flatten().tolist(),
                "mask_area": float(masks[target].float().mean()),
                "boxes": of_targets[target].xyxy.tolist(),
                "box_scores": of_targets[target].scores.tolist(),
            }
            for target in explanation.targets_of(image)
        ]
    number, text = pa.float64(), pa.string()
    kinds = {"image": text, "target": text, "width": pa.int64(), "height": pa.int64(), "score": number}
    kinds |= {"grid": pa.list_(pa.int64()), "relevance": pa.list_(number), "mask_area": number}
    kinds |= {"boxes": pa.list_(pa.list_(number)), "box_scores": pa.list_(number)}
    result = pa.Table.from_pylist(rows, pa.schema(list(kinds.items())))
    if path is not None:
        buffer = io.BytesIO()
        parquet.write_table(result, buffer)
        save(path, buffer.getvalue())
    return result
