"""All benchmarks on one model within a budget of time: ``legrad bench all``."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from legrad.bench import table
from legrad.bench.data import open_data
from legrad.bench.result import Result
from legrad.bench.runner import Limits, Progress, run
from legrad.explainer import Explainer
from legrad.methods import METHODS

_CONTROLS = ("random", "centre")


@dataclass(frozen=True)
class Part:
    """One benchmark of the study.

    Attributes:
        name: of the benchmark.
        items: samples per method.
        weight: its share of the time; what it does not use goes to the parts after it.
        switches: see ``table.SWITCHES``.
        methods: None = all, black boxes included; empty = the benchmark's own choice, see ``table.methods``.
    """

    name: str
    items: int
    weight: float
    switches: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] | None = None


# cheap ones first: time that they leave is used by the others
PARTS = (
    Part("speed", 50, 1, methods=()),
    Part("fingerprint", 200, 1, methods=("legrad",)),
    Part("presence", 200, 2, methods=("legrad", "gradcam", "chefercam", "grad-eclip", "textspan", *_CONTROLS)),
    Part("ablation", 200, 4, methods=()),
    Part(
        "sanity", 16, 4, methods=("legrad", "raw-attention", "gradcam", "chefercam", "grad-eclip", "edges", *_CONTROLS)
    ),
    Part("localisation", 1000, 8),
    Part("openvocab", 1000, 8),
    Part("segmentation", 1000, 8, {"explained": "truth"}),
    Part("segmentation", 1000, 8),
    Part("perturbation", 200, 16),
)
SECONDS = 27 * 60  # of the default study: 30 minutes with loading and reporting
QUICK_SECONDS = 140
QUICK_SHARE = 10  # the quick study takes one item in ten


@dataclass(frozen=True)
class Scale:
    """How much of the study is done.

    Attributes:
        seconds: for all parts together, None for no limit.
        share: one item in so many.
        black_box: samples for methods that run the model hundreds of times; 0 leaves them out.
    """

    seconds: float | None = SECONDS
    share: int = 1
    black_box: int = 100


# one item of a black box costs as much as dozens of the others': too much for a quick look
FULL, QUICK = Scale(None), Scale(QUICK_SECONDS, QUICK_SHARE, black_box=0)


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
    start, results = clock(), []
    for place, part in enumerate(parts):
        samples = open_data(data, part.name, explained=part.switches.get("explained"))
        benchmark = table.build(part.name, explainer.anatomy, part.switches)
        subject = table.subject(part.name, explainer, samples, names=names)
        methods = list(METHODS) if part.methods is None else list(part.methods)
        limits = Limits(
            items=max(1, part.items // scale.share),
            per_method={name: scale.black_box for name, one in METHODS.items() if one.needs == "black box"},
            seconds=None
            if scale.seconds is None
            else max(0.0, scale.seconds - (clock() - start))
            * part.weight
            / sum(other.weight for other in parts[place:]),
        )
        results.append(
            run(
                benchmark,
                subject,
                samples,
                methods or table.methods(part.name, explainer.anatomy),
                out,
                limits,
                seed,
                strict,
                progress,
                clock,
            )
        )
    return results
