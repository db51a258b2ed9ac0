"""Samples as Markdown tables; every table is (title, head, rows)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from performance.cases import Case
from performance.contenders import RIVALS
from performance.goals import GOALS
from performance.growth import SERIES
from performance.results import Results
from performance.sampling import Spread, line, quotient

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def markdown(table: Table) -> str:
    """A heading and the table."""
    title, head, rows = table
    lines = [f"## {title}", "", _row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def goals(results: Results) -> Table:
    """The targets with measured value and verdict."""
    return "Targets", ("case", "target", "measured", ""), [goal.row(results) for goal in GOALS]


def times(results: Results) -> Table:
    """Ours against the bare forward."""
    head = (
        "model",
        "px",
        "batch",
        "prompts",
        "layers",
        "read-out",
        "bare forward, s",
        "ours / bare",
        "with check",
        "n",
    )
    rows = []
    for case in results.cases("time"):
        bare, warm = results.seconds(case, "bare"), results.ratio(case)
        if case.contender == "ours" and bare is not None and warm is not None:
            model = case.label if case.dtype == "float32" else f"{case.label}, {case.dtype}"
            setting = (model, str(case.size), str(case.batch), str(case.prompts), _layers(case), case.readout)
            rows.append((*setting, bare.show(3), warm.show(), _show(results.first_use(case)), str(warm.count)))
    return "Time, in bare forwards", head, rows


def rivals(results: Results) -> Table:
    """Other packages, each against the bare forward in its process, and ours on the same model."""
    head = ("package", "model", "prompts", "layers", "its time / bare", "ours / bare", "its time / ours")
    rows = []
    for case in results.cases("time"):
        their_ratio = results.ratio(case)
        if case.contender in RIVALS and their_ratio is not None:
            our_ratio = results.ratio(_of(case, "ours"))
            times_ours = "" if our_ratio is None else quotient(their_ratio, our_ratio).show()
            setting = (RIVALS[case.contender].title, case.label, str(case.prompts), _layers(case))
            rows.append((*setting, their_ratio.show(), _show(our_ratio), times_ours))
    return "Other packages, batch 1", head, rows


def memory(results: Results) -> Table:
    """Peaks of fresh processes."""
    head = ("contender", "model", "px", "batch", "prompts", "layers", "extra, GB", "peak, GB", "weights, GB", "n")
    rows = []
    for case in results.cases("memory"):
        extra, total, weights = results.extra(case), results.total(case), results.weights(case)
        if extra is not None and total is not None and weights is not None:
            model = case.label if case.dtype == "float32" else f"{case.label}, {case.dtype}"
            layers = "" if case.contender == "bare" else _layers(case)
            prompts = "" if case.contender == "bare" else str(case.prompts)
            setting = (case.contender, model, str(case.size), str(case.batch), prompts, layers)
            rows.append((*setting, extra.show(3), total.show(), f"{weights.median:.2f}", str(extra.count)))
    return "Memory", head, rows


def growth(results: Results) -> Table:
    """Slopes of straight lines through the medians."""
    rows = []
    for series in SERIES:
        points = series.points(results)
        if len(points) > 1:
            slope, start = line(points)
            unit = "GB" if series.group == "memory" else "bare forwards"
            medians = ", ".join(f"{y:.2f} at {x:g}" for x, y in points)
            rows.append((series.group, series.title, f"{slope:.3g} {unit} per {series.unit}", f"{start:.2f}", medians))
    return "How cost grows", ("with", "case", "slope", "at zero", "medians"), rows


def _of(case: Case, contender: str) -> Case:
    return replace(case, contender=contender)


def _layers(case: Case) -> str:
    return "all" if case.layers is None else f"last {case.layers}"


def _show(spread: Spread | None) -> str:
    return "" if spread is None else spread.show()
