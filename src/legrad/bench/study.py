"""All benchmarks on one model within a budget of time: ``legrad bench all``."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from legrad.atomic import WriteError
from legrad.bench import registry
from legrad.bench.cache import MapCache
from legrad.bench.data import open_data
from legrad.bench.result import Result
from legrad.bench.runner import Limits, Progress, run
from legrad.errors import LeGradError
from legrad.explainer import Explainer
from legrad.methods import METHODS

_CONTROLS = ("random", "centre")
_ALL = tuple(METHODS)
# a control costs nothing and explains nothing: its speed would only confuse
_TIMED = tuple(name for name, method in METHODS.items() if method.needs != "nothing")


@dataclass(frozen=True)
class StudyPart:
    """One benchmark of the study.

    Attributes:
        name: of the benchmark.
        items: samples per method, in the default and in the quick study; 0 leaves the part out.
        seconds: that it takes on two quiet cores, likewise: its share of the time. What it does not use goes to the
            parts after it.
        switches: see ``registry.switches``.
        methods: empty = the benchmark's own choice, see ``registry.methods``.
        black_box: samples of methods that run the model hundreds of times; the quick study leaves them out.
        full: only in the full study.
    """

    name: str
    items: tuple[int, int]
    seconds: tuple[float, float]
    switches: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    black_box: int = 100
    full: bool = False


# Parts on the same images share their maps: the first one pays for them. Sanity changes the weights for a while,
# after which all maps are forgotten: it comes before them. It pays for a truth check at every change, too much for a
# quick look.
PARTS = (
    StudyPart("speed", (20, 5), (45, 8), methods=_TIMED, black_box=2),
    StudyPart("layer-importance", (200, 20), (6, 2), methods=("legrad",)),
    StudyPart(
        "sanity",
        (16, 0),
        (70, 0),
        methods=("legrad", "raw-attention", "gradcam", "chefercam", "grad-eclip", "edges", *_CONTROLS),
    ),
    # scenes of several objects
    StudyPart("localisation", (1000, 50), (700, 40), methods=_ALL),
    StudyPart("openvocab", (1000, 50), (40, 8), methods=_ALL),
    StudyPart("segmentation", (1000, 50), (160, 16), {"explained": "truth"}, _ALL),
    StudyPart(
        "presence",
        (200, 15),
        (35, 6),
        methods=("legrad", "gradcam", "chefercam", "grad-eclip", "textspan", *_CONTROLS),
    ),
    StudyPart("ablation", (100, 10), (50, 10), {"on": "localisation"}),
    StudyPart("ablation", (100, 10), (50, 10), {"on": "segmentation", "explained": "truth"}),
    StudyPart("ablation", (100, 0), (50, 0), {"on": "openvocab"}, full=True),
    # scenes of one object; nothing orders the pixels of a uniform map
    StudyPart(
        "perturbation",
        (200, 10),
        (600, 48),
        methods=tuple(name for name in _ALL if name != "uniform"),
        black_box=25,
    ),
    StudyPart("segmentation", (200, 10), (30, 6), methods=_ALL, black_box=25),
    StudyPart("ablation", (100, 0), (600, 0), {"on": "perturbation", "explained": "predicted"}, full=True),
)
SECONDS = 28.5 * 60  # of the default study: 30 minutes with loading and reporting
QUICK_SECONDS = 160


@dataclass(frozen=True)
class Scale:
    """How much of the study is done.

    Attributes:
        seconds: for all parts together, None for no limit.
        kind: which parts, and how many samples.
    """

    seconds: float | None = SECONDS
    kind: Literal["default", "quick", "full"] = "default"

    def parts(self, parts: Sequence[StudyPart]) -> list[StudyPart]:
        """Those that are done; their first number of samples and of seconds holds."""
        if self.kind == "quick":
            return [
                replace(part, items=part.items[::-1], seconds=part.seconds[::-1], black_box=0)
                for part in parts
                if part.items[1]
            ]
        return [part for part in parts if self.kind == "full" or not part.full]


# what comes after a map, for every method the same: benchmarks of pixels -> the steps whose shares they can tell. The
# scale is monotone, so it changes no order in which pixels are erased.
_GUIDED, _HALF = ":upsampling=guided", ":scale=half"
_STEPS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("localisation", "openvocab", "segmentation"), (_GUIDED, _HALF, _GUIDED + _HALF)),
    "perturbation": (_GUIDED,),
}


def with_steps(parts: Sequence[StudyPart] = PARTS) -> list[StudyPart]:
    """The parts that measure pixels, every method also with guided upsampling and the half-maximum scale."""
    return [
        replace(part, methods=tuple(name + step for name in part.methods for step in ("", *_STEPS[part.name])))
        for part in parts
        if part.name in _STEPS
    ]


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
    parts: Sequence[StudyPart] = PARTS,
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
        progress: called with the work done, and with one line for a part that this model or data cannot have.
        parts: what is run.
        clock: in seconds.

    Returns:
        The results, in the order of the parts.

    Raises:
        InputError: unusable data.
        LeGradError: of the last part, if none can be measured.
    """
    start, results, cache, progress = clock(), [], MapCache(), progress or Progress()
    scaled = scale.parts(parts)
    for place, part in enumerate(scaled):
        samples = open_data(
            data, part.switches.get("on", part.name), explained=part.switches.get("explained"), names=names
        )
        rest = sum(other.seconds[0] for other in scaled[place:])
        limits = Limits(
            items=part.items[0],
            per_method={
                name: part.black_box
                for name in part.methods or METHODS
                if METHODS[name.partition(":")[0]].needs == "black box"
            },
            seconds=None
            if scale.seconds is None
            else max(0.0, scale.seconds - (clock() - start)) * part.seconds[0] / rest,
        )
        try:
            benchmark = registry.build(part.name, explainer.anatomy, part.switches)
            model = registry.model_under_test(part.name, explainer, samples, names=names, cache=cache)
            methods = part.methods or registry.methods(part.name, explainer.anatomy)
            results.append(run(benchmark, model, samples, methods, out, limits, seed, strict, progress, clock))
        except WriteError:  # no other part could be written either
            raise
        except LeGradError as error:
            # a part that this model or data cannot have does not take the others with it
            if strict or (place == len(scaled) - 1 and not results):
                raise
            progress.problem(f"{part.name} left out: {error}")
    return results
