"""Ways out: what an explanation found, in the formats of other tools.

    from legrad import export

    export.coco(explanation, "coco.json")          # COCO JSON, masks run-length encoded (pycocotools)
    export.sam(explanation, "points.json", k=2)    # points and boxes, prompts for SAM
    export.label_studio(explanation, "tasks.json") # pre-annotated tasks
    export.supervision(explanation, image=0)       # supervision.Detections
    export.fiftyone(explanation, image=0)          # FiftyOne's Heatmap, Segmentation and Detections
    export.palette(explanation, image=0)           # PNG with an index for every target
    export.table(explanation, "rows.parquet")      # one row for every image and target (pyarrow)

Libraries are imported when they are needed; without one the error says which extra to install. Thresholds, least areas
and upsampling are those of ``Explanation.masks`` and ``.boxes``.
"""

from legrad.export.coco import CocoFile, coco
from legrad.export.detections import fiftyone, supervision
from legrad.export.palettes import palette
from legrad.export.prompts import label_studio, sam
from legrad.export.tables import table

__all__ = ["CocoFile", "coco", "fiftyone", "label_studio", "palette", "sam", "supervision", "table"]
