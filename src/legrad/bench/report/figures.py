"""The figures of a report, drawn from a result file's content."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad import fonts
from legrad.bench.report.comparison import (
    FEWEST,
    has_fewer,
    headlines,
    method_label,
    ranked,
    title,
    verdict,
    with_value,
)
from legrad.metrics import perturbation
from legrad.viz import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LINES = 8


def draw(content: Mapping[str, Any]) -> "dict[str, Figure]":
    """The figures of one result: "" its bars, "-curves" what else there is; none without any numbers."""
    figures = {"": bars(content), "-curves": curves(content)}
    return {suffix: figure for suffix, figure in figures.items() if figure is not None}


VECTORS = (".pdf", ".svg")


def vector(figure: "Figure", ending: str) -> bytes:
    """A figure as PDF or SVG, the same bytes every time; fonts are TrueType (42), as publishers ask for."""
    fonts.fit(figure)
    buffer, date = io.BytesIO(), {".pdf": "CreationDate", ".svg": "Date"}[ending]
    settings = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "legrad"}
    with load_matplotlib().rc_context(settings):
        figure.savefig(buffer, format=ending[1:], metadata={date: None})
    return buffer.getvalue()


def bars(content: Mapping[str, Any]) -> "Figure | None":
    """The headline metric of every method with its interval, best on top, with fewer images than the first method
    below all others; of layer importance the layers' shares."""
    if content["benchmark"] == "layer-importance":
        return _shares(content)
    name, metric = next(iter(content["metrics"].items()))
    rows = with_value(content, name)
    if not rows:
        return None
    rows.sort(key=lambda row: row[1]["value"], reverse=metric["better"] == "lower")
    rows.sort(key=lambda row: not has_fewer(content, row[0]))  # these are not in the ranking: below it
    figure, axes = _new(height=1 + 0.3 * len(rows))
    _dots(axes, [(method_label(content, method), numbers) for method, numbers in rows])
    chance = content["chance"].get(name)
    if chance is not None:
        axes.axvline(chance, color="C3", ls="--", lw=1, label="chance")
        axes.legend(loc="lower right", fontsize=8)
    arrow = {"higher": " (higher is better)", "lower": " (lower is better)", None: ""}[metric["better"]]
    axes.set_xlabel(f"{metric['title']}{arrow}")
    axes.set_title(f"{title(content)}, {content['settings']['subject']['model']}", fontsize=10)
    return figure


def curves(content: Mapping[str, Any]) -> "Figure | None":
    """What a benchmark has beyond single numbers: accuracy over erased pixels, the cascade, layers and heads."""
    drawers = {"perturbation": _perturbation, "sanity": _sanity, "ablation": _switches, "layer-importance": _heads}
    drawer = drawers.get(content["benchmark"])
    return None if drawer is None else drawer(content)


_COLOURS = {"better": "C2", "worse": "C3", "level": "0.5", "too few": "0.8", None: "0.5"}


