"""Which layers, and which of their heads, make the map: the paper's analysis of layer importance, over a data set."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Item, mean
from legrad.bench.tasks.ablation import heads_of
from legrad.bench.variants import Variant
from legrad.datasets import Dataset, Sample
from legrad.errors import UnsupportedModelError
from legrad.heads import head_relevance
from legrad.models.anatomy import ViTAnatomy

_ROUNDING = 1e-9


@dataclass(frozen=True)
class LayerImportance:
    """Share of every layer, and of every head of it, in the relevance of the true class.

    Attributes:
        layers: how many blocks the model has.
        heads: of the explained attention; 0 where they cannot be told apart, and only layers are measured.
    """

    layers: int
    heads: int = 0
    name: ClassVar[str] = "layer-importance"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "How much of a map comes from which layer, and from which head?"
    reading: ClassVar[str] = (
        "Relevance of a layer, summed over the patches, divided by the sum over all layers; the mean over the "
        "images. There is no good or bad: it shows where a model decides, and which layers could be left out. The "
        "same for every head of LeGrad's maps is in the figure, and in the files as head_LAYER_HEAD."
    )

    @classmethod
    def of(cls, anatomy: ViTAnatomy) -> "LayerImportance":
        """Of a model."""
        return cls(len(anatomy.blocks), heads_of(anatomy))

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Depth of the centre, how few heads make half of it, then the share of every layer and of every head."""

        def depth(item: Item) -> float | None:
            if None in item["layers"]:
                return None
            positions = max(1, self.layers - 1)
            return float(sum(layer * share for layer, share in enumerate(item["layers"])) / positions)

        def share_of(layer: int) -> Metric:
            return Metric(
                f"layer {layer}", mean(lambda item: item["layers"][layer]), None, "its share", 1 / self.layers
            )

        def share_of_head(layer: int, head: int) -> Metric:
            return Metric(
                f"layer {layer}, head {head}",
                mean(lambda item: item["heads"][layer][head] if "heads" in item else None),
                None,
                "its share",
                1 / (self.layers * self.heads),
                detail=True,
            )

        centre = Metric("mean depth", mean(depth), None, "0 = all from the first layer, 1 = all from the last", 0.5)
        metrics = {"depth": centre, **{f"layer_{layer}": share_of(layer) for layer in range(self.layers)}}
        if self.heads:
            half = mean(lambda item: _for_half(item["heads"]) if "heads" in item else None)
            meaning = "the fewest heads that make half of it, as a share of all heads; 0.5 = all alike"
            metrics["half"] = Metric("heads for half", half, None, meaning, 0.5)
            metrics |= {
                f"head_{layer}_{head}": share_of_head(layer, head)
                for layer in range(self.layers)
                for head in range(self.heads)
            }
        flat = mean(lambda item: float(None in item["layers"]))
        return {
            **metrics,
            "flat": Metric("flat maps", flat, None, "share of maps without relevance, which tell nothing"),
        }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "explained": "truth",
            "geometry": "squash",
            "share": "sum over patches, over all layers",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Any model and any data with labels will do."""
        ground_truth.need(data, "label")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """ "layers": the share of each, adding up to 1; of LeGrad "heads" too, for every layer a list."""
        variant = Variant.parse(method).on_patches()
        if "layers" in variant.arguments:
            raise UnsupportedModelError("layer importance needs all layers")
        images = [sample.image for sample in samples]
        targets = [[model.classes.target(ground_truth.label(sample))] for sample in samples]
        arguments = {**variant.arguments, "layers": None}
        if self.heads and variant.method == "legrad":
            maps = head_relevance(model, images, targets, **arguments)[:, 0]
            shares = [_shares(sums) for sums in maps.flatten(3).sum(-1).double()]
            return [{"layers": of_heads.sum(1).tolist(), "heads": of_heads.tolist()} for of_heads in shares]
        explanation = model.explain(images, targets, variant.method, **arguments, keep_layers=True)
        if len(explanation.layers) != self.layers:
            raise UnsupportedModelError(f"reads {len(explanation.layers)} of the {self.layers} layers only")
        layer_sums = explanation.layer_relevance[:, 0].flatten(2).sum(-1).double()
        return [{"layers": _shares(sums).tolist()} for sums in layer_sums]


def _shares(sums: Tensor) -> Tensor:
    """Divided by their sum; an image without any relevance says nothing about layers, and gets NaN."""
    return sums / sums.sum()


def _for_half(shares: Sequence[Sequence[float]]) -> float | None:
    """The least share of the heads whose shares add up to one half."""
    ordered = sorted((share for layer in shares for share in layer if share is not None), reverse=True)
    reached = [place for place, total in enumerate(itertools.accumulate(ordered), 1) if total >= 0.5 - _ROUNDING]
    return reached[0] / len(ordered) if reached else None
