"""The figures of an explanation: all targets of one image, all layers of one target, a contact sheet of all images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from legrad import viz
from legrad.choices import Opacity, Scale, Upsampling
from legrad.deprecation import other_names
from legrad.errors import InputError
from legrad.results.view import ImageView, Style
from legrad.viz import USUAL_LAYOUT, Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHEET = 12  # images of a contact sheet
_SHEET_PIXELS = 400  # of the longer side of an image there
_MOST_TARGETS = 7  # of an image there
_DECIMALS = {"cosine": 2, "cosine difference": 2, "probability": 2, "logit": 1, "logit difference": 1}
_BARS: dict[Scale, str] = {
    "map": "saliency (per map)",
    "shared": "saliency (one scale for all)",
    "half": "saliency (half maximum)",
    None: "relevance (raw)",
}


class Drawings:
    """The figures of an ``Explanation``."""

    @property
    def _explanation(self) -> Any:
        return self

    @other_names(normalize="scale")
    def figure(
        self,
        image: int = 0,
        cmap: str = "inferno",
        alpha: Opacity = "saliency",
        scale: Scale = "map",
        upsampling: Upsampling = "bilinear",
        targets: int | str | Sequence[int | str] | None = None,
        title: str = "",
        columns: int | None = None,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
    ) -> "Figure":
        """The original and the overlays of the targets side by side, with scores and a colour bar.

        >>> explanation = legrad.load("embedded").explain(next(legrad.embedded.scenes(1)).image, ["a cow", "a pig"])
        >>> explanation.figure().savefig("where.png")

        Of a video a film strip for every target.

        Args:
            image: index of the image.
            cmap, alpha: as for ``overlay``.
            scale, upsampling: as in ``saliency``; ``scale="shared"`` shows which targets match weakly. ``normalize`` is
                another name of ``scale``.
            targets: indices or labels, one or several; default all.
            title: above all panels.
            columns: panels of a row; default as many as fit.
            ax: matplotlib's ``Axes`` to draw into: one gets the overlays of all these targets, an array with one for
                each target an overlay each, with one more the original in front.
            figsize: (width, height) in inches; default what the panels need.
            dpi: pixels of an inch; default 150.

        Returns:
            The figure, or that of ``ax``. Its files keep text as text (PDF, Type 42 fonts).

        Raises:
            InputError: an argument that cannot be used.
        """
        explanation = self._explanation
        image = explanation.index_of(image)
        style, layout = Style(alpha, cmap), Layout(title, columns, ax, figsize, dpi)
        chosen, all_targets = self._chosen(image, targets), explanation.targets_of(image)
        view = explanation.view(image).reduced()
        if isinstance(scale, str) and scale == "shared":  # with the targets that are not shown
            saliency = view.saliency(explanation.maps_of(image), None, scale, upsampling)
            saliency = saliency[[all_targets.index(target) for target in chosen]]
        else:
            saliency = view.saliency(explanation.relevance[image, chosen], None, scale, upsampling)
        return self.figure_of(image, view, saliency, style, scale, chosen, layout)

    def figure_of(
        self,
        image: int,
        view: ImageView,
        saliency: Tensor,
        style: Style,
        scale: Scale,
        targets: Sequence[int] | None = None,
        layout: Layout = USUAL_LAYOUT,
    ) -> "Figure":
        """The figure of an image in a view, out of the saliency of its targets, or of some: (targets, H, W)."""
        explanation = self._explanation
        targets = explanation.targets_of(image) if targets is None else targets
        titles = [self._title(image, target) for target in targets]
        name = Path(explanation.names[image]).name
        absent = [explanation.is_absent(image, target) for target in targets]
        return view.figure(saliency, titles, name, style, bar=_BARS[scale], layout=layout, absent=absent)

    @other_names(normalize="scale")
    def layer_figure(
        self,
        image: int = 0,
        target: int | str = 0,
        cmap: str = "inferno",
        alpha: Opacity = "saliency",
        scale: Scale = "map",
    ) -> "Figure":
        """One target's overlay for every layer; arguments as for ``overlay``, "shared" is one scale for all layers.

        Raises:
            InputError: as of ``overlay``, or the layers were not kept: ``explain(..., keep_layers=True)``.
        """
        explanation, style = self._explanation, Style(alpha, cmap)
        image, target = explanation.indices(image, target)
        view = explanation.view(image).reduced()
        saliency = view.saliency(explanation.layers_of(image, target), None, scale)
        titles = [f"layer {layer}" for layer in explanation.layers]
        name = f"{Path(explanation.names[image]).name}\n{explanation.labels[image][target]}"
        note = "each layer is scaled by itself" if scale == "map" else ""
        return view.figure(saliency, titles, name, style, note, _BARS[scale])

    @other_names(normalize="scale")
    def contact_sheet(self, cmap: str = "inferno", alpha: Opacity = "saliency", scale: Scale = "map") -> "Figure":
        """The first twelve images with their overlays in one figure, as notebooks show it; of one image its ``figure``.

        Args:
            cmap, alpha, scale: as for ``overlay``.

        Raises:
            InputError: no such colour map, opacity or scale.
        """
        from legrad import figures

        explanation, style = self._explanation, Style(alpha, cmap)
        count = len(explanation.names)
        if count == 1:
            return self.figure(0, cmap, alpha, scale)
        rows = []
        for image in range(min(count, _SHEET)):
            view, targets = explanation.view(image), explanation.targets_of(image)
            view = view if view.is_video else view.shrunk(_SHEET_PIXELS)
            saliency = view.saliency(explanation.maps_of(image), None, scale)
            more = len(targets) - _MOST_TARGETS
            name = Path(explanation.names[image]).name + (f"\n(and {more} more targets)" if more > 0 else "")
            row: list[tuple[Any, str]] = [(view.plain(), name)]
            shown = list(zip(targets, saliency, strict=True))[:_MOST_TARGETS]
            for target, values in shown:
                panel = view.overlay(values, style)
                absent = explanation.is_absent(image, target)
                row.append((viz.greyed(panel) if absent else panel, self._title(image, target)))
            rows.append(row)
        note = f"the first {_SHEET} of {count} images, and {count - _SHEET} more" if count > _SHEET else ""
        return figures.contact_sheet(rows, note, style.cmap, style.alpha, _BARS[scale])

    def score_kind(self, image: int, target: int) -> str:
        """What a score is: "cosine", "logit", their "difference" of a contrast, "score" of a callable.

        "none" where a method was asked without targets, "" where it is not known.
        """
        kinds: list[list[str]] = self._explanation.score_kinds
        return kinds[image][target] if kinds else ""

    def _repr_png_(self) -> bytes:
        return viz.png(self.contact_sheet())

    def _title(self, image: int, target: int) -> str:
        explanation = self._explanation
        kind, label = self.score_kind(image, target), str(explanation.labels[image][target])
        if kind == "none":
            return label
        absent = ", probably absent" if explanation.is_absent(image, target) else ""
        return f"{label}\n{score_text(kind, float(explanation.scores[image, target]))}{absent}"

    def _chosen(self, image: int, targets: Any) -> list[int]:
        """Indices of targets that an image has."""
        explanation = self._explanation
        possible: list[int] = explanation.targets_of(image)
        if targets is None:
            return possible
        several = isinstance(targets, list | tuple | range | np.ndarray | Tensor) and getattr(targets, "ndim", 1) == 1
        indices = [explanation.indices(image, target)[1] for target in (targets if several else [targets])]
        if not indices or not set(indices) <= set(possible):
            what = "targets is empty" if not indices else f"image {image} does not have all of the targets {indices}"
            raise InputError(f"{what}: give indices or labels of its targets, {possible}, or None for all")
        return indices


def score_text(kind: str, score: float) -> str:
    """What a score is and how large: "cosine 0.26", "logit 7.1"; the number alone where it is not known."""
    if kind not in _DECIMALS:
        return f"{kind} {score:.3g}" if kind else f"{score:.3f}"
    return (
        f"{kind} {round(score, _DECIMALS[kind]) + 0:.{_DECIMALS[kind]}f}"
        if kind in _DECIMALS
        else f"{kind} {score:.3g}"
    )
