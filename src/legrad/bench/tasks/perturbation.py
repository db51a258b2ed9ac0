"""Erase what a map calls relevant, or irrelevant, and watch the model's answers (Chefer et al.; RISE)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric, switch
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import Summary, mean
from legrad.datasets import Dataset, MaskFolder, Sample
from legrad.errors import InputError
from legrad.metrics import perturbation

_DIRECTIONS: tuple[tuple[perturbation.Direction, Literal["higher", "lower"], str], ...] = (
    ("negative", "higher", "least"),
    ("positive", "lower", "most"),
)
_FORWARDS = 32  # images in one batch
_TEMPERATURE = 100.0  # of the softmax over cosine similarities, where CLIP's training ends


def _auc(
    explained: str,
    curve: str,
    steps: Sequence[float],
    area: Callable[[Sequence[float], Sequence[float]], float] = perturbation.auc,
    correct: bool = False,
) -> Summary:
    """Of a curve's mean, which is the mean of the curves' own; ``correct``: of images that are classified right."""

    def of(item: Mapping[str, Any]) -> float | None:
        counts = explained in item and (item["clean"] or not correct)
        return area(item[explained][curve], steps) if counts else None

    return mean(of)


def _others(direction: str, explained: str, better: Literal["higher", "lower"]) -> dict[str, Metric]:
    """The same area in the two other ways of the literature, for the files: the published number is another one."""
    name, title = f"{direction}_{explained}", f"{direction}, {explained}"
    normalised = _auc(explained, direction, perturbation.STEPS, perturbation.auc_normalised)
    correct = _auc(explained, direction, perturbation.STEPS, correct=True)
    meanings = "the area divided by 0.9", "over the images that are classified right before anything is erased"
    return {
        f"{name}_normalised": Metric(f"{title}, / 0.9", normalised, better, meanings[0], detail=True),
        f"{name}_correct_only": Metric(f"{title}, correct only", correct, better, meanings[1], detail=True),
    }


@dataclass(frozen=True)
class Perturbation:
    """Pixels are erased in the order of the map, most relevant first (positive) or least relevant first (negative).

    Attributes:
        explained: which class's map: the one that the model predicts, the true one, or both.
        fill: what erased pixels become.
        patch: side of what is erased as one, in pixels; of a spectrogram in bins and steps.
        ties: order of equal values.
        seed: of ``ties="random"``.
    """

    explained: Literal["both", "predicted", "truth"] = field(
        default="both", metadata=switch("Which class's map: the one that the model predicts, the true one, or both.")
    )
    fill: perturbation.Fill = field(default="black", metadata=switch("What erased pixels become."))
    patch: int = field(
        default=1,
        metadata=switch(
            "Side of what is erased as one. Default: 1 pixel; of a spectrogram the model's patch.", optional=True
        ),
    )
    ties: perturbation.Ties = field(
        default="index", metadata=switch("Order in which pixels of equal relevance are erased.")
    )
    seed: int = 0
    name: ClassVar[str] = "perturbation"
    batch: ClassVar[int] = 4
    question: ClassVar[str] = "Does the model need the pixels that the map calls relevant?"
    reading: ClassVar[str] = (
        "10 % to 90 % of the pixels are blacked out and the accuracy against the true class is drawn over the share. "
        "Positive: the most relevant first, so a good map makes accuracy fall (low is good). Negative: the least "
        "relevant first, so it should stay (high is good). The AUC is as published: a constant accuracy of 1 gives 90. "
        "'Predicted' and 'target' say which class was explained. Insertion and deletion (0 to 100 %) follow the "
        "probability of the explained class. The row of the random map is the chance level."
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        **{
            f"{direction}_{explained}": Metric(
                f"{direction}, {explained}",
                _auc(explained, direction, perturbation.STEPS),
                better,
                f"AUC of the accuracy, {which} relevant pixels erased first, map of the {explained} class",
            )
            for direction, better, which in _DIRECTIONS
            for explained in ("predicted", "target")
        },
        "insertion": Metric(
            "insertion",
            _auc("predicted", "insertion", perturbation.FULL_STEPS),
            "higher",
            "AUC of the predicted class's probability as its most relevant pixels are shown",
        ),
        "deletion": Metric(
            "deletion",
            _auc("predicted", "deletion", perturbation.FULL_STEPS),
            "lower",
            "AUC of the predicted class's probability as its most relevant pixels are erased",
        ),
        "clean": Metric("clean accuracy", mean(lambda item: item["clean"]), None, "before anything is erased"),
        **{
            name: metric
            for direction, better, _ in _DIRECTIONS
            for explained in ("predicted", "target")
            for name, metric in _others(direction, explained, better).items()
        },
    }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "steps": [0.0, *perturbation.STEPS],
            "erased": "before mean and std, each step from the clean image",
            "accuracy": "top-1 against the data set's label, all images",
            "AUC": "100 * trapezoid, clean point included, not divided by the length of the axis",
            "insertion": "the images of the negative curve, from all erased to clean",
            "deletion": "the images of the positive curve, from clean to all erased",
            "probability": f"softmax of the logits; of cosine similarities times {_TEMPERATURE:g}",
            "geometry": "squash",
            "resolution": "the model's input",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Accuracy needs labels, and classes to choose from."""
        ground_truth.need(data, "label")
        if model.classes.zero_shot and not model.classes.choices:
            raise InputError(f"{data.name} does not list its classes, so accuracy cannot be measured")
        if isinstance(data, MaskFolder) and model.classes.zero_shot and len(model.classes.choices) < 2:
            raise InputError(
                f"accuracy needs at least two classes to choose from, {data.name} has one: "
                f"{model.classes.choices[0]!r}; put masks into folders that are called like their "
                "classes (masks/cat/1.png, masks/dog/2.png), or say what ids in them mean with --names"
            )

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """ "clean", and for each explained class the curves "positive", "negative", "deletion", "insertion"."""
        truth = [model.classes.column(ground_truth.label(sample)) for sample in samples]
        images = [sample.image for sample in samples]
        pixels = model.pixels(images)
        clean = model.answers(images)
        # a fully erased image: of the mean colour or a blur it is another one for every sample
        extents = model.extents(images, self.patch)
        covers_input = all(extent == tuple(pixels.shape[2:]) for extent in extents)
        different = pixels[:1] if self.fill == "black" and covers_input else pixels
        nothing = torch.cat(
            [
                self._erased(image, torch.ones(1, *extent, dtype=torch.bool, device="cpu"))
                for image, extent in zip(different, extents, strict=False)
            ]
        )
        blank = self._logits(model, nothing).expand(len(pixels), -1)
        predicted = clean.argmax(-1).tolist()
        explained_columns = {"predicted": predicted, "target": truth}
        if self.explained != "both":
            explained_columns.pop("target" if self.explained == "predicted" else "predicted")
        # a class that is both needs one map only
        distinct = [list(dict.fromkeys(columns)) for columns in zip(*explained_columns.values(), strict=True)]
        targets = [[model.classes.at_column(column) for column in columns] for columns in distinct]
        scores = []
        for index, maps in enumerate(model.maps(images, targets, method)):
            rows, cols = extents[index]
            curves = {
                column: self._curves(model, pixels[index], heatmap, clean[index], blank[index], truth[index], column)
                for column, heatmap in zip(distinct[index], maps[..., :rows, :cols], strict=True)
            }
            scores.append(
                {
                    "clean": int(predicted[index] == truth[index]),
                    **{explained: curves[columns[index]] for explained, columns in explained_columns.items()},
                }
            )
        return scores

    def _curves(
        self,
        model: ModelUnderTest,
        pixels: Tensor,
        heatmap: Tensor,
        clean: Tensor,
        blank: Tensor,
        truth: int,
        explained: int,
    ) -> dict[str, list[float]]:
        """The four curves of one map."""
        curves: dict[str, list[float]] = {}
        for direction, _, _ in _DIRECTIONS:
            masks = perturbation.masks(heatmap.numpy(), direction, perturbation.STEPS, self.patch, self.ties, self.seed)
            steps = self._logits(model, self._erased(pixels, torch.from_numpy(masks)))
            logits = torch.cat([clean[None], steps, blank[None]])
            curves[direction] = (logits[:-1].argmax(-1) == truth).int().tolist()
            chances = (logits * (_TEMPERATURE if model.classes.zero_shot else 1)).softmax(-1)[:, explained]
            curve = [round(chance, 6) for chance in chances.tolist()]
            curves["deletion" if direction == "positive" else "insertion"] = (
                curve if direction == "positive" else curve[::-1]
            )
        return curves

    def _erased(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """(steps, channels, height, width); masks may end before the image does."""
        rows, cols = masks.shape[-2:]
        result = pixels.repeat(len(masks), 1, 1, 1)
        result[..., :rows, :cols] = perturbation.erase(pixels[..., :rows, :cols], masks, self.fill)
        return result

    @staticmethod
    def _logits(model: ModelUnderTest, pixels: Tensor) -> Tensor:
        """(batch, classes) on the CPU."""
        return torch.cat([model.classes.logits(model.seen(part)).cpu() for part in pixels.split(_FORWARDS)])
