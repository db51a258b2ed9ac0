"""Object segmentation by a heatmap, ImageNet-Segmentation and its like (protocol of Chefer et al., CVPR 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric, own_protocol, switch, with_own_metrics
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Item, Summary, mean
from legrad.datasets import IGNORE, Dataset, Sample
from legrad.errors import InputError
from legrad.metrics import own, segmentation
from legrad.metrics.bootstrap import ratio_of
from legrad.metrics.framing import Geometry, frame_image, frame_mask

_COUNTS = ("tp", "fp", "fn", "tn")


def ratio(name: str, threshold: str) -> Summary:
    """One of ``metrics.segmentation.RATIOS``, counts summed over all images first."""
    place = segmentation.RATIOS.index(name)

    def of(items: Sequence[Item]) -> Any:
        counts = segmentation.counts_of([item[threshold] for item in items])
        return ratio_of(lambda sums: segmentation.ratios(sums)[place], counts)

    return of


def coin(items: Sequence[Item]) -> Any:
    """mIoU of a map that calls every pixel object with probability 1/2."""

    def expected(sums: Any) -> float:
        tp, fp, fn, tn = sums
        share = (tp + fn) / (tp + fp + fn + tn)
        return float((share / (1 + share) + (1 - share) / (2 - share)) / 2)

    return ratio_of(expected, segmentation.counts_of([item["mean"] for item in items]))


def _mean(name: str, threshold: str = "mean") -> Summary:
    return mean(lambda item: item[threshold][name])


def _object_iou(item: Item) -> float | None:
    """Of the object in one image; None where it is neither seen nor there."""
    tp, fp, fn = (item["mean"][name] for name in ("tp", "fp", "fn"))
    return tp / (tp + fp + fn) if tp + fp + fn else None


@dataclass(frozen=True)
class Segmentation:
    """Foreground is where the min-maxed map exceeds a threshold.

    Attributes:
        explained: "predicted": the class that the model predicts, against the mask of the image's label. "truth":
            every class that has a mask, against its own.
        geometry: "squash": image and mask. "crop": both, short side to S, then the centre, whatever the model's own
            transform does. "prs_compat": image cropped so, mask squashed, as TextSpan's code does.
    """

    explained: Literal["predicted", "truth"] = field(
        default="predicted",
        metadata=switch(
            "The predicted class, against the label's mask, or every class that has a mask, against its own."
        ),
    )
    geometry: Geometry = field(
        default="squash",
        metadata=switch(
            "How image and mask become square; prs_compat crops the image and squashes the mask, as TextSpan."
        ),
    )
    name: ClassVar[str] = "segmentation"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "Does the map cover the object, and nothing else?"
    reading: ClassVar[str] = (
        "The map is stretched to [0, 1]; what exceeds its own mean (or 0.5) is called object and compared with the "
        "mask, pixel by pixel. Pixel accuracy and mIoU (mean of object and background) sum over all images first. "
        "mAP needs no threshold. Chance is a map that calls every second pixel object, wherever it lies; a map that "
        "calls nothing object gets the background's share as accuracy."
    )
    library_metrics: ClassVar[Mapping[str, Metric]] = {
        "miou": Metric("mIoU", ratio("miou", "mean"), "higher", "threshold = the map's mean", coin),
        "accuracy": Metric("pixel accuracy", ratio("accuracy", "mean"), "higher", "threshold = the map's mean", 0.5),
        "map": Metric("mAP", _mean("ap"), "higher", "average precision over object and background, no threshold", 0.5),
        "miou_half": Metric("mIoU at 0.5", ratio("miou", "half"), "higher", "threshold = 0.5"),
        "accuracy_half": Metric("pixel accuracy at 0.5", ratio("accuracy", "half"), "higher", "threshold = 0.5"),
        "iou_foreground": Metric("object IoU", ratio("iou_foreground", "mean"), "higher", "without the background"),
        "mean_image_fg_iou": Metric(
            "object IoU, mean over images",
            mean(_object_iou),
            "higher",
            "another metric than the published mIoU; threshold = the map's mean",
            detail=True,
        ),
        "flat": Metric("flat maps", _mean("flat"), None, "share of maps without contrast: all background, AP 0.5"),
    }

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those of the library, and those that users have registered."""
        return with_own_metrics(self.library_metrics)

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            **own_protocol(),
            "thresholds": ["mean", 0.5],
            "comparison": "strict >",
            "mIoU": "counts summed over the data set, mean of 2 classes",
            "AP": "per image, (1 - R, R) pooled",
            "resolution": "the model's input",
            "flat maps": "all background, AP 0.5",
            "ignored pixels": "count nowhere",
            **({} if self.geometry == "squash" else {"crop": "short side to S, bicubic, then the centre"}),
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """A prediction needs classes to choose from, and images of one class."""
        ground_truth.need(data, "masks")
        if self.explained == "predicted" and model.classes.zero_shot and not model.classes.choices:
            raise InputError(f"{data.name} does not list its classes, so none can be predicted; take --explained truth")
        if self.explained == "predicted":
            ground_truth.need(data, "label")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """Counts of every sample, summed over its classes, at both thresholds."""
        images = [sample.image for sample in samples]
        if self.geometry != "squash":
            # before the model's transform, which may crop less, or not at all: the mask is framed without it
            images = [frame_image(image, model.size, self.geometry) for image in images]
        masks = [self._masks(sample, model.size) for sample in samples]
        if self.explained == "predicted":
            best = model.answers(images).argmax(-1).tolist()
            targets = [[model.classes.at_column(column)] for column in best]
        else:
            targets = [[model.classes.target(name) for name in masks_by_name] for masks_by_name in masks]
        items = []
        for sample, masks_by_name, maps in zip(samples, masks, model.maps(images, targets, method), strict=True):
            ignore = sample.extra.get(IGNORE)
            if ignore is not None:
                ignore = frame_mask(ignore, model.size, self.geometry)
            arrays, truths = list(maps.numpy()), list(masks_by_name.values())
            items.append({**scores(arrays, truths, ignore), **own.measured(arrays, truths)})
        return items

    def _masks(self, sample: Sample, size: int) -> dict[str, Any]:
        if self.explained == "truth":
            return ground_truth.objects(sample, size, self.geometry)
        label = ground_truth.label(sample)
        if label not in sample.masks:
            raise InputError(f"{sample.key} has no mask of its label {label!r}")
        return {label: frame_mask(sample.masks[label], size, self.geometry)}


def scores(
    maps: Sequence[NDArray[Any]], masks: Sequence[NDArray[np.bool_]], ignore: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """The scores of one image: "mean" and "half", by threshold; counts are summed over its classes, the rest averaged.

    Args:
        maps: (H, W) of each class, any range.
        masks: (H, W) of each class.
        ignore: (H, W), pixels that do not count.
    """
    pairs = list(zip(maps, masks, strict=True))
    mean = [segmentation.measure(saliency, mask, ignore) for saliency, mask in pairs]
    half = [segmentation.confusion(segmentation.foreground(saliency, 0.5), mask, ignore) for saliency, mask in pairs]
    averages = {}
    for name in ("ap", "flat"):
        values = [row[name] for row in mean if row[name] is not None]
        averages[name] = sum(values) / len(values) if values else None
    return {"mean": {**_sums(mean), **averages}, "half": _sums(half)}


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in _COUNTS}
