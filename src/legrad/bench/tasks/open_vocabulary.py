"""Open-vocabulary localisation judged at labelled points, as in OpenImages V7."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric, switch
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Item, mean
from legrad.datasets import Dataset, Sample
from legrad.errors import InputError
from legrad.metrics import points
from legrad.metrics.bootstrap import Statistic
from legrad.metrics.framing import frame_points


def p_miou(items: Sequence[Item]) -> Statistic:
    """Counts of a class pooled over all images, mean over classes."""
    return points.Table([item["classes"] for item in items]).statistic


def p_miou_pairs(items: Sequence[Item]) -> Statistic:
    """Mean over pairs of image and class."""
    return points.Table([item["classes"] for item in items]).pairs_statistic


def everything(items: Sequence[Item]) -> Statistic:
    """p-mIoU of a map that calls every point foreground."""
    return p_miou(
        [
            {"classes": {name: [tp + fn, fp + tn, 0, 0, 0] for name, (tp, fp, fn, tn, _) in item["classes"].items()}}
            for item in items
        ]
    )


def _share_flat(item: Item) -> float:
    return float(sum(counts[4] for counts in item["classes"].values()) / len(item["classes"]))


@dataclass(frozen=True)
class OpenVocabulary:
    """Every class that has a positive point in an image is asked for.

    Attributes:
        threshold: of the min-maxed map; above it is foreground.
    """

    threshold: float = field(default=0.5, metadata=switch("Of the min-maxed map; above it is foreground."))
    name: ClassVar[str] = "openvocab"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "Asked for a thing by name, does the map light up where people say it is?"
    reading: ClassVar[str] = (
        "IoU over points: hits divided by hits, false alarms and misses together. Chance is a map that calls "
        "everything foreground; one that calls nothing gets 0. p-mIoU is the mean over classes; "
        "the mean over pairs of image and class is the other reading of the published text."
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "p_miou": Metric("p-mIoU", p_miou, "higher", "counts pooled per class, mean over classes", everything),
        "p_miou_pairs": Metric("p-mIoU, pairs", p_miou_pairs, "higher", "mean over pairs of image and class"),
        "flat": Metric("flat maps", mean(_share_flat), None, "share of maps without contrast: all background"),
    }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "geometry": "squash",
            "points": f"the data set's; of masks a lattice of {ground_truth.LATTICE} x {ground_truth.LATTICE}",
            "asked": "classes with a positive point in the image, with their own negative points",
            "IoU": "TP / (TP + FP + FN), foreground only, empty unions skipped",
            "comparison": "strict >",
            "resolution": "the model's input",
            "flat maps": "all background",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Any model; the data must have points, or masks."""
        ground_truth.need(data, "points", "masks")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """ "classes": name -> [TP, FP, FN, TN, flat]."""
        points_of = [ground_truth.points(sample) for sample in samples]
        classes = [[name for name, (positive, _) in named.items() if len(positive)] for named in points_of]
        for sample, names in zip(samples, classes, strict=True):
            if not names:
                raise InputError(f"{sample.key} has no class with a positive point")
        targets = [[model.classes.target(name) for name in names] for names in classes]
        images = [sample.image for sample in samples]
        scores = []
        all_maps = model.maps(images, targets, method)
        for sample, named, names, maps in zip(samples, points_of, classes, all_maps, strict=True):
            counts = {}
            for name, relevance in zip(names, maps, strict=True):
                positive, negative = (frame_points(where, sample.image.size, model.size) for where in named[name])
                counts[name] = points.measure(relevance.numpy(), positive, negative, self.threshold)
            scores.append({"classes": counts})
        return scores
