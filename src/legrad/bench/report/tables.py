"""The table of a result for a paper: LaTeX with booktabs, Markdown and CSV, with the same numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from legrad.bench.report import comparison
from legrad.choices import check_choice
from legrad.errors import InputError

FORMATS = {"latex": ".tex", "markdown": ".md", "csv": ".csv"}
_ARROWS = {"higher": ("↑", r"$\uparrow$"), "lower": ("↓", r"$\downarrow$")}
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class Cell:
    """A number as it is printed: its value, and its interval.

    Attributes:
        value: "" where there is none.
        interval: in brackets; "" where there is none.
        best: of its column.
    """

    value: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class ResultTable:
    """A table of methods and metrics.

    Attributes:
        caption: what was measured, on what.
        label: of the table in LaTeX.
        heads: titles of the metrics, with what is better ("higher", "lower" or None).
        rows: method, number of images, a cell per metric.
        chance: a number per metric, "" where there is none.
    """

    caption: str
    label: str
    heads: tuple[tuple[str, str | None], ...]
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]
    chance: tuple[str, ...]

    def text(self, format: str) -> str:
        """The table in one of ``FORMATS``.

        Raises:
            InputError: no such format.
        """
        check_choice("format", format, tuple(FORMATS))
        return {"latex": self._latex, "markdown": self._markdown, "csv": self._csv}[format]()

    def _latex(self) -> str:
        heads = [f"{escaped(title)}{_arrow(better, 1)}" for title, better in self.heads]
        lines = [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{escaped(self.caption)}}}",
            f"\\label{{tab:{self.label}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(heads) + 1)}}}",
            "\\toprule",
            f"method & images & {' & '.join(heads)} \\\\",
            "\\midrule",
        ]
        for method, images, cells in self.rows:
            lines.append(f"{escaped(method)} & {images} & {' & '.join(map(_latex_cell, cells))} \\\\")
        if any(self.chance):
            lines += ["\\midrule", f"\\emph{{chance}} & & {' & '.join(map(escaped, self.chance))} \\\\"]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])

    def _markdown(self) -> str:
        heads = [f"{title}{_arrow(better, 0)}".replace("|", "\\|") for title, better in self.heads]
        lines = [
            self.caption,
            "",
            f"| method | images | {' | '.join(heads)} |",
            "| --- |" + " ---: |" * (len(heads) + 1),
        ]
        for method, images, cells in self.rows:
            texts = [f"**{cell.value}**" if cell.best else cell.value for cell in cells]
            texts = [" ".join(filter(None, (text, cell.interval))) for text, cell in zip(texts, cells, strict=True)]
            lines.append(f"| {method} | {images} | {' | '.join(texts)} |")
        if any(self.chance):
            lines.append(f"| *chance* | | {' | '.join(self.chance)} |")
        return "\n".join([*lines, ""])

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        titles = [head for title, _ in self.heads for head in (title, f"{title} interval")]
        writer.writerow(["method", "images", *titles])
        for method, images, cells in self.rows:
            writer.writerow([method, images, *(part for cell in cells for part in (cell.value, cell.interval))])
        if any(self.chance):
            writer.writerow(["chance", "", *(part for value in self.chance for part in (value, ""))])
        return text.getvalue()


def table(content: Mapping[str, Any], metrics: Sequence[str] = ()) -> ResultTable:
    """The table of a result file's content.

    Args:
        content: see ``bench.result.summarise``.
        metrics: names of those that get a column; none for those of the report.

    Raises:
        InputError: no such metric.
    """
    for name in metrics:
        check_choice("metric", name, tuple(content["metrics"]))
    columns = {name: content["metrics"][name] for name in metrics} or {
        name: metric for name, metric in content["metrics"].items() if not metric.get("detail")
    }
    best = {name: comparison.best(content, name) for name in columns}
    rows = []
    for method, result in content["methods"].items():
        cells = tuple(_cell(result["metrics"].get(name), best[name] == method) for name in columns)
        rows.append((method, str(result["items"]), cells))
    settings = content["settings"]
    caption = (
        f"{comparison.title(content)}: {settings['subject']['model']} on {settings['data']['name']}, 95 % intervals."
    )
    heads = tuple((str(metric["title"]), metric["better"]) for metric in columns.values())
    chance = tuple(comparison.number(content["chance"].get(name)) for name in columns)
    return ResultTable(caption, str(content["benchmark"]), heads, tuple(rows), chance)


def merged(contents: Sequence[Mapping[str, Any]], metrics: Sequence[str], format: str) -> str:
    """The tables of several results, one behind the other; raises ``InputError`` if none has the metrics."""
    fitting = [content for content in contents if all(name in content["metrics"] for name in metrics)]
    if not fitting:
        all_metrics = dict.fromkeys(name for content in contents for name in content["metrics"])
        raise InputError(f"no result has the metrics {', '.join(metrics)}; there are {', '.join(all_metrics)}")
    return "\n".join(table(content, metrics).text(format) for content in fitting)


def escaped(text: str) -> str:
    """A text for LaTeX."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _arrow(better: str | None, kind: int) -> str:
    return f" {_ARROWS[better][kind]}" if better in _ARROWS else ""


def _cell(numbers: Mapping[str, Any] | None, best: bool) -> Cell:
    """The same text as in the report."""
    value, space, interval = ("" if numbers is None else comparison.cell(numbers)).partition(" ")
    return Cell(value, interval, best and bool(space or value))


def _latex_cell(cell: Cell) -> str:
    value = f"\\textbf{{{escaped(cell.value)}}}" if cell.best else escaped(cell.value)
    return f"{value} {{\\scriptsize {escaped(cell.interval)}}}" if cell.interval else value
