"""One benchmark on one model: what ``legrad bench NAME`` does, from Python."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from legrad.bench import registry
from legrad.bench.classes import TEMPLATES
from legrad.bench.data import open_data
from legrad.bench.result import Result
from legrad.bench.runner import Limits, Progress, run
from legrad.checks import check_count
from legrad.datasets import Dataset, MaskFolder
from legrad.explainer import Explainer
from legrad.results.manifest import folder_path

SCENES = 200  # default number of embedded scenes, of which there is no end


def measure(
    name: str,
    explainer: Explainer,
    data: "str | os.PathLike[str] | Dataset" = "embedded",
    methods: Sequence[str] = (),
    out: "str | os.PathLike[str]" = "legrad-bench",
    *,
    items: int | None = None,
    seconds: float | None = None,
    settings: Mapping[str, Any] | None = None,
    layers: int | Sequence[int] | None = None,
    readout: str = "auto",
    size: int | None = None,
    templates: Sequence[str] = TEMPLATES,
    names: Mapping[str, str] | None = None,
    images: Path | None = None,
    unit: str | None = None,
    classes: Path | None = None,
    seed: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Measure methods on a model; a second call goes on where the first one stopped.

    Args:
        name: of the benchmark, see ``registry.NAMES``.
        explainer: of the model.
        data: a data set, or what ``--data`` names, see ``data.open_data``.
        methods: names or variants, also of methods that ``legrad.register_method`` added; the first is what the others
            are compared with. None: all but black boxes.
        out: the folder of the results; ``legrad.results.load`` makes a table of it, ``legrad bench report`` a report.
        items: samples per method; None for all, 200 scenes.
        seconds: for this call.
        settings: the benchmark's own switches, see ``registry.switches``.
        layers, readout, size, templates, names: see ``ModelUnderTest``.
        images, unit, classes: see ``data.open_data``.
        seed, strict, progress: see ``runner.run``.

    Raises:
        InputError: unusable arguments, data or folder; with ``strict`` any problem.
        UnsupportedModelError: a model that this benchmark cannot measure.
    """
    folder, switches = folder_path(out), dict(settings or {})
    check_count("seed", seed, 0)
    if isinstance(data, str | os.PathLike):
        explained, base = switches.get("explained"), switches.get("on", name)
        options: dict[str, Any] = {"images": images, "classes": classes, "explained": explained, "unit": unit}
        data = open_data(os.fspath(data), base, names=names, **options)
    switches, progress = registry.fitting_switches(name, switches, data), progress or Progress()
    model = registry.model_under_test(
        name,
        explainer,
        data,
        layers=layers,
        readout=readout,
        names=names,
        templates=tuple(templates),
        size=size,
    )
    anatomy = model.explainer.anatomy
    if isinstance(data, MaskFolder) and data.is_unnamed and model.classes.zero_shot and not names:
        progress.problem(
            f"{data.name}: its masks say nothing about what they show, so the model is asked for 'object'; put them "
            "into masks/CLASS/, or say what 'object' is in the file of --names"
        )
    benchmark = registry.build(name, anatomy, switches)
    if items is None and data.name == "embedded":
        items = SCENES
    selection = list(methods) or registry.methods(name, anatomy)
    return run(benchmark, model, data, selection, folder, Limits(items, seconds=seconds), seed, strict, progress)