def differences(contents: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Every method's difference from the first one in every headline metric, with intervals; right is better."""
    panels = headlines(contents)
    if not panels or all(len(content["methods"]) < 2 for content, _ in panels):
        return None
    load_matplotlib()
    from matplotlib.figure import Figure

    reference = panels[0][0]["statistics"]["paired with"]
    names = dict.fromkeys(method for content, _ in panels for method in content["methods"])
    methods = [method for method in names if method != reference][::-1]
    figure = Figure(figsize=(2 + 1.9 * len(panels), 1.2 + 0.24 * len(methods)), layout="constrained", dpi=80)
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (content, name) in zip(columns, panels, strict=True):
        metric = content["metrics"][name]
        for method, numbers in ranked(content, name):
            if method not in methods or numbers["difference"] is None:
                continue
            place, colour = methods.index(method), _COLOURS[verdict(numbers, metric["better"])]
            axes.plot([numbers["difference_low"], numbers["difference_high"]], [place, place], color=colour, lw=2)
            axes.plot([numbers["difference"]], [place], "o", color=colour, ms=4)
        axes.axvline(0, color="0.2", lw=1)
        axes.set_title(f"{title(content)}\n{metric['title']}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        if metric["better"] == "lower":
            axes.invert_xaxis()
    columns[0].set_yticks(range(len(methods)), methods, fontsize=8)
    verdicts = {
        verdict(n, content["metrics"][name]["better"]) for content, name in panels for _, n in ranked(content, name)
    }
    pale = f"; pale: fewer than {FEWEST} images, no verdict" if "too few" in verdicts else ""
    figure.supxlabel(
        f"difference from {reference} on the same images, 95 % interval; right of the line is better{pale}", fontsize=8
    )
    return figure


def _perturbation(content: Mapping[str, Any]) -> "Figure | None":
    methods = [method for method in _ranked(content) if content["scores"][method]]
    if not methods:
        return None
    explained = "predicted" if "predicted" in next(iter(content["scores"][methods[0]].values())) else "target"
    figure, axes = _new(columns=2)
    for ax, direction in zip(axes, ("negative", "positive"), strict=True):
        for method in methods:
            rows = [item[explained][direction] for item in content["scores"][method].values()]
            ax.plot([0.0, *perturbation.STEPS], np.mean(rows, 0), marker=".", label=method_label(content, method))
        ax.set_title(f"{direction}: {'least' if direction == 'negative' else 'most'} relevant first", fontsize=10)
        ax.set_xlabel("share of pixels erased")
        ax.set_ylabel(f"accuracy, map of the {explained} class")
        ax.set_ylim(-0.02, 1.02)
    axes[0].legend(fontsize=7)
    return figure


def _sanity(content: Mapping[str, Any]) -> "Figure | None":
    methods = [method for method, scores in content["scores"].items() if scores]
    if not methods:
        return None
    figure, axes = _new(columns=2)
    for ax, kind in zip(axes, ("cascade", "alone"), strict=True):
        for method in methods:
            rows = np.array([item[kind] for item in content["scores"][method].values()], np.float64)
            defined = ~np.isnan(rows)
            means = np.where(defined.any(0), np.nansum(rows, 0) / np.maximum(defined.sum(0), 1), np.nan)
            ax.plot(range(1, len(means) + 1), means, marker=".", label=method)
        what = "blocks shuffled, from the last" if kind == "cascade" else "block shuffled alone, 1 = the last"
        ax.set_xlabel(f"{what}; the end is the rest of the tower")
        ax.set_ylabel("rank correlation with the trained map")
        ax.set_title(kind, fontsize=10)
        ax.axhline(0, color="0.7", lw=1)
    axes[0].legend(fontsize=7)
    return figure


def _switches(content: Mapping[str, Any]) -> "Figure | None":
    """The headline metric over the number of last layers, a line per method and read-out; beside it the heads."""
    name, metric = next(iter(content["metrics"].items()))
    lines: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    heads: list[tuple[str, Mapping[str, Any]]] = []
    for method, numbers in with_value(content, name):
        variant = re.fullmatch(r"(.+):layers=(\d+):readout=(\w+)", method)
        if variant:
            lines.setdefault(f"{variant[1]}, {variant[3]}", []).append((int(variant[2]), numbers))
        if method == "legrad":
            heads.append(("all heads, all layers", numbers))
        elif some_heads := re.fullmatch(r"legrad(:layers=1)?:heads=(.+)", method):
            last, choice = some_heads.groups()
            heads.append((f"last layer, head {choice}" if last else f"{choice}, all layers", numbers))
    if not lines:
        return None
    show_heads = len(heads) > 1
    figure, axes = _new(columns=1 + show_heads, height=max(3.6, 1 + 0.3 * len(heads)))
    layers_axes = axes[0] if show_heads else axes
    for label, points in lines.items():
        points.sort(key=lambda point: point[0])
        layers = [layer for layer, _ in points]
        layers_axes.plot(layers, [numbers["value"] for _, numbers in points], marker=".", label=label)
        layers_axes.fill_between(
            layers, [numbers["low"] for _, numbers in points], [numbers["high"] for _, numbers in points], alpha=0.15
        )
    layers_axes.set_xlabel("last layers used")
    layers_axes.set_ylabel(metric["title"])
    layers_axes.legend(fontsize=8)
    if show_heads:
        _dots(axes[1], heads[::-1])
        axes[1].set_xlabel(metric["title"])
        axes[1].set_title("heads", fontsize=10)
    return figure


def _dots(axes: Any, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """A value with its interval per row, the first at the bottom."""
    for place, (_, numbers) in enumerate(rows):
        axes.plot([numbers["low"], numbers["high"]], [place, place], color="0.4", lw=2, solid_capstyle="butt")
        axes.plot([numbers["value"]], [place], "o", color="C0")
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.grid(axis="x", alpha=0.3)


def _heads(content: Mapping[str, Any]) -> "Figure | None":
    """Share of every head: layers x heads, a panel per method that has them."""
    places = [re.fullmatch(r"head_(\d+)_(\d+)", name) for name in content["metrics"]]
    cells = [(place[0], int(place[1]), int(place[2])) for place in places if place]
    panels = {}
    for method, result in content["methods"].items():
        values = {name: result["metrics"][name]["value"] for name, _, _ in cells if name in result["metrics"]}
        if values and None not in values.values():
            shares = np.zeros((1 + max(layer for _, layer, _ in cells), 1 + max(head for _, _, head in cells)))
            for name, layer, head in cells:
                shares[layer, head] = values[name]
            panels[method] = shares
    if not panels:
        return None
    figure, axes = _new(columns=len(panels), height=max(3.6, 1.2 + 0.25 * len(next(iter(panels.values())))))
    highest = max(float(shares.max()) for shares in panels.values())
    for ax, (method, shares) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        image = ax.imshow(shares, vmin=0, vmax=highest, cmap="viridis", aspect="auto", origin="lower")
        ax.set_xlabel("head (numbers mean nothing across layers)")
        ax.set_ylabel("layer")
        ax.set_xticks(range(shares.shape[1]))
        ax.set_yticks(range(shares.shape[0]))
        ax.set_title(f"{method}: share of the relevance, {1 / shares.size:.3f} if all alike", fontsize=10)
        figure.colorbar(image, ax=ax)
    return figure


def _shares(content: Mapping[str, Any]) -> "Figure | None":
    methods = [method for method, _ in with_value(content, "layer_0")]
    layers = [name for name in content["metrics"] if name.startswith("layer_")]
    if not methods:
        return None
    figure, axes = _new()
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        numbers = [content["methods"][method]["metrics"][name] for name in layers]
        values, lows, highs = (np.array([row[key] for row in numbers], np.float64) for key in ("value", "low", "high"))
        errors = np.array([values - lows, highs - values])
        axes.bar(np.arange(len(layers)) + place * width, values, width, yerr=errors.clip(min=0), label=method)
    axes.axhline(1 / len(layers), color="C3", ls="--", lw=1, label="all alike")
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the relevance")
    axes.set_xticks(np.arange(len(layers)) + 0.4 - width / 2, [name.removeprefix("layer_") for name in layers])
    axes.legend(fontsize=8)
    return figure


def _ranked(content: Mapping[str, Any]) -> list[str]:
    """The reference, the random map, the best by the headline metric, and last those with fewer images, which have no
    place among them: few enough for a legend."""
    order = [method for method, _ in ranked(content, next(iter(content["metrics"])))]
    reference = content["statistics"]["paired with"]
    names = dict.fromkeys(name for name in (reference, "random", *order) if name in order)
    return sorted(names, key=lambda method: has_fewer(content, method))[:_MOST_LINES]


def _new(columns: int = 1, height: float = 3.6) -> "tuple[Figure, Any]":
    """A figure of its own, no global state, and its axes: one, or an array of them."""
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 if columns == 1 else 10, height), layout="constrained", dpi=110)
    return figure, figure.subplots(1, columns)
