"""Compare every model name of every library with the slow twin; writes docs/support-matrix.*.

For each name: is it supported? If so, a shrunk copy with random weights (same class and options) goes
through the truth check, the position check and the comparison with ``generic_twin`` in float64, for all read-outs and
all blocks; batch against one by one; other sizes; and the model must not change.
"""

import argparse
import copy
import importlib
import json
import multiprocessing
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from helpers import generic_twin, limits, tiny
from helpers.twin import distance
from torch import Tensor

import legrad
from legrad import heads
from legrad.core import state
from legrad.core.planning import Planner, Shortcuts
from legrad.core.positions import position_check, random_input
from legrad.core.score import Direction
from legrad.core.streaming import explain_batch
from legrad.core.truth import truth_check
from legrad.doctor import allowed_sizes
from legrad.versions import versions

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers")

# each has names(), not_applicable(name) -> reason or "", build(name) -> a tiny model
ZOOS = {
    "open_clip": "helpers.zoo.open_clip",
    "timm": "helpers.zoo.timm",
    "transformers": "helpers.zoo.transformers",
    "transformers, video and audio": "helpers.zoo.media",
    "torchvision": "helpers.zoo.torchvision",
}
# final norms in front of an attentional pooler, which the published read-out leaves out
NORMS = (
    "norm",
    "trunk.norm",
    "ln_post",
    "post_layernorm",
    "rms_norm",
    "vision_model.rms_norm",
    "vjepa2.encoder.layernorm",
)
NORM_LAST = ("Cait", "Xcit")  # their norm comes after the pooler
DOCS = Path(__file__).parent.parent / "docs"


@dataclass
class Row:
    """One name's verdict: "exact", "refused" (with the reason) or "fails" (with the error)."""

    library: str
    name: str
    verdict: str
    reason: str = ""
    model: str = ""
    block: str = ""
    difference: float | None = None
    prefix_tokens: int | None = None
    grid: str = ""
    route: str = ""
    attention: str = ""
    readout: str = ""
    sizes: str = ""
    tail: str = ""


def judge(library: str, name: str) -> Row:
    """The verdict on one name; never raises."""
    zoo = importlib.import_module(ZOOS[library])
    try:
        reason = zoo.not_applicable(name)
        return Row(library, name, "refused", reason) if reason else examine(library, name, zoo.build(name))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return Row(library, name, "fails", f"{type(error).__name__}: {str(error)[:300]} ({where})")


def examine(library: str, name: str, model: torch.nn.Module) -> Row:
    """All checks on one tiny model; raises if one fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = legrad.wrap(model)
        anatomy = explainer.anatomy
        with state.evaluation_mode(model), state.evaluation_mode(anatomy.tower, anatomy.call_settings):
            for batch in (random_input(anatomy, seed) for seed in range(2)):
                truth_check(anatomy, batch)
                positions(anatomy, batch)
        tail = closed_form(explainer, random_input(anatomy, batch=2))
        model = model.double()
        explainer = legrad.wrap(model)
        batch = random_input(explainer.anatomy, batch=2)
        with tiny.left_as_found(model):
            worst = max(against_twin(explainer, batch, readout) for readout in anatomy.readouts)
            if worst > limits.FLOAT64:  # a norm that computes in float32 may turn a last bit of float64 into 1e-8, once
                worst = max(against_twin(explainer, batch, readout) for readout in anatomy.readouts)
            single(explainer, batch)
            for size in other_sizes(anatomy):
                worst = max(worst, at_size(explainer, size))
        sizes = allowed_sizes(anatomy)
    if not worst <= limits.FLOAT64:
        raise AssertionError(f"differs from the twin by {worst:.2g} of the largest value")
    return Row(
        library,
        name,
        "exact",
        model=type(model).__name__,
        block=type(anatomy.blocks[0]).__name__,
        difference=worst,
        prefix_tokens=anatomy.num_prefix_tokens,
        grid=" x ".join(anatomy.axes),
        route=anatomy.route,
        attention=anatomy.attention
        + (f", {len(anatomy.explained_attentions)} of {anatomy.attentions}" * (anatomy.attentions > 1)),
        readout=str(anatomy.default_readout),
        sizes="fixed" if sizes.endswith("only") else sizes.partition(" (")[0],
        tail=tail,
    )


def target(features: int) -> Tensor:
    """A direction in the space of features or logits."""
    return torch.randn(features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def against_twin(explainer: legrad.Explainer, batch: Tensor, readout: Any, size: Any = None) -> float:
    """Largest difference over all blocks, relative to each map's maximum."""
    anatomy = explainer.anatomy if size is None else explainer.anatomy.at(size)
    with torch.no_grad(), state.evaluation_mode(anatomy.tower, anatomy.call_settings):
        direction = target(anatomy.run(batch[:1]).shape[-1])

    def score(feature: Tensor) -> Tensor:
        return feature @ direction.to(feature)

    layers = explainer.explain(batch, score, readout=readout, keep_layers=True).layer_relevance
    assert layers is not None
    relevance = layers[:, 0]

    def anatomy_of(model: torch.nn.Module) -> Any:
        anatomy = legrad.wrap(model).anatomy
        return anatomy if size is None else anatomy.at(size)

    names = dict(anatomy.tower.named_modules())
    skipped = [] if type(anatomy.tower).__name__ in NORM_LAST else [norm for norm in NORMS if norm in names]
    expected = generic_twin.head_maps(
        explainer.model, anatomy_of, batch, score, readout, skipped, anatomy.readouts[readout].normalize
    )
    if relevance.shape != expected.mean(2).shape:
        raise AssertionError(f"maps of shape {tuple(relevance.shape)}, the twin's are {tuple(expected.mean(2).shape)}")
    try:
        by_head = heads.head_relevance(explainer, batch, score, readout=readout)[:, 0]
    except legrad.UnsupportedModelError:  # heads folded into the batch
        by_head = relevance[:, :, None]
    if by_head.shape != expected.shape:
        raise AssertionError(f"heads of shape {tuple(by_head.shape)}, the twin's are {tuple(expected.shape)}")
    # a single head may have zero relevance, a layer never has
    return max(distance(relevance, expected.mean(2)), float((by_head - expected).abs().max() / expected.abs().max()))


