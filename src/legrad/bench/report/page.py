"""A folder of results -> one page to read, one table to compute with, and figures."""

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from legrad.atomic import write_atomically
from legrad.bench.report import comparison
from legrad.bench.report.figures import differences, draw
from legrad.bench.result import Result
from legrad.errors import InputError
from legrad.names import slug
from legrad.viz import png

_MOST_PROBLEMS = 20
_COLUMNS = ("value", "low", "high", "difference", "difference_low", "difference_high")


def report(folder: Path) -> Path:
    """Write ``report.md``, ``report.csv`` and ``figures/`` from all result files below a folder.

    Returns:
        The page.

    Raises:
        InputError: no folder, or no result in it.

    Warns:
        UserWarning: a file that is no result, and is left out.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}; give the --out of a run")
    paths = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    results = []
    for path in paths:
        try:
            results.append((path, Result.read(path).content))
        except InputError as error:
            warnings.warn(f"left out of the report: {error}", UserWarning, stacklevel=2)
    if not results:
        raise InputError(f"{folder} holds no result (*.json); run a benchmark with --out {folder}")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    sections = []
    for path, content in results:
        stem = figures / "-".join(path.relative_to(folder).with_suffix("").parts)
        images = [image.relative_to(folder).as_posix() for image in draw(content, stem)]
        sections.append(_section(content, path.relative_to(folder).as_posix(), images))
    models = dict.fromkeys(_model(content) for _, content in results)
    overviews = [
        _overview(folder, name, [content for _, content in results if _model(content) == name]) for name in models
    ]
    page = "\n\n".join([_HEAD, *filter(None, overviews), *sections]) + "\n"
    write_atomically(folder / "report.csv", _csv([(str(p.relative_to(folder)), c) for p, c in results]))
    write_atomically(folder / "report.md", page.encode())
    return folder / "report.md"


_HEAD = """# Benchmark report

Made by `legrad bench report`; every number comes from the result file named in its section, which holds all settings
and every image's own scores.

**How to read it.** A value stands with its 95 % interval (bootstrap over images). A method is *better* (▲) or *worse*
(▼) than the first one of the run, if the 95 % interval of their difference on the same images lies on one side of
zero; otherwise the two are *level*: this many images cannot tell them apart. Slow methods are measured on fewer
images, whose number is in brackets: compare them by their difference, which is over the images that both have, and
not by their value. The best value is bold, among methods that have all images. *Chance* is what a map gets that
knows nothing; where no number is given, compare with the controls `random`, `uniform`, `centre` and `edges`, which
never look at the model. *Bare forwards* is a method's time for one image and one prompt, over that of the model's
own forward pass."""


def _overview(folder: Path, model: str, contents: Sequence[Mapping[str, Any]]) -> str:
    text = comparison.overview(contents)
    if not text:
        return ""
    reference = contents[0]["statistics"]["paired with"]
    parts = [f"## Where does {reference} stand? {model}", text]
    figure = differences(contents)
    if figure is not None:
        path = folder / "figures" / f"standing-{slug(model)}.png"
        write_atomically(path, png(figure))
        parts.insert(1, f"![differences from {reference}]({path.relative_to(folder).as_posix()})")
    return "\n\n".join(parts)


def _model(content: Mapping[str, Any]) -> str:
    return str(content["settings"]["subject"]["model"])


def _section(content: Mapping[str, Any], file: str, figures: Sequence[str]) -> str:
    settings = content["settings"]
    data, model = settings["data"], settings["subject"]
    facts = [
        f"- model: {model['model']} (weights {model['weights']}), data: {data['name']} ({data['path']}), seed "
        f"{settings['seed']}; {comparison.settings_text(content) or 'all settings are the defaults'}",
        "- protocol: " + "; ".join(f"{key} = {_plain(value)}" for key, value in settings["protocol"].items()),
        "- versions: " + ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        "- machine: " + ", ".join(f"{name} {value}" for name, value in content["machine"].items() if value),
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
            f"  - {problem['key']} ({', '.join(problem['methods'])}): {problem['problem']}"
            for problem in problems[:_MOST_PROBLEMS]
        ]
        if len(problems) > _MOST_PROBLEMS:
            facts.append(f"  - ... and {len(problems) - _MOST_PROBLEMS} more in the file")
    return "\n\n".join(
        [
            f"## {comparison.title(content)}, {_model(content)}",
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
    compared = "" if metric["better"] is None else f"{metric['title']}: {comparison.summary_sentence(content, name)} "
    return f"{compared}The columns: {_legend(content)}"


def _legend(content: Mapping[str, Any]) -> str:
    directions = {"higher": ", higher is better", "lower": ", lower is better", None: ""}
    metrics = _table_metrics(content).values()
    return (
        "; ".join(f"{metric['title']}: {metric['meaning']}{directions[metric['better']]}" for metric in metrics) + "."
    )


def _table_metrics(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that have a column; the others are in the files, and some in figures."""
    return {name: metric for name, metric in content["metrics"].items() if not metric.get("detail")}


def _table(content: Mapping[str, Any]) -> str:
    metrics = _table_metrics(content)
    best = {name: comparison.best(content, name) for name in metrics}
    lines = [
        f"| method | images | problems | {' | '.join(metric['title'] for metric in metrics.values())} |",
        "| --- |" + " --- |" * (len(metrics) + 2),
    ]
    for method, result in content["methods"].items():
        cells = []
        for name, metric in metrics.items():
            numbers = result["metrics"].get(name)
            cell = (
                "" if numbers is None else comparison.cell(numbers) + comparison.verdict_mark(numbers, metric["better"])
            )
            cells.append(f"**{cell}**" if best[name] == method else cell)
        lines.append(f"| {method} | {result['items']} | {result['problems']} | {' | '.join(cells)} |")
    chance = [comparison.number(content["chance"].get(name)) for name in metrics]
    lines.append(f"| *chance* | | | {' | '.join(chance)} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _csv(results: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["file", "benchmark", "model", "settings", "data", "method", "metric", *_COLUMNS, "chance", "items", "problems"]
    )
    writer.writerows(_rows(results))
    return text.getvalue().encode()


def _rows(results: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[list[Any]]:
    for file, content in results:
        settings = content["settings"]
        head = [
            file,
            content["benchmark"],
            _model(content),
            comparison.settings_text(content),
            settings["data"]["name"],
        ]
        for method, result in content["methods"].items():
            for name, numbers in result["metrics"].items():
                row = [numbers[column] for column in _COLUMNS]
                yield [*head, method, name, *row, content["chance"].get(name), result["items"], result["problems"]]
