"""Tables of a study of steps: ``python -m tools.steps_study RUN > steps.md``.

The run is ``legrad bench all --steps --full --seed 16``. For every metric a table: rows are methods, columns the steps
behind them (none, guided upsampling, the half-maximum scale, both); then how the best of ours differs, on the same
images, from plain LeGrad and from the best other method with the same steps.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from legrad.bench import registry
from legrad.bench.report.comparison import metric_title
from legrad.bench.result import Result
from legrad.bench.summaries import compare
from legrad.methods import METHODS

STEPS = {"": "as it is", ":upsampling=guided": "guided", ":scale=half": "half", ":upsampling=guided:scale=half": "both"}
OURS = ("legrad", "legrad-centred", "legrad-simplex")


def tables(content: Mapping[str, Any]) -> Iterator[str]:
    """Markdown of every metric that has a direction."""
    protocol = content["settings"]["protocol"]
    benchmark = registry.BENCHMARKS[content["benchmark"]]()
    for name, metric in content["metrics"].items():
        if metric["better"] is None or metric.get("detail") or name not in benchmark.metrics:
            continue
        yield f"### {metric_title(content, name)}\n"
        yield from _table(content, name)
        for step in STEPS:
            yield from _differences(content, benchmark.metrics[name].statistic, name, step)
        yield ""
    yield f"<!-- {protocol} -->\n"


def _table(content: Mapping[str, Any], metric: str) -> Iterator[str]:
    steps = [step for step in STEPS if f"legrad{step}" in content["methods"]]
    yield f"| method | {' | '.join(STEPS[step] for step in steps)} |"
    yield f"|---|{'---|' * len(steps)}"
    for method in METHODS:
        numbers = [content["methods"].get(method + step, {}).get("metrics", {}).get(metric) for step in steps]
        if any(numbers):
            cells = ["" if one is None or one["value"] is None else f"{one['value']:.3f}" for one in numbers]
            yield f"| {method} | {' | '.join(cells)} |"
    yield ""


def _differences(content: Mapping[str, Any], summary: Any, metric: str, step: str) -> Iterator[str]:
    """The best of ours with a step minus plain LeGrad, and minus the best other method with the same step."""
    scores = content["scores"]
    values = {
        method: content["methods"][method + step]["metrics"][metric]["value"]
        for method in METHODS
        if scores.get(method + step) and scores[method + step].keys() == scores["legrad"].keys()
    }
    values = {method: value for method, value in values.items() if value is not None}
    best = max if content["metrics"][metric]["better"] == "higher" else min
    ours, others = ([m for m in values if (m in OURS) == mine] for mine in (True, False))
    if not ours or not others:
        return
    mine, other = best(ours, key=values.__getitem__), best(others, key=values.__getitem__)
    for reference in ("legrad", other + step):
        if mine + step == reference:
            continue
        pair = {name: scores[name] for name in (reference, mine + step)}
        numbers = compare(pair, summary, reference, content["settings"]["seed"])[mine + step]
        low, high = numbers["difference_low"], numbers["difference_high"]
        yield f"- {mine}{step} - {reference}: {numbers['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def main(run: Path) -> None:
    """Print the tables of all results in a folder."""
    for path in sorted(run.rglob("*.json")):
        if path.name == "manifest.json":
            continue
        print(f"## {path.parent.name}\n")
        for line in tables(Result.read(path).content):
            print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