def closed_form(explainer: legrad.Explainer, batch: Tensor) -> str:
    """Which tails the float32 model uses; closed forms, plain and folded, are compared with autograd's maps."""
    anatomy = explainer.anatomy
    with torch.no_grad(), state.evaluation_mode(anatomy.tower, anatomy.call_settings):
        features = anatomy.run(batch[:1]).shape[-1]
        planner = Planner(anatomy)
        truth_check(anatomy, batch[:1], planner.visit)
    closed = planner.shortcuts.tails
    if not closed:
        return "pooler" if anatomy.route == "pooler" else "autograd"
    scores = [Direction("", torch.randn(1, features, generator=torch.Generator().manual_seed(i))) for i in range(40)]
    layers = range(len(anatomy.blocks))
    for readout in anatomy.readouts:
        for count in (1, len(scores)):
            with torch.no_grad(), state.evaluation_mode(anatomy.tower, anatomy.call_settings):
                relevance, expected = (
                    explain_batch(anatomy, batch, scores[:count], layers, readout, plan).relevance
                    for plan in (planner.shortcuts, Shortcuts())
                )
            worst = largest_difference(relevance, expected)
            if worst > limits.FLOAT32:  # only where float32 itself is no better
                double = legrad.wrap(copy.deepcopy(explainer.model).double()).anatomy
                with torch.no_grad(), state.evaluation_mode(double.tower, double.call_settings):
                    exact = explain_batch(double, batch.double(), scores[:count], layers, readout).relevance
                noise = max(limits.FLOAT32, 1.5 * largest_difference(expected, exact))
                worst = limits.FLOAT32 * largest_difference(relevance, exact) / noise
            if not worst <= limits.FLOAT32:
                raise AssertionError(f"closed form and autograd differ by {worst:.2g} ({readout}, {count} targets)")
    folded = all(tail.foldable for tail in closed.values())
    return ("closed" if len(closed) == len(anatomy.blocks) else "closed in part") + ("" if folded else ", not folded")


def largest_difference(relevance: Tensor, expected: Tensor) -> float:
    """Largest difference of a layer's maps, all images and targets, relative to the largest of its values."""
    pairs = zip(relevance.unbind(2), expected.unbind(2), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs if a.any() or b.any())


def positions(anatomy: Any, batch: Tensor) -> None:
    """Videos, sounds and windows have position tests of their own."""
    if anatomy.axes == ("rows", "cols") and anatomy.keys_to_grid is None:
        position_check(anatomy, batch)


def single(explainer: legrad.Explainer, batch: Tensor) -> None:
    """An image's map does not depend on the other images of its batch."""

    def score(feature: Tensor) -> Tensor:
        return feature[:, 0]

    together = explainer.explain(batch, score)
    for row in range(len(batch)):
        alone = explainer.explain(batch[row : row + 1], score)
        # norms that compute in float32 whatever the model's dtype (AIMv2's) round differently in another batch
        if distance(alone.relevance[0], together.relevance[row]) > 100 * limits.FLOAT64:
            raise AssertionError("a map depends on the other images of its batch")


