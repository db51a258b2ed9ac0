"""The tables and figures of docs/study.md out of a run: ``python benchmarks/study.py legrad-bench``.

The run is ``legrad bench all --data embedded --full``. All numbers go, but no picture's own scores, and few figures.
"""

import csv
import json
import re
import sys
from pathlib import Path

from PIL import Image
from store import ROOT

from legrad.bench.report import report
from legrad.bench.result import Result

OUT = ROOT / "docs" / "study"
# figures that are worth their space: who stands where, which layers, curves of erasing
_SHOWN = ("standing-", "ablation-", "perturbation-", "fingerprint-")
_COLOURS = 128


def publish(run: Path, out: Path = OUT) -> None:
    """Write ``report.md``, ``results.csv``, ``results.json`` and figures.

    Args:
        run: the --out of the study.
        out: folder; its old figures go.
    """
    page = report(run)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    lines = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("!["):
            figure = line[line.index("(") + 1 : -1]
            name = Path(figure).name
            bars = not name.endswith("-curves.png") and not name.startswith("standing-")
            if bars or not any(part in name for part in _SHOWN):
                continue
            with Image.open(run / figure) as picture:
                picture.convert("RGB").quantize(_COLOURS).save(out / name, optimize=True)
            line = line.replace(figure, name)
        lines.append(line)
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (run / "report.csv").open(newline="") as full, (out / "results.csv").open("w", newline="") as short:
        csv.writer(short, lineterminator="\n").writerows([_digits(cell) for cell in row] for row in csv.reader(full))
    found = {}
    for path in sorted(run.rglob("*.json")):
        content = Result.read(path).content
        found[path.relative_to(run).as_posix()] = {key: value for key, value in content.items() if key != "scores"}
    (out / "results.json").write_text(json.dumps(_short(found), separators=(",", ":")) + "\n", encoding="utf-8")


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
