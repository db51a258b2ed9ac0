"""Which layers make the map: the paper's analysis of layer importance, over a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from legrad.bench import evidence
from legrad.bench.benchmark import Metric
from legrad.bench.statistics import Item, mean
from legrad.bench.subject import Subject, Variant
from legrad.datasets import Dataset, Sample
from legrad.errors import UnsupportedModelError


@dataclass(frozen=True)
class Fingerprint:
    """Share of every layer in the relevance of the true class.

    Attributes:
        layers: how many blocks the model has.
    """

    layers: int
    name: ClassVar[str] = "fingerprint"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "How much of a map comes from which layer?"
    reading: ClassVar[str] = (
        "Relevance of a layer, summed over the patches, divided by the sum over all layers; the mean over the "
        "pictures. There is no good or bad: it shows where a model decides, and which layers could be left out."
    )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Depth of the centre, then the share of every layer."""

        def depth(item: Item) -> float:
            positions = max(1, self.layers - 1)
            return float(sum(layer * share for layer, share in enumerate(item["layers"])) / positions)

        def share_of(layer: int) -> Metric:
            return Metric(
                f"layer {layer}", mean(lambda item: item["layers"][layer]), None, "its share", 1 / self.layers
            )

        centre = Metric("mean depth", mean(depth), None, "0 = all from the first layer, 1 = all from the last", 0.5)
        return {"depth": centre, **{f"layer_{layer}": share_of(layer) for layer in range(self.layers)}}

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "explained": "truth",
            "geometry": "squash",
            "share": "sum over patches, over all layers",
        }

    def prepare(self, subject: Subject, data: Dataset) -> None:
        """Any model and any data with labels will do."""

    def measure(self, subject: Subject, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """ "layers": the share of each, adding up to 1."""
        variant = Variant.parse(method)
        if "layers" in variant.arguments:
            raise UnsupportedModelError("the fingerprint needs all layers")
        pictures = [sample.image for sample in samples]
        targets = [[subject.target(evidence.label(sample))] for sample in samples]
        found = subject.explain(
            pictures, targets, variant.method, **{**variant.arguments, "layers": None}, keep_layers=True
        )
        if found.layer_relevance is None:
            raise UnsupportedModelError(f"{variant.method} has no map of every layer")
        sums = found.layer_relevance[:, 0].flatten(2).sum(-1).double()
        return [{"layers": _shares(row.tolist())} for row in sums]


def _shares(sums: Sequence[float]) -> list[float]:
    total = sum(sums)
    # a picture without any relevance says nothing about layers
    return [one / total if total else float("nan") for one in sums]
