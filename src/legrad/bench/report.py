"""A folder of results -> one page to read, one table to compute with, and figures."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from legrad.bench.figures import draw
from legrad.bench.result import Result
from legrad.errors import InputError
from legrad.saving import write_atomically

_MOST_PROBLEMS = 20
_ENOUGH = 50  # pictures; a method with fewer is not called best where others have more
_COLUMNS = ("value", "low", "high", "difference", "difference_low", "difference_high")


def report(folder: Path) -> Path:
    """Write ``report.md``, ``report.csv`` and ``figures/`` from all result files below a folder.

    Returns:
        The page.

    Raises:
        InputError: no folder, no result in it, or a file that is no result.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}; give the --out of a run")
    paths = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    results = [(path, Result.read(path).content) for path in paths]
    if not results:
        raise InputError(f"{folder} holds no result (*.json); run a benchmark with --out {folder}")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    sections = []
    for path, content in results:
        stem = figures / "-".join(path.relative_to(folder).with_suffix("").parts)
        drawn = [made.relative_to(folder).as_posix() for made in draw(content, stem)]
        sections.append(_section(content, path.relative_to(folder).as_posix(), drawn))
    page = "\n\n".join([_HEAD, _overview([content for _, content in results]), *sections]) + "\n"
    write_atomically(folder / "report.csv", _csv([(str(p.relative_to(folder)), c) for p, c in results]))
    write_atomically(folder / "report.md", page.encode())
    return folder / "report.md"


_HEAD = """# Benchmark report

Made by `legrad bench report`; every number comes from the result file named in its section, which holds all settings
and every picture's own scores.

How to read the tables: each cell is the value with its 95 % interval (bootstrap over pictures). ▲ and ▼ say that a
method is better or worse than the first one of the run: the interval of their difference, on the same pictures and the
same draws, does not contain zero. Cells without a mark are ties, or metrics where neither direction is good. The best
value of a column is bold, among methods with at least 50 pictures if any has as many. *Chance* is what a map gets that
knows nothing; where no number is given, compare with the controls `random`, `uniform`, `centre` and `edges`, which
never look at the model."""


