"""Maps of every attention head, and their figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad import viz
from legrad.choices import Opacity, Scale
from legrad.errors import InputError
from legrad.names import printable
from legrad.results.explanation import Explanation
from legrad.results.view import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PANEL_PIXELS, _PANEL_INCHES = 160, 0.95


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """LeGrad head by head, see ``Explainer.heads``.

    Attributes:
        relevance: (images, targets, layers, heads, *grid), raw, non-negative, on the CPU. The mean over the heads is
            ``Explanation.layer_relevance``.
        explanation: of all heads and layers together: labels, names, scores.
    """

    relevance: Tensor
    explanation: Explanation

    @classmethod
    def of(cls, explanation: Explanation) -> "HeadMaps":
        """Of an explanation that holds layers and heads in one dimension."""
        per_head = explanation.layer_relevance
        assert per_head is not None
        return cls(per_head.unflatten(2, (len(explanation.layers), -1)), explanation)

    def __repr__(self) -> str:
        images, targets, _, heads, *grid = self.relevance.shape
        return (
            f"HeadMaps({images} images x {targets} targets, layers {list(self.layers)}, {heads} heads, grid "
            f"{' x '.join(map(str, grid))})"
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending indices of the explained blocks."""
        return self.explanation.layers

    def figure(
        self,
        image: int = 0,
        target: int | str = 0,
        cmap: str = "inferno",
        alpha: Opacity = "saliency",
        shared: bool = True,
    ) -> "Figure":
        """Overlays of one target, a row for every layer and a column for every head, under each its share.

        Args:
            image: index of the image.
            target: index of the target, or its label.
            cmap: matplotlib colour map.
            alpha: as of ``Explanation.overlay``.
            shared: one scale for the heads of a layer, so that they compare; else every head has its own.

        Raises:
            InputError: no such image, target or colour map, ``alpha`` is out of range, or videos.
        """
        image, target = self.explanation.indices(image, target)
        view, style = self.explanation.view(image), Style(alpha, cmap)
        if view.is_video:
            raise InputError("head maps of videos have no figure; take HeadMaps.relevance")
        view = view.shrunk(_PANEL_PIXELS)
        maps = self.relevance[image, target]
        shares = maps.flatten(2).sum(-1)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-30)
        scale: Scale = "shared" if shared else "map"
        rows = [view.saliency(heads, None, scale) for heads in maps]
        panels = [[view.overlay(saliency, style) for saliency in heads] for heads in rows]
        figure = _matrix(panels, self.layers, shares.tolist(), max(view.placement.original))
        name = f"{Path(self.explanation.names[image]).name}: {self.explanation.labels[image][target]}"
        figure.suptitle(printable(name), fontsize=10, parse_math=False)
        note = "one scale per layer" if shared else "one scale per head"
        figure.supxlabel(f"percent: share of the layer's relevance\n{note}", fontsize=7)
        return figure

    def _repr_png_(self) -> bytes:
        return viz.png(self.figure())


def _matrix(
    panels: Sequence[Sequence[Any]], layers: Sequence[int], shares: Sequence[Sequence[float]], longest: int
) -> "Figure":
    """Small panels, a row for every layer, a column for every head."""
    viz.load_matplotlib()
    from matplotlib.figure import Figure

    width, height = (max(side / longest, 0.3) * _PANEL_INCHES for side in panels[0][0].size)
    size = (width * len(panels[0]) + 0.8, (height + 0.2) * len(panels) + 0.9)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for row, (images, layer) in enumerate(zip(panels, layers, strict=True)):
        for column, image in enumerate(images):
            axis = axes[row][column]
            axis.imshow(np.asarray(image))
            axis.set(xticks=[], yticks=[], frame_on=False)
            head = f"head {column}\n" if row == 0 else ""
            axis.set_title(f"{head}{shares[row][column]:.0%}", fontsize=6, pad=2)
        axes[row][0].set_ylabel(f"layer {layer}", fontsize=7)
    return figure
