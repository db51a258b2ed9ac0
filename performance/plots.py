"""The growth of cost as images."""

import io
from pathlib import Path

from performance.growth import SERIES
from performance.results import Results
from performance.sampling import line

AXES = {
    "prompts": ("prompts", "bare forwards"),
    "layers": ("layers, counted from the last", "bare forwards"),
    "tokens": ("tokens", "bare forwards"),
    "memory": ("prompts", "extra memory, GB"),
}


def draw(results: Results, folder: Path) -> list[str]:
    """One PNG per group that has a line; returns their names."""
    from matplotlib.figure import Figure

    names = []
    for group, (x_label, y_label) in AXES.items():
        lines = [(series.title, series.points(results)) for series in SERIES if series.group == group]
        lines = [(title, points) for title, points in lines if len(points) > 1]
        if not lines:
            continue
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for title, points in lines:
            slope, start = line(points)
            x, y = zip(*points, strict=True)
            (dots,) = axes.plot(x, y, "o", label=f"{title}: {slope:.3g} each")
            ends = [min(x), max(x)]
            axes.plot(ends, [start + slope * end for end in ends], color=dots.get_color(), linewidth=1)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        name = f"{group}.png"
        (folder / name).write_bytes(buffer.getvalue())
        names.append(name)
    return names