def other_sizes(anatomy: Any) -> Iterator[tuple[int, int]]:
    """A larger square and a wide size, as far as the architecture takes them."""
    height, width = anatomy.image_size
    rows, cols = anatomy.stride or anatomy.patch_size
    for size in ((height + 2 * rows, width + 2 * cols), (height, width + 2 * cols)):
        try:
            anatomy.at(size)
        except legrad.InputError:
            continue
        yield size


def at_size(explainer: legrad.Explainer, size: tuple[int, int]) -> float:
    anatomy = explainer.anatomy.at(size)
    batch = random_input(anatomy)
    with state.evaluation_mode(anatomy.tower, anatomy.call_settings):
        positions(anatomy, batch)
    return against_twin(explainer, batch, str(anatomy.default_readout), size)


# -- the whole table ----------------------------------------------------------------------------------------------


def everything(libraries: Iterable[str]) -> list[tuple[str, str]]:
    return [(library, name) for library in libraries for name in importlib.import_module(ZOOS[library]).names()]


def _work(item: tuple[str, str]) -> Row:
    torch.set_num_threads(1)
    return judge(*item)


def summary(rows: list[Row]) -> list[dict[str, Any]]:
    """Counts per library."""
    counts = {library: Counter(row.verdict for row in rows if row.library == library) for library in ZOOS}
    return [
        {"library": library, **{verdict: verdicts[verdict] for verdict in ("exact", "refused", "fails")}}
        for library, verdicts in counts.items()
        if verdicts
    ]


def tails(rows: list[Row]) -> dict[str, int]:
    """How many names use which tail."""
    return dict(Counter(row.tail for row in rows if row.verdict == "exact").most_common())


def markdown(rows: list[Row]) -> str:
    """The table for people."""
    lines, exact = ["# Which models are explained, and proven to be", ""], limits.FLOAT64
    lines += [
        f"Written by `make matrix` ({', '.join(f'{k} {v}' for k, v in versions(*LIBRARIES).items())}). *Exact*: on a",
        "shrunk copy with random weights, every block's map and both read-outs equal a slow twin (attention written",
        f"out, plain autograd, float64) to {exact:g} of the maximum; pixels of a patch move the token of its cell;",
        "batch equals one by one; other sizes hold too; the model is left as it was found. *Refused*: one clear",
        "sentence, no map.",
        "",
        "*Tail*: closed = in closed form, equal to autograd's map in float32 to 1e-5, plain and folded; autograd = by",
        f"autograd ({', '.join(f'{count} {tail}' for tail, count in tails(rows).items())}).",
        "",
        "| library | exact | refused | fails |",
        "| --- | --- | --- | --- |",
        *(f"| {c['library']} | {c['exact']} | {c['refused']} | {c['fails']} |" for c in summary(rows)),
        "",
    ]
    for library in dict.fromkeys(row.library for row in rows):
        library_rows = [row for row in rows if row.library == library]
        lines += [f"## {library}", ""]
        if failing := [row for row in library_rows if row.verdict == "fails"]:
            lines += ["| fails | error |", "| --- | --- |"]
            lines += [f"| {row.name} | {row.reason.replace('|', '/')} |" for row in failing] + [""]
        lines += [
            "| exact | class, block | prefix | explained attention | tail | auto | sizes | difference |",
            "|" + " --- |" * 8,
        ]
        lines += [
            f"| {r.name} | {r.model}, {r.block} | {r.prefix_tokens} | {r.route}, {r.attention} | {r.tail} "
            f"| {r.readout} "
            f"| {r.sizes} | {r.difference:.0e} |"
            for r in library_rows
            if r.verdict == "exact"
        ]
        reasons: dict[str, list[str]] = {}
        for row in library_rows:
            if row.verdict == "refused":
                reasons.setdefault(row.reason, []).append(row.name)
        if reasons:
            lines += ["", "| refused because | names |", "| --- | --- |"]
            lines += [f"| {reason} | {len(names)}: {', '.join(names)} |" for reason, names in reasons.items()]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=ZOOS, action="append")
    parser.add_argument("--filter", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=DOCS / "support-matrix.json")
    options = parser.parse_args()
    from rich.progress import track

    items = [item for item in everything(options.library or ZOOS) if options.filter in item[1]]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=100) as pool:
        rows = list(track(pool.imap(_work, items), total=len(items), description="models"))
    for row in rows:
        if row.verdict == "fails":
            print(f"{row.library} {row.name}: {row.reason}")
    for counts in summary(rows):
        print(counts)
    content = {"versions": versions(*LIBRARIES), "summary": summary(rows), "rows": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
