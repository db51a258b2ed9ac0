"""The images of docs/maps.md: ``python -m tools.maps_figures``."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

import legrad
from legrad import export

DOCS = Path(__file__).parents[1] / "docs"
NAMES = legrad.embedded.sample_names()


def upsampling() -> None:
    """One map in four ways."""
    explainer = legrad.load("embedded")
    text = f"a photo of a {NAMES[0]}"
    maps = {name: explainer.explain(legrad.embedded.SAMPLE, text, method=name) for name in ("legrad", "legrad-centred")}
    panels = {
        "legrad": maps["legrad"].overlay(),
        "legrad, guided": maps["legrad"].overlay(upsampling="guided"),
        "legrad, guided, half": maps["legrad"].overlay(upsampling="guided", scale="half"),
        "legrad-centred": maps["legrad-centred"].overlay(),
        "legrad-centred, guided, half": maps["legrad-centred"].overlay(upsampling="guided", scale="half"),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.3), layout="constrained")
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.savefig(DOCS / "upsampling.png", dpi=80)


def regions() -> None:
    """Masks, boxes and points of the sample scene."""
    explanation = legrad.load("embedded").explain(legrad.embedded.SAMPLE, [f"a photo of a {name}" for name in NAMES])
    with Image.open(legrad.embedded.SAMPLE) as image:
        pixels = np.asarray(image.convert("RGB"))
    masks = export.palette(explanation).convert("RGB")
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    for axis, title in zip(axes, ("masks", "boxes", "points: k=1, negative=2"), strict=True):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    axes[0].imshow(masks, alpha=0.6)
    colours = [np.array(export.palettes.colour(target)) / 255 for target in range(len(NAMES))]
    points = explanation.points(k=1, negative=2)[0]
    for target, boxes in enumerate(explanation.boxes()[0]):
        for left, top, right, bottom in boxes.xyxy.tolist():
            axes[1].add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colours[target], linewidth=2)
            )
        for (x, y), label in zip(points[target].xy.tolist(), points[target].labels.tolist(), strict=True):
            axes[2].plot(x, y, "*" if label else "x", color=colours[target], markersize=12 if label else 8)
    figure.savefig(DOCS / "regions.png", dpi=80)


if __name__ == "__main__":
    upsampling()
    regions()
