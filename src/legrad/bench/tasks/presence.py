"""Is it there? Whether a map's strength tells a class that is in the image from one that is not."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Item, Summary
from legrad.datasets import Dataset, Sample
from legrad.errors import InputError
from legrad.metrics import presence
from legrad.metrics.bootstrap import Statistic


def auroc(kind: int) -> Summary:
    """Over all prompts of all samples together, by one of the three kinds of evidence."""

    def of(items: Sequence[Item]) -> Statistic:
        table = [
            [
                (evidence[kind], present)
                for present in (True, False)
                for evidence in item["present" if present else "absent"]
            ]
            for item in items
        ]
        return presence.Table(table).statistic

    return of


@dataclass(frozen=True)
class Presence:
    """Classes in the image against as many that are not.

    Attributes:
        seed: of the absent classes.
    """

    seed: int = 0
    name: ClassVar[str] = "presence"
    batch: ClassVar[int] = 8
    question: ClassVar[str] = "Does the strength of a map tell whether the thing is in the image at all?"
    reading: ClassVar[str] = (
        "Every image is asked for the classes in it and for as many that are not. AUROC is the probability that one "
        "that is there gets more evidence than one that is not. The model's own score is the yardstick: a map that is "
        "stretched to [0, 1] before it is looked at hides this evidence."
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "auroc_maximum": Metric("AUROC of the map's maximum", auroc(0), "higher", "evidence = largest relevance", 0.5),
        "auroc_mean": Metric("AUROC of the map's mean", auroc(1), "higher", "evidence = mean relevance", 0.5),
        "auroc_score": Metric(
            "AUROC of the score", auroc(2), None, "evidence = the model's own score, the same for every method", 0.5
        ),
    }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "absent": "as many classes as are present, drawn from the data set's own",
            "geometry": "squash",
            "relevance": "raw, on the patch grid",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """The absent classes come out of the data set's list."""
        if len(model.classes.askable) < 2:
            raise InputError(f"presence needs a data set that lists two classes at least; {data.name} does not")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """[maximum, mean, score] of every class asked for."""
        prompts = [self._prompts(sample, model.classes.askable) for sample in samples]
        targets = [[model.classes.target(label) for label in [*present, *absent]] for present, absent in prompts]
        images = [sample.image for sample in samples]
        grids, scores = model.evidence(images, targets, method)
        results = []
        for (present, _), grid, score in zip(prompts, grids, scores, strict=True):
            flat = grid.flatten(1)
            rows = [list(row) for row in zip(flat.amax(1).tolist(), flat.mean(1).tolist(), score.tolist(), strict=True)]
            results.append({"present": rows[: len(present)], "absent": rows[len(present) :]})
        return results

    def _prompts(self, sample: Sample, classes: Sequence[str]) -> tuple[list[str], list[str]]:
        present = [name for name, mask in sample.masks.items() if mask.any()]
        present += [name for name, (inside, _) in sample.points.items() if len(inside) and name not in present]
        present = present or [ground_truth.label(sample)]
        others = [name for name in classes if name not in present]
        if len(others) < len(present):
            raise InputError(f"{sample.key} holds more than half of the classes; none are left to be absent")
        rng = ground_truth.generator(sample, self.seed)
        return present, [others[i] for i in rng.choice(len(others), len(present), replace=False)]
