"""Does a map depend on what the model learned, and on what was asked? (Adebayo et al., arXiv:1810.03292)"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from legrad.bench import ground_truth
from legrad.bench.benchmark import Metric
from legrad.bench.model import ModelUnderTest
from legrad.bench.summaries import mean
from legrad.datasets import Dataset, Sample
from legrad.errors import InputError

_LETTERS = "bcdfghjklmnpqrstvwxz"


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's correlation of two maps of one shape, equal values sharing their mean rank; None if one is flat."""
    maps = [heatmap.flatten().double().numpy() for heatmap in (first, second)]
    if any((values == values[0]).all() for values in maps):
        return None
    return float(_scipy_stats().spearmanr(*maps).statistic)


def _scipy_stats() -> Any:
    try:
        return importlib.import_module("scipy.stats")
    except ImportError as error:
        raise InputError("rank correlations are computed with scipy: pip install 'legrad[bench]'") from error


@contextmanager
def shuffled(parameters: Sequence[nn.Parameter], seed: int) -> Iterator[None]:
    """Every parameter's numbers in another order, so that what was learned is gone and the scale is kept; put back."""
    generator = torch.Generator("cpu").manual_seed(seed)
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                order = torch.randperm(parameter.numel(), generator=generator, device="cpu").to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, originals, strict=True):
                parameter.copy_(value)


def _size(of: str, place: int) -> Callable[[Mapping[str, Any]], Any]:
    """Size of one correlation, since a map upside down is still the same map; None where there is none."""

    def value(item: Mapping[str, Any]) -> float | None:
        correlation = item[of][place] if item[of] else None
        return None if correlation is None else abs(correlation)

    return value


def _mean_size(of: str) -> Callable[[Mapping[str, Any]], Any]:
    def value(item: Mapping[str, Any]) -> float | None:
        sizes = [abs(correlation) for correlation in item[of] if correlation is not None]
        return sum(sizes) / len(sizes) if sizes else None

    return value


@dataclass(frozen=True)
class Sanity:
    """Parameters shuffled from the last block down, and each block alone; a prompt without meaning.

    Attributes:
        seed: of the shuffling and of the meaningless prompts.
    """

    seed: int = 0
    name: ClassVar[str] = "sanity"
    batch: ClassVar[int] = 16
    question: ClassVar[str] = "Does a map change when the model forgets what it learned, or is asked for nonsense?"
    reading: ClassVar[str] = (
        "Size of the rank correlation between the map of the trained model and the map after its parameters were "
        "shuffled: from the last block down to the whole tower (cascade), and each block alone. A map that stays the "
        "same (near 1) shows the image, not the model; two unrelated maps get a little above 0. The last column "
        "compares the map of the true class with that of a meaningless word: a method that does not look at the prompt "
        "gets 1. Maps without contrast do not count."
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "cascade_all": Metric("all parameters shuffled", mean(_size("cascade", -1)), "lower", "whole tower shuffled"),
        "cascade_mean": Metric("cascade, mean", mean(_mean_size("cascade")), "lower", "mean over the cascade's steps"),
        "cascade_last_block": Metric("last block shuffled", mean(_size("cascade", 0)), "lower", "only the last block"),
        "alone_mean": Metric("one block at a time, mean", mean(_mean_size("alone")), "lower", "mean over the blocks"),
        "gibberish": Metric("meaningless prompt", mean(_size("gibberish", 0)), "lower", "map of a random word"),
    }

    def protocol(self) -> Mapping[str, Any]:
        """Switches and conventions."""
        return {
            **asdict(self),
            "randomisation": "numbers of every parameter permuted among themselves",
            "cascade": "blocks from the last to the first, then all other parameters of the vision tower",
            "alone": "each block alone, from the last to the first, then the other parameters alone",
            "similarity": "Spearman on the patch grid; absolute values in the metrics",
            "explained": "truth",
            "meaningless prompt": "a word of 8 random consonants in the same template; image-text models only",
            "geometry": "squash",
        }

    def prepare(self, model: ModelUnderTest, data: Dataset) -> None:
        """Any model and any data with labels will do; scipy must be installed."""
        _scipy_stats()
        ground_truth.need(data, "label")

    def measure(self, model: ModelUnderTest, samples: Sequence[Sample], method: str) -> list[dict[str, Any]]:
        """Correlations: "cascade" and "alone", from the last block to the rest of the tower, and "gibberish"."""
        images = [sample.image for sample in samples]
        targets = [[model.classes.target(ground_truth.label(sample))] for sample in samples]

        def maps() -> list[Tensor]:
            return [grid[0] for grid in model.grids(images, targets, method)]

        trained = maps()
        scores: list[dict[str, Any]] = [{"cascade": [], "alone": [], "gibberish": []} for _ in samples]

        def compare(kind: str, parameters: Sequence[nn.Parameter], stage: int) -> None:
            with shuffled(parameters, self.seed + stage):
                others = maps()
            for item, before, after in zip(scores, trained, others, strict=True):
                item[kind].append(rank_correlation(before, after))

        parts = stages(model.explainer.anatomy.tower, model.explainer.anatomy.blocks)
        for stage, parameters in enumerate(parts):
            compare("cascade", [p for part in parts[: stage + 1] for p in part], stage)
            compare("alone", parameters, stage)
        if model.classes.zero_shot:
            words = [self._gibberish(sample) for sample in samples]
            nonsense = model.grids(images, [[model.classes.direction(word)] for word in words], method)
            for item, before, grid in zip(scores, trained, nonsense, strict=True):
                item["gibberish"].append(rank_correlation(before, grid[0]))
        return scores

    def _gibberish(self, sample: Sample) -> str:
        rng = ground_truth.generator(sample, self.seed)
        return "".join(_LETTERS[i] for i in rng.integers(0, len(_LETTERS), 8))


def stages(tower: nn.Module, blocks: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Parameters to shuffle: those of each block, from the last to the first, then the tower's others.

    Raises:
        InputError: blocks share parameters, so that one alone cannot be shuffled.
    """
    stages = [list(block.parameters()) for block in reversed(blocks)]
    owned = [id(parameter) for stage in stages for parameter in stage]
    if len(set(owned)) < len(owned):
        raise InputError("blocks of this model share parameters: they cannot be shuffled one by one")
    inside = set(owned)
    return [*stages, [parameter for parameter in tower.parameters() if id(parameter) not in inside]]