def _overview(contents: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| benchmark | model | metric | best method | value | chance |", "| --- | --- | --- | --- | --- | --- |"]
    for content in contents:
        for name, metric in _shown(content).items():
            best = _best(content, name)
            if best is None:
                continue
            rows.append(
                f"| {_title(content)} | {content['settings']['subject']['model']} | {metric['title']} | {best} | "
                f"{_cell(content['methods'][best]['metrics'][name])} | {_number(content['chance'].get(name))} |"
            )
    return "## Best method per metric\n\n" + "\n".join(rows)


def _title(content: Mapping[str, Any]) -> str:
    protocol = content["settings"]["protocol"]
    extra = [str(protocol[key]) for key in ("scored by", "explained") if key in protocol]
    known = {"segmentation": extra[-1:], "ablation": extra[:1]}.get(content["benchmark"], [])
    return " ".join([content["benchmark"], *(f"({one})" for one in known)])


def _section(content: Mapping[str, Any], file: str, figures: Sequence[str]) -> str:
    settings = content["settings"]
    data, subject = settings["data"], settings["subject"]
    facts = [
        f"- model: {subject['model']} (weights {subject['weights']}), data: {data['name']} ({data['path']}), seed "
        f"{settings['seed']}",
        "- protocol: " + "; ".join(f"{key} = {_plain(value)}" for key, value in settings["protocol"].items()),
        "- versions: " + ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        f"- file: `{file}`",
    ]
    if not content["complete"]:
        facts.insert(0, "- **This run was interrupted: the same command goes on with it.**")
    facts += [f"- cut: {cut}" for cut in content["cuts"]]
    facts += [f"- not supported: {method}: {why}" for method, why in content["unsupported"].items()]
    facts += [f"- data: {line}" for line in data.get("problems", [])]
    problems = content["problems"]
    if problems:
        facts.append(f"- {len(problems)} problems:")
        facts += [
            f"  - {one['key']} ({', '.join(one['methods'])}): {one['problem']}" for one in problems[:_MOST_PROBLEMS]
        ]
        if len(problems) > _MOST_PROBLEMS:
            facts.append(f"  - ... and {len(problems) - _MOST_PROBLEMS} more in the file")
    return "\n\n".join(
        [
            f"## {_title(content)}, {subject['model']}",
            f"**{content['question']}** {content['reading']}",
            _sentence(content),
            _table(content),
            *(f"![{content['benchmark']}]({figure})" for figure in figures),
            "\n".join(facts),
        ]
    )


def _sentence(content: Mapping[str, Any]) -> str:
    """What came out, for the headline metric."""
    name, metric = next(iter(content["metrics"].items()))
    best = _best(content, name)
    if best is None:
        return "The columns: " + _legend(content)
    chance = content["chance"].get(name)
    beside = "" if chance is None else f"; chance is {_number(chance)}"
    value = _cell(content["methods"][best]["metrics"][name])
    return f"Best in {metric['title']}: **{best}**, {value}{beside}. The columns: {_legend(content)}"


def _legend(content: Mapping[str, Any]) -> str:
    directions = {"higher": ", higher is better", "lower": ", lower is better", None: ""}
    metrics = _shown(content).values()
    return "; ".join(f"{one['title']}: {one['meaning']}{directions[one['better']]}" for one in metrics) + "."


def _shown(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that have a column; the others are in the files and figures."""
    return {name: metric for name, metric in content["metrics"].items() if not metric.get("detail")}


def _table(content: Mapping[str, Any]) -> str:
    metrics = _shown(content)
    best = {name: _best(content, name) for name in metrics}
    lines = [
        f"| method | {' | '.join(one['title'] for one in metrics.values())} | pictures | problems | s per picture |",
        "| --- |" + " --- |" * (len(metrics) + 3),
    ]
    for method, one in content["methods"].items():
        cells = []
        for name, metric in metrics.items():
            numbers = one["metrics"].get(name)
            cell = "" if numbers is None else _cell(numbers) + _mark(numbers, metric["better"])
            cells.append(f"**{cell}**" if best[name] == method else cell)
        cost = one["seconds per item"]
        lines.append(
            f"| {method} | {' | '.join(cells)} | {one['items']} | {one['problems']} | "
            f"{'' if cost is None else f'{cost:.3g}'} |"
        )
    chance = [_number(content["chance"].get(name)) for name in metrics]
    lines.append(f"| *chance* | {' | '.join(chance)} | | | |")
    return "\n".join(lines)


def _best(content: Mapping[str, Any], metric: str) -> str | None:
    """The best value among the methods with enough pictures; None where neither direction is good."""
    better = content["metrics"][metric]["better"]
    enough = min(_ENOUGH, max(one["items"] for one in content["methods"].values()))
    found = {
        method: one["metrics"][metric]["value"]
        for method, one in content["methods"].items()
        if one["items"] >= enough and metric in one["metrics"] and one["metrics"][metric]["value"] is not None
    }
    if better is None or not found:
        return None
    return (max if better == "higher" else min)(found, key=lambda method: found[method])


def _mark(numbers: Mapping[str, Any], better: str | None) -> str:
    low, high = numbers["difference_low"], numbers["difference_high"]
    if better is None or low is None or low <= 0 <= high:
        return ""
    return " ▲" if (low > 0) == (better == "higher") else " ▼"


def _cell(numbers: Mapping[str, Any]) -> str:
    if numbers["value"] is None:
        return ""
    if numbers["low"] is None:
        return _number(numbers["value"])
    return f"{_number(numbers['value'])} [{_number(numbers['low'])}, {_number(numbers['high'])}]"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _csv(results: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["file", "benchmark", "model", "data", "method", "metric", *_COLUMNS, "chance", "items", "problems"]
    )
    writer.writerows(_rows(results))
    return text.getvalue().encode()


def _rows(results: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[list[Any]]:
    for file, content in results:
        settings = content["settings"]
        head = [file, content["benchmark"], settings["subject"]["model"], settings["data"]["name"]]
        for method, one in content["methods"].items():
            for name, numbers in one["metrics"].items():
                row = [numbers[column] for column in _COLUMNS]
                yield [*head, method, name, *row, content["chance"].get(name), one["items"], one["problems"]]
