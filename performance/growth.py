"""How cost grows with prompts, layers and tokens: straight lines through the medians."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from performance.cases import B16, SIGLIP, Case
from performance.results import Results
from performance.sampling import line

DEPTH = 12  # of all towers here


@dataclass(frozen=True)
class Series:
    """Cases that differ in one thing.

    Attributes:
        group: the plot that it belongs to.
        title: what is constant.
        unit: name of one step of x.
        base: the case of the series whose free field is ignored.
        field: the field that varies: "prompts", "layers" or "size".
        measure: "time": y is in bare forwards; "memory": y is extra GB.
    """

    group: str
    title: str
    unit: str
    base: Case
    field: str

    def points(self, results: Results) -> list[tuple[float, float]]:
        """(x, median) of everything measured, ascending."""
        value = results.ratio if self.base.measure == "time" else results.extra
        points = []
        for case in results.cases(self.base.measure):
            if _same(case, self.base, self.field):
                spread = value(case)
                if spread is not None:
                    points.append((_X[self.field](case), spread.median))
        return sorted(points)

    def slope(self, results: Results) -> float:
        """Cost of one more unit; nan with fewer than two points."""
        return line(self.points(results))[0]


_X: dict[str, Callable[[Case], float]] = {
    "prompts": lambda case: case.prompts,
    "layers": lambda case: DEPTH if case.layers is None else case.layers,
    "size": lambda case: (case.size // 16) ** 2 + 1,
}


def _same(case: Case, other: Case, but: str) -> bool:
    """Whether two cases differ in one field only."""
    names = ("measure", "contender", "model", "size", "batch", "prompts", "layers", "readout", "dtype")
    return all(getattr(case, name) == getattr(other, name) for name in names if name != but)


def _time(contender: str = "ours", model: str = B16, batch: int = 1, **more: Any) -> Case:
    return Case("time", contender, model, batch=batch, **more)


PROMPTS_BATCH_8 = Series("prompts", "ours, batch 8", "prompt", _time(batch=8), "prompts")
SERIES = (
    Series("prompts", "ours, batch 1", "prompt", _time(), "prompts"),
    PROMPTS_BATCH_8,
    Series("prompts", "ours, last 2 layers, batch 1", "prompt", _time(layers=2), "prompts"),
    Series("prompts", "ours, native read-out, batch 1", "prompt", _time(readout="native"), "prompts"),
    Series("prompts", "ours, native read-out, batch 8", "prompt", _time(batch=8, readout="native"), "prompts"),
    Series("prompts", "ours, SigLIP, batch 1", "prompt", _time(model=SIGLIP), "prompts"),
    Series("prompts", "authors, batch 1", "prompt", _time("authors"), "prompts"),
    Series("prompts", "authors, last 2 layers, batch 1", "prompt", _time("authors", layers=2), "prompts"),
    Series("layers", "ours, 1 prompt, batch 8", "layer", _time(batch=8), "layers"),
    Series("tokens", "ours, 1 prompt, last 2 layers", "token", _time(layers=2), "size"),
    Series("tokens", "ours, 1 prompt, all layers", "token", _time(), "size"),
    Series("tokens", "ours, SigLIP, 1 prompt", "token", _time(model=SIGLIP), "size"),
    Series("memory", "ours, batch 1", "prompt", Case("memory", "ours", B16), "prompts"),
    Series("memory", "authors, batch 1", "prompt", Case("memory", "authors", B16), "prompts"),
)


def number_or_none(slope: float) -> float | None:
    """None instead of nan."""
    return None if math.isnan(slope) else slope
