"""Measure what a person waits for first: ``python -m performance.first_call``.

First calls, calls that are known and calls at new input sizes take turns with bare forwards in one process; then many
sizes in a row. The numbers go to ``docs/performance/first-call.json``, as a part of the page to ``first-call.md``
beside it; ``python -m performance --render`` puts that into the page.
"""

import gc
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import legrad
from performance import memory
from performance.cases import B16, L14, SIGLIP, TIMM, TORCHVISION, Case
from performance.sampling import Spread, ratios
from performance.store import ROOT, machine, revision
from performance.workloads import Workload, build

FOLDER = ROOT / "docs" / "performance"
# model -> most bare forwards of a first call, None where nothing was asked
GOALS: dict[str, float | None] = {B16: 3.0, TIMM: 3.0, TORCHVISION: None, L14: 2.7, SIGLIP: 2.2}
NEW_SIZE = 1.3  # bare forwards more than a known size
SIZES_IN_A_ROW = 300

Clock = Callable[[], float]


def rounds_of(model: str, rounds: int, size: int = 224, clock: Clock = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of every call, in rounds, after a warm-up.

    Args:
        model: a name as in ``cases``.
        rounds: how many.
        size: of the images, in pixels.
        clock: seconds.

    Returns:
        Name -> a reading per round: "bare", "first" (of a model just wrapped; wrapping is outside), "known", and at an
        input size that was never seen "bare there", "new size" and "known there".
    """
    workload = build(Case("time", "ours", model, size=size, resized=True), torch.device("cpu"))
    sizes = _sizes(workload, size)
    known = legrad.wrap(workload.model)
    known.explain(workload.images, workload.targets)
    samples: dict[str, list[float]] = {}

    def read(name: str, call: Callable[..., Any], *args: Any) -> None:
        start = clock()
        call(*args)
        samples.setdefault(name, []).append(clock() - start)

    for number in range(-1, rounds):  # the first one warms up
        fresh, images = legrad.wrap(workload.model), torch.randn(1, 3, *next(sizes))
        read("bare", workload.bare)
        read("first", fresh.explain, workload.images, workload.targets)
        read("known", known.explain, workload.images, workload.targets)
        read("new size", known.explain, images, workload.targets)
        read("bare there", known.predict, images)
        read("known there", known.explain, images, workload.targets)
        if number < 0:
            samples.clear()
    return samples


def _sizes(workload: Workload, size: int) -> Iterator[tuple[int, int]]:
    """Sizes near the model's own, with its patches: one row more or less, one column more or less, and on."""
    rows, cols = legrad.wrap(workload.model).anatomy.patch_size
    for more in itertools.count(1):
        yield size + more * rows, size - (more % 3) * cols


def sizes_in_a_row(model: str, count: int, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Explain one image of each of many sizes.

    Args:
        model: a name as in ``cases``; a small one.
        count: how many sizes.
        clock: seconds.

    Returns:
        "seconds" of each call, "tokens" of each image, and the process's "bytes" after the first and the last tenth.
    """
    workload = build(Case("time", "ours", model, resized=True), torch.device("cpu"))
    explainer = legrad.wrap(workload.model)
    patch = explainer.anatomy.patch_size[0]
    sides = range(4, 4 + int(count**0.5) + 1)
    # as many tokens at the end as at the beginning
    pairs = sorted(itertools.product(sides, sides), key=lambda pair: (pair[0] * 7 + pair[1] * 11) % 13)[:count]
    seconds, tokens, used = [], [], []
    for number, (rows, cols) in enumerate(pairs):
        images = torch.randn(1, 3, rows * patch, cols * patch)
        start = clock()
        explainer.explain(images, workload.targets)
        seconds.append(clock() - start)
        tokens.append(rows * cols)
        if number + 1 in (max(1, count // 10), len(pairs)):
            gc.collect()
            used.append(memory.resident(torch.device("cpu")))
    return {"seconds": seconds, "tokens": tokens, "bytes": used}


def page_part(content: dict[str, Any]) -> str:
    """The section, as Markdown."""
    head = ("model", "bare forward, s", "first call", "at most", "", "known", "new size, more than a known one", "n")
    rows: list[Sequence[str]] = []
    for model, samples in content["models"].items():
        first, known = (ratios(samples[name], samples["bare"]) for name in ("first", "known"))
        more = [
            (new - old) / bare
            for new, old, bare in zip(samples["new size"], samples["known there"], samples["bare there"], strict=True)
        ]
        goal = GOALS.get(model)
        verdict = "" if goal is None else ("met" if first.median <= goal else "not met")
        bare = Spread.of(samples["bare"])
        cells = (bare.show(3), first.show(), "" if goal is None else f"{goal:g}", verdict, known.show())
        rows.append((model, *cells, Spread.of(more).show(), str(bare.count)))
    lines = ["## The first call", "", content["text"], "", *_table(head, rows)]
    row = content.get("sizes in a row")
    if row:
        tenth = max(1, len(row["seconds"]) // 10)
        per_token = [second / count for second, count in zip(row["seconds"], row["tokens"], strict=True)]
        early, late = (statistics.median(part) for part in (per_token[:tenth], per_token[-tenth:]))
        slower, more_bytes = late / early, (row["bytes"][-1] - row["bytes"][0]) / 1e6
        lines += [
            "",
            f"{len(row['seconds'])} sizes in a row on {row['model']}: the last {tenth} take {slower:.2f} times as long "
            f"per token as the first {tenth}; the process holds {more_bytes:+.0f} MB after the last tenth compared "
            "with the first.",
        ]
    lines += ["", f"Measured by `python -m performance.first_call` at {content['revision']}, {content['cpu']}."]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


TEXT = (
    "One image, one prompt, all layers; in bare forwards of the same round, median [lowest, highest]. A first call is "
    "that of a model just wrapped, truth check and gradient check inside, wrapping outside. It is two passes: a plain "
    "forward, and the pass that explains, whose every attention is compared with an explicit softmax. Before the first "
    "block runs it is run by itself on two token rows, for what needs autograd and finite differences; the blocks "
    "after it with the same parts are blocks like it if their values are those of its closed form and their graph has "
    "the same nodes. What this notices is written down as tests, mutation by mutation "
    "(`tests/core/test_first_look.py`). A model whose blocks have no closed form has each of them looked at; with a "
    "pooler, where nothing is changed on the way to the output, the pass that explains is the plain forward. A new "
    "size is one plain forward more, and a copy of the tower with other positions; the last 4 copies and what was "
    "found out about the last 32 sizes are kept. Its bare forward is read through `predict`."
)


def main(
    rounds: Annotated[int, typer.Option(help="Of every model.", min=1)] = 7,
    threads: Annotated[int, typer.Option(help="Of PyTorch.", min=1)] = 2,
    only: Annotated[str | None, typer.Option(help="Models whose name holds this.")] = None,
    sizes: Annotated[int, typer.Option(help="How many sizes in a row; 0 for none.")] = SIZES_IN_A_ROW,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = FOLDER,
) -> None:
    """Measure first calls and new sizes; about three minutes on two quiet cores."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # random models have flat and similar maps
    facts = machine("cpu")
    content: dict[str, Any] = {
        "text": TEXT,
        "revision": revision(),
        "cpu": f"{facts['cpu']}, {threads} threads, torch {facts['libraries']['torch']}",
        "models": {},
    }
    for model in GOALS:
        if only is None or only in model:
            # the larger tower takes five times as long
            content["models"][model] = rounds_of(model, max(1, rounds * 3 // 7) if model == L14 else rounds)
            gc.collect()
            typer.echo(f"{model}: {ratios(content['models'][model]['first'], content['models'][model]['bare']).show()}")
    if sizes:
        small = "timm/vit_tiny_patch16_224"
        content["sizes in a row"] = {"model": small, **sizes_in_a_row(small, sizes)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "first-call.json").write_text(json.dumps(content, indent=1))
    (out / "first-call.md").write_text(page_part(content))
    typer.echo(page_part(content))


if __name__ == "__main__":
    typer.run(main)
