"""The tables and figures of docs/study.md out of a run: ``python -m tools.publish_study legrad-bench``.

The run is ``legrad bench all --data embedded --full``. All numbers go to docs/study/, but no image's own scores, and
few figures. The tables of the page itself stand between ``<!-- standing MODEL -->`` or ``<!-- variants MODEL -->`` and
``<!-- end -->``; the words around them are written by hand.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from legrad.bench.report import comparison
from legrad.bench.report.page import report
from legrad.bench.result import Result
from performance.store import ROOT

OUT, PAGE = ROOT / "docs" / "study", ROOT / "docs" / "study.md"
# figures that are worth their space: differences between methods, layers, curves of erasing
_SHOWN = ("standing-", "ablation-", "perturbation-", "layer-importance-", "fingerprint-")
_COLOURS = 128
# (benchmark, metric) -> head of its column; of two segmentations the one that explains the true class counts
_COLUMNS = {
    ("localisation", "pointing"): "pointing game",
    ("localisation", "energy"): "energy",
    ("openvocab", "p_miou"): "p-mIoU",
    ("perturbation", "negative_predicted"): "negative",
    ("perturbation", "positive_predicted"): "positive",
    ("segmentation", "miou"): "mIoU",
    ("segmentation", "miou_half"): "mIoU at 0.5",
    ("segmentation", "map"): "mAP",
}


def publish(run: Path, out: Path = OUT, page: Path = PAGE) -> None:
    """Write ``report.md``, ``results.csv``, ``results.json``, figures, and the tables of the page.

    Args:
        run: the --out of the study.
        out: folder; its old figures go.
        page: Markdown with markers, see ``fill``.
    """
    whole_report = report(run)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    lines = []
    for line in whole_report.read_text(encoding="utf-8").splitlines():
        if line.startswith("!["):
            figure = line[line.index("(") + 1 : -1]
            name = Path(figure).name
            bars = not name.endswith("-curves.png") and not name.startswith("standing-")
            if bars or not any(part in name for part in _SHOWN):
                continue
            with Image.open(run / figure) as image:
                image.convert("RGB").quantize(_COLOURS).save(out / name, optimize=True)
            line = line.replace(figure, name)
        lines.append(line)
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (run / "report.csv").open(newline="") as full, (out / "results.csv").open("w", newline="") as short:
        csv.writer(short, lineterminator="\n").writerows([_digits(cell) for cell in row] for row in csv.reader(full))
    results = {path.relative_to(run).as_posix(): Result.read(path).content for path in sorted(run.rglob("*.json"))}
    without = {
        name: {key: value for key, value in content.items() if key != "scores"} for name, content in results.items()
    }
    (out / "results.json").write_text(json.dumps(_short(without), separators=(",", ":")) + "\n", encoding="utf-8")
    page.write_text(fill(page.read_text(encoding="utf-8"), list(results.values())), encoding="utf-8")


Content = Mapping[str, Any]


def fill(page: str, contents: Sequence[Content]) -> str:
    """The page with its tables made anew.

    Args:
        page: Markdown with markers.
        contents: of all results of a study.
    """

    def table(section: re.Match[str]) -> str:
        kind, model = section[1], section[2]
        results = [content for content in contents if content["settings"]["subject"]["model"] == model]
        lines = _standing(results) if kind == "standing" else _variants(results)
        return "\n".join([section[0].splitlines()[0], *lines, "<!-- end -->"])

    return re.sub(r"<!-- (standing|variants) (\S+) -->\n.*?<!-- end -->", table, page, flags=re.S)


def _standing(contents: Sequence[Content]) -> Iterator[str]:
    """Every method in every column, and its cost."""
    runs = {run["benchmark"]: run for run in contents if run["settings"]["protocol"].get("explained") != "predicted"}
    costs = {name: result["metrics"]["slowdown"]["value"] for name, result in runs["speed"]["methods"].items()}
    yield from _table(
        runs, runs["localisation"]["methods"], "method", lambda name: f"{costs[name]:.3g}" if costs.get(name) else ""
    )
    counts = [f"{comparison.title(content)} {comparison.num_images(content)}" for content in contents]
    yield f"\nImages: {', '.join(counts)}."


def _variants(contents: Sequence[Content]) -> Iterator[str]:
    """LeGrad's own settings, each scored by other benchmarks."""
    runs = {run["settings"]["protocol"]["scored by"]: run for run in contents if run["benchmark"] == "ablation"}
    methods = next(iter(runs.values()))["methods"]
    yield from _table(runs, [name for name in methods if ":heads=" not in name or "layers" not in name], "variant")


def _table(
    runs: Mapping[str, Content], methods: Iterable[str], head: str, last: Callable[[str], str] | None = None
) -> Iterator[str]:
    columns = {
        (benchmark, metric): title
        for (benchmark, metric), title in _COLUMNS.items()
        if benchmark in runs and metric in runs[benchmark]["metrics"]
    }
    best = {key: comparison.best(runs[key[0]], key[1]) for key in columns} if last else {}
    heads = [head, *columns.values(), *(["cost"] if last else [])]
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for method in methods:
        cells = [_cell(runs[key[0]], key[1], method, best.get(key)) for key in columns]
        yield f"| {' | '.join([_short_name(method), *cells, *([last(method)] if last else [])])} |"
    if last:
        chance = [comparison.number(runs[benchmark]["chance"].get(metric)) for benchmark, metric in columns]
        yield f"| *chance* | {' | '.join(chance)} | |"


def _cell(content: Content, metric: str, method: str, best: str | None) -> str:
    result = content["methods"].get(method)
    numbers = None if result is None else result["metrics"].get(metric)
    if result is None or numbers is None or numbers["value"] is None:
        return ""
    fewer = "" if result["items"] == _num_images(content) else f" ({result['items']})"
    mark = comparison.verdict_mark(numbers, content["metrics"][metric]["better"])
    text = comparison.number(numbers["value"]) + fewer + mark
    return f"**{text}**" if method == best else text


def _num_images(content: Content) -> int:
    return max(result["items"] for result in content["methods"].values())


def _short_name(method: str) -> str:
    """ "legrad-norelu:layers=2:readout=native" -> "no ReLU, last 2, native"."""
    name, *settings = method.split(":")
    if not settings:
        return name
    words = {"layers": "last {}", "readout": "{}", "heads": "heads {}"}
    parts = [words[key].format(value) for key, _, value in (setting.partition("=") for setting in settings)]
    return ", ".join(["no ReLU" if name == "legrad-norelu" else name, *parts])


def _digits(cell: str) -> str:
    """The same for a cell of a table."""
    return f"{float(cell):.5g}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", cell) else cell


def _short(value: object) -> object:
    """Five digits are more than any interval here allows."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
