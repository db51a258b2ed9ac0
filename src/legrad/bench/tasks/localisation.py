"""Does a map fall on its object? Pointing game, energy in the mask, prompt-swap."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric, own_protocol, switch, with_own_metrics
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import mean, ratio
from legrad.datasets import Dataset, Sample
from legrad.metrics import localisation, own

_AREA = ratio(lambda item: item["area"], lambda item: item["objects"])


@dataclass(frozen=True)
class Localisation:
    """Every object of an image is asked for by its name.

    Attributes:
        tolerance: pixels that the maximum may lie beside the mask.
    """

    tolerance: float = field(default=0, metadata=switch("Pixels that the maximum may lie beside the mask."))
    name: ClassVar[str] = "localisation"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "Asked for one of several things, does the map fall on that one?"
    reading: ClassVar[str] = (
        "Pointing game: the map's maximum lies in the mask. Energy: the share of the map's positive part inside the "
        "mask. Prompt-swap: for every two objects, the map of one is higher over its own mask than over the other's; a "
        "method that does not look at the prompt gets one half. Chance of the first two is the share of the image "
        "that the mask covers."
    )
    library_metrics: ClassVar[Mapping[str, Metric]] = {
        "pointing": Metric(
            "pointing game",
            ratio(lambda item: item["hits"], lambda item: item["objects"]),
            "higher",
            "maximum in the mask, mean over objects",
            _AREA,
        ),
        "swap": Metric(
            "prompt-swap",
            ratio(lambda item: item["swaps_won"], lambda item: item["swaps"]),
            "higher",
            "ordered pairs of objects won; ties half",
            0.5,
        ),
        "energy": Metric(
            "energy in the mask",
            ratio(lambda item: item["energy"], lambda item: item["objects"]),
            "higher",
            "share of the map, mean over objects",
            _AREA,
        ),
        "flat": Metric("flat maps", mean(lambda item: item["flat"] / item["objects"]), None, "share without contrast"),
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
            "explained": "truth, every object",
            "geometry": "squash",
            "resolution": "the model's input",
            "flat maps": "as chance: all pixels are maxima, energy spread evenly, comparisons tied",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Any model; the data must have masks."""
        ground_truth.need(data, "masks")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """Sums over the objects, see ``metrics.localisation.measure``, and the share that their masks cover."""
        masks = [ground_truth.objects(sample, model.size) for sample in samples]
        targets = [[model.classes.target(name) for name in masks_by_name] for masks_by_name in masks]
        images = [sample.image for sample in samples]
        scores = []
        for masks_by_name, maps in zip(masks, model.maps(images, targets, method), strict=True):
            truth = np.stack(list(masks_by_name.values()))
            sums = localisation.measure(maps.numpy(), truth, self.tolerance)
            area = float(truth.mean((1, 2)).sum())
            scores.append({**sums, "area": area, **own.measured(list(maps.numpy()), list(truth))})
        return scores
