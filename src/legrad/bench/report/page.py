"""A folder of results -> one page to read, one table to compute with, and figures."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from legrad.atomic import one_at_a_time
from legrad.bench.report import comparison
from legrad.bench.report.figures import VECTORS, differences, draw, vector
from legrad.bench.report.record import ReportFiles
from legrad.bench.report.tables import FORMATS, table
from legrad.bench.result import Result
from legrad.errors import InputError, warn
from legrad.names import slug
from legrad.viz import png

_MOST_PROBLEMS = 20
_COLUMNS = ("value", "low", "high", "difference", "difference_low", "difference_high")


def report(folder: Path) -> Path:
    """Write ``report.md``, ``report.csv``, ``figures/`` and ``paper/`` from all result files below a folder.

    In ``paper/`` are the tables as LaTeX, Markdown and CSV, and the figures as PDF and SVG.

    Files that are not of an earlier report are never replaced: a name that is taken gets a number.

    Returns:
        The page.

    Raises:
        InputError: no folder, no result in it, or it cannot be written.

    Warns:
        UserWarning: a file that is no result, and is left out.
    """
    results = [(path.relative_to(folder), content, _drawn(path, content)) for path, content in results_in(folder)]
    with one_at_a_time(folder / ".legrad-report"):
        return _write(folder, results)


def results_in(folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """The result files below a folder, with their contents.

    Raises:
        InputError: no folder, or no result in it.

    Warns:
        UserWarning: a file that is no result, and is left out.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}; give the --out of a run")
    results = []
    for path in sorted(path for path in folder.rglob("*.json") if not path.name.startswith(".")):
        try:
            content = Result.read(path).content
            _check_parts(path, content)
            results.append((path, content))
        except InputError as error:
            warn(f"left out of the report: {error}")
    if not results:
        raise InputError(f"{folder} holds no result (*.json); run a benchmark with --out {folder}")
    return results


def _write(folder: Path, results: Sequence[tuple[Path, Mapping[str, Any], Mapping[tuple[str, str], bytes]]]) -> Path:
    """The page of results: their paths in the folder, contents and figures."""
    out, files, sections = ReportFiles(folder), dict[str, bytes](), []
    for path, content, figures in results:
        images, stem = [], "-".join(path.with_suffix("").parts)
        for (suffix, ending), data in figures.items():
            name = out.name(f"{'figures' if ending == '.png' else 'paper'}/{stem}{suffix}", ending)
            files[name] = data
            images += [name] if ending == ".png" else []
        for format, ending in FORMATS.items():
            text = table(content).text(format)
            files[out.name(f"paper/{stem}", ending)] = text.encode("utf-8", "backslashreplace")
        sections.append(_section(content, path.as_posix(), images))
    overviews = []
    for model in dict.fromkeys(_model(content) for _, content, _ in results):
        contents = [content for _, content, _ in results if _model(content) == model]
        figure, image = differences(contents), None
        if figure is not None:
            image = out.name(f"figures/standing-{slug(model)}", ".png")
            files[image] = png(figure)
            for ending in VECTORS:
                files[out.name(f"paper/standing-{slug(model)}", ending)] = vector(figure, ending)
        overviews.append(_overview(image, model, contents))
    files[out.name("report", ".csv")] = _csv([(str(path), content) for path, content, _ in results])
    out.write(files, "\n\n".join([_HEAD, *filter(None, overviews), *sections]) + "\n")
    return out.page


def _drawn(path: Path, content: Mapping[str, Any]) -> dict[tuple[str, str], bytes]:
    """The figures of a result: (suffix of the name, ending) -> file."""
    files = {}
    for suffix, figure in draw(content).items():
        files[suffix, ".png"] = png(figure)
        files.update({(suffix, ending): vector(figure, ending) for ending in VECTORS})
    return files


def _check_parts(path: Path, content: Mapping[str, Any]) -> None:
    """Raises ``InputError`` for a result that has the parts of one, and nonsense in them."""
    try:
        _section(content, "", [])
        _csv([("", content)])
        comparison.overview([content])
        differences([content])
        table(content)
        draw(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is not a result of legrad bench ({type(error).__name__}: {error})") from error


_HEAD = """# Benchmark report

Made by `legrad bench report`; every number comes from the result file named in its section, which holds all settings
and every image's own scores.

**How to read it.** A value stands with its 95 % interval (bootstrap over images). A method is *better* (▲) or *worse*
(▼) than the first one of the run, if the 95 % interval of their difference on the same images lies on one side of
zero; otherwise the two are *level*: this many images cannot tell them apart. Below 30 common images there is no
verdict, and no value is bold; "too few" stands where an interval would be a point. Slow methods are measured on fewer
images, whose number is in brackets: compare them by their difference, which is over the images that both have, and
not by their value. The best value is bold, among methods that have all images. *Chance* is what a map gets that
knows nothing; where no number is given, compare with the controls `random`, `uniform`, `centre` and `edges`, which
never look at the model. *Bare forwards* is a method's time for one image and one prompt, over that of the model's
own forward pass."""


def _overview(image: str | None, model: str, contents: Sequence[Mapping[str, Any]]) -> str:
    text = comparison.overview(contents)
    if not text:
        return ""
    reference = contents[0]["statistics"]["paired with"]
    parts = [f"## Where does {reference} stand? {model}", text]
    if image is not None:
        parts.insert(1, f"![differences from {reference}]({image})")
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
    facts += [f"- cut: {note}" for note in content["cuts"]]
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
    summary = "" if metric["better"] is None else f"{metric['title']}: {comparison.summary_sentence(content, name)} "
    return f"{summary}The columns: {_legend(content)}"


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
    return text.getvalue().encode("utf-8", "backslashreplace")


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
                points = [
                    *(("low", "high") if comparison.is_point(numbers) else ()),
                    *(comparison.BOUNDS if comparison.is_point(numbers, "pairs", comparison.BOUNDS) else ()),
                ]
                row = [None if column in points else numbers[column] for column in _COLUMNS]
                yield [*head, method, name, *row, content["chance"].get(name), result["items"], result["problems"]]
