"""All benchmarks on one model within a budget of time: ``legrad bench all``."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from legrad.bench import table
from legrad.bench.data import open_data
from legrad.bench.memory import Memory
from legrad.bench.result import Result
from legrad.bench.runner import Limits, Progress, run
from legrad.explainer import Explainer
from legrad.methods import METHODS

_CONTROLS = ("random", "centre")
_ALL = tuple(METHODS)
# a control costs nothing and explains nothing: its speed would only confuse
_TIMED = tuple(name for name, method in METHODS.items() if method.needs != "nothing")


@dataclass(frozen=True)
class Part:
    """One benchmark of the study.

    Attributes:
        name: of the benchmark.
        items: samples per method.
        quick: the same in the quick study; 0 leaves the part out.
        weight: its share of the time; what it does not use goes to the parts after it.
        switches: see ``table.SWITCHES``.
        methods: empty = the benchmark's own choice, see ``table.methods``.
        black_box: samples of methods that run the model hundreds of times; the quick study leaves them out.
        full: only in the full study.
    """

    name: str
    items: int
    quick: int
    weight: float
    switches: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    black_box: int = 100
    full: bool = False


# The weights are seconds on two quiet cores. Parts on the same pictures share their maps: the first one pays for them.
# Sanity changes the weights for a while, after which all maps are forgotten: it comes before them.
PARTS = (
    Part("speed", 30, 5, 50, methods=_TIMED, black_box=3),
    Part("fingerprint", 200, 20, 10),
    Part(
        "sanity",
        16,
        4,
        40,
        methods=("legrad", "raw-attention", "gradcam", "chefercam", "grad-eclip", "edges", *_CONTROLS),
    ),
    # scenes of several objects
    Part("localisation", 1000, 100, 650, methods=_ALL),
    Part("openvocab", 1000, 100, 40, methods=_ALL),
    Part("segmentation", 1000, 100, 180, {"explained": "truth"}, _ALL),
    Part("presence", 200, 20, 30, methods=("legrad", "gradcam", "chefercam", "grad-eclip", "textspan", *_CONTROLS)),
    Part("ablation", 200, 20, 40, {"on": "localisation"}),
    Part("ablation", 200, 20, 40, {"on": "segmentation", "explained": "truth"}),
    Part("ablation", 200, 0, 40, {"on": "openvocab"}, full=True),
    # scenes of one object
    Part("perturbation", 200, 20, 750, methods=_ALL, black_box=50),
    Part("segmentation", 200, 20, 20, methods=_ALL, black_box=50),
    Part("ablation", 100, 0, 600, {"on": "perturbation", "explained": "predicted"}, full=True),
)
SECONDS = 28 * 60  # of the default study: 30 minutes with loading and reporting
QUICK_SECONDS = 140


@dataclass(frozen=True)
class Scale:
    """How much of the study is done.

    Attributes:
        seconds: for all parts together, None for no limit.
        kind: which parts, and how many samples.
    """

    seconds: float | None = SECONDS
    kind: Literal["default", "quick", "full"] = "default"

    def parts(self, parts: Sequence[Part]) -> list[Part]:
        """Those that are done, with their numbers of samples."""
        if self.kind == "quick":
            return [replace(part, items=part.quick, black_box=0) for part in parts if part.quick]
        return [part for part in parts if self.kind == "full" or not part.full]


FULL, QUICK = Scale(None, "full"), Scale(QUICK_SECONDS, "quick")


def study(
    explainer: Explainer,
    data: str,
    out: Path,
    scale: Scale = Scale(),
    *,
    names: Mapping[str, str] | None = None,
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
    parts: Sequence[Part] = PARTS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Run every part; results and journals lie in ``out``. A second call goes on where the first one stopped.

    Args:
        explainer: the model.
        data: "embedded", or a path that all parts can use.
        out: folder.
        scale: how much.
        names: what classes are called in prompts.
        seed: of the order and of the bootstrap.
        strict: raise at the first problem.
        progress: told about the work.
        parts: what is run.
        clock: in seconds.

    Returns:
        The results, in the order of the parts.
    """
    start, results, memory = clock(), [], Memory()
    chosen = scale.parts(parts)
    for place, part in enumerate(chosen):
        samples = open_data(data, part.switches.get("on", part.name), explained=part.switches.get("explained"))
        benchmark = table.build(part.name, explainer.anatomy, part.switches)
        subject = table.subject(part.name, explainer, samples, names=names, memory=memory)
        rest = sum(other.weight for other in chosen[place:])
        limits = Limits(
            items=part.items,
            per_method={name: part.black_box for name, one in METHODS.items() if one.needs == "black box"},
            seconds=None if scale.seconds is None else max(0.0, scale.seconds - (clock() - start)) * part.weight / rest,
        )
        results.append(
            run(
                benchmark,
                subject,
                samples,
                part.methods or table.methods(part.name, explainer.anatomy),
                out,
                limits,
                seed,
                strict,
                progress,
                clock,
            )
        )
    return results
