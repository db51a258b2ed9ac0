"""Images with titles, laid out as one figure: panels of one size, titles that wrap, one colour bar. No global state.

Everything is placed by inches, so that nothing is left empty: how large a figure becomes follows from its panels and
titles. Imported when something is drawn, because it loads matplotlib.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from legrad import fonts
from legrad.checks import brief
from legrad.choices import Opacity
from legrad.errors import InputError
from legrad.names import printable
from legrad.panels import FONT, GAP, LEAST, ROW, SIDE, SMALL_FONT, TALLEST, Grid, arranged
from legrad.viz import USUAL_LAYOUT, Axis, Layout, load_matplotlib, overlay, png, rgb

load_matplotlib()  # an unknown backend in the environment would prevent the next lines
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.cm import ScalarMappable  # noqa: E402
from matplotlib.colors import ListedColormap, Normalize  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

_DPI = 150
_MARGIN = 0.08  # inches
_BAR, _BAR_ROOM, _BAR_TALLEST = 0.13, 0.62, 3.4
_NOTE_FONT = 7.5  # points
_TINY = 100  # pixels of a side below which images are enlarged without smoothing


class Sheet(Figure):
    """A figure without a window, which notebooks show and whose files carry the letters of its texts."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """As of matplotlib; text stays text in PDF and PostScript (Type 42 fonts)."""
        fonts.fit(self)
        suffix = str(options.get("format") or getattr(fname, "suffix", None) or str(fname).rpartition(".")[2])
        if suffix.lstrip(".").lower() in ("pdf", "ps", "eps"):
            with load_matplotlib().rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
                super().savefig(fname, **options)
        else:
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        return png(self)


def figure(
    image: Any,
    panels: Sequence[Any],
    titles: Sequence[str],
    cmap: str = "inferno",
    name: str = "",
    axes: tuple[Axis, Axis] | None = None,
    note: str = "",
    alpha: Opacity = "saliency",
    bar: str = "saliency",
    layout: Layout = USUAL_LAYOUT,
) -> Figure:
    """The original and the panels side by side, with titles and one colour bar.

    Args:
        image: the original, (H, W, 3) uint8.
        panels: images of the original's size.
        titles: one per panel; long ones are wrapped.
        cmap: colour map of the bar.
        name: title of the original.
        axes: x and y; None for images without scales.
        note: a line below.
        alpha: opacity of the overlays, shown by the bar.
        bar: what the bar's numbers are.
        layout: columns, title, size; axes of somebody else, which get the panels (and the original if there is one
            more of them).

    A line that no installed font can draw is replaced by the number of its panel.

    Raises:
        InputError: another number of axes than of panels.
    """
    contents, names = [rgb(image), *map(np.asarray, panels)], [name, *titles]
    numbers = list(range(len(contents)))
    places = None if layout.ax is None else _axes_of(layout.ax)
    if places is not None:
        if len(places) not in (1, len(panels), len(contents)):
            raise InputError(
                f"ax: one of matplotlib's Axes, or {len(panels)} of them (one for each target; {len(contents)} with "
                f"the image in front), got {len(places)}"
            )
        if len(places) < len(contents):
            contents, names, numbers = contents[1:], names[1:], numbers[1:]
    texts = _Texts()
    lines = [texts.lines(title, number) for title, number in zip(names, numbers, strict=True)]
    height, width = contents[0].shape[:2]
    aspect = height / width if axes is None else min(max(height / width, 0.35), 0.75)
    if places is not None and len(places) == len(contents):
        for axis, content, title in zip(places, contents, lines, strict=True):
            _draw(axis, content, axes, "equal" if axes is None else "auto")
            _write(axis, fonts.wrapped(title, axis.get_window_extent().width / axis.figure.dpi, FONT), FONT)
        result = places[0].figure
        while result.figure is not result:  # a subfigure
            result = result.figure
        return result
    grid = arranged(aspect, lines, layout, axes is not None, _room(layout, places))
    page = _Page.of(grid, layout, places, texts.with_note(note + _distortion(grid, height / width, axes)))
    for place, (content, text) in enumerate(zip(contents, grid.titles, strict=True)):
        left, top = grid.corner(place)
        axis = page.axes(left, top, *grid.panel)
        _draw(axis, content, axes, "auto")
        _write(axis, text, grid.font)
    if places is None:
        top, bottom = grid.corner(0)[1], grid.corner(len(contents) - 1)[1] + grid.panel[1]
        page.bar(grid.width, top, bottom, cmap, alpha, bar)
    return page.figure


def film(
    rows: Sequence[Sequence[Any]],
    titles: Sequence[str],
    labels: Sequence[str],
    cmap: str = "inferno",
    note: str = "",
    alpha: Opacity = "saliency",
    bar: str = "saliency",
    layout: Layout = USUAL_LAYOUT,
) -> Figure:
    """Film strips, one below the other.

    Args:
        rows: images of one size, as many in every strip.
        titles: one per strip.
        labels: one per column.
        cmap, note, alpha, bar, layout: as of ``figure``; columns do not matter here.

    Raises:
        InputError: somebody else's axes, which hold no film.
    """
    if layout.ax is not None:
        raise InputError("ax is for images and sounds; the figure of a video is film strips, many axes of its own")
    texts = _Texts()
    lines = [texts.lines(title, number, "  ") for number, title in enumerate(titles)]
    height, width = np.asarray(rows[0][0]).shape[:2]
    side = min(SIDE, (ROW - 0.04 * len(labels)) / len(labels))
    panel = (side, min(max(side * height / width, LEAST), TALLEST))
    full = len(labels) * (side + 0.04) - 0.04
    if layout.figsize is not None:
        factor = max(0.05, (layout.figsize[0] - _BAR_ROOM - 2 * _MARGIN) / full)
        panel, full = (panel[0] * factor, panel[1] * factor), full * factor
    wrapped = [fonts.wrapped(title, full, FONT) for title in lines]
    caption = min(7.0, 7.0 * panel[0] / 1.3)
    tops, y = [], 0.0
    for text in wrapped:
        y += fonts.text_height(text, FONT)
        tops.append(y)
        y += panel[1] + GAP
    grid = Grid(len(labels), panel, panel[0], FONT, wrapped, [], full, y + 0.12)
    page = _Page.of(grid, layout, None, texts.with_note(note))
    for strip, (top, row, text) in enumerate(zip(tops, rows, wrapped, strict=True)):
        for column, (content, label) in enumerate(zip(row, labels, strict=True)):
            axis = page.axes(column * (panel[0] + 0.04), top, *panel)
            _draw(axis, np.asarray(content), None, "auto")
            if column == 0:
                _write(axis, text, FONT, "left")
            if strip == len(rows) - 1:
                axis.set_axis_on()
                axis.set(xticks=[], yticks=[], frame_on=False)
                axis.set_xlabel(label, fontsize=caption, labelpad=2)
    page.bar(full, tops[0], tops[-1] + panel[1], cmap, alpha, bar)
    return page.figure


def contact_sheet(
    rows: Sequence[Sequence[tuple[Any, str]]],
    note: str = "",
    cmap: str = "inferno",
    alpha: Opacity = "saliency",
    bar: str = "saliency",
) -> Figure:
    """Small images in groups, whatever their shapes, as many groups in a line as fit.

    Args:
        rows: the groups, of (image, title).
        note: a line below.
        cmap, alpha, bar: as of ``figure``.
    """
    most = max(len(row) for row in rows)
    side = 1.3
    groups = min(len(rows), max(1, int(ROW // (most * (side + GAP) + GAP))))
    groups = math.ceil(len(rows) / math.ceil(len(rows) / groups))  # balanced
    texts, number = _Texts(), 0
    cells: list[tuple[int, int, Any, str]] = []
    for index, row in enumerate(rows):
        for place, (content, title) in enumerate(row):
            text = fonts.wrapped(texts.lines(title, number), side, SMALL_FONT)
            cells.append((index // groups, index % groups * most + place, np.asarray(content), text))
            number += 1
    lines = [[cell for cell in cells if cell[0] == line] for line in range(cells[-1][0] + 1)]
    texts_above = [max(fonts.text_height(text, SMALL_FONT) for *_, text in line) for line in lines]
    sides = [side * max(min(1.0, content.shape[0] / content.shape[1]) for *_, content, _ in line) for line in lines]
    tops = [sum(texts_above[: row + 1]) + sum(sides[:row]) + row * GAP for row in range(len(lines))]
    width = groups * most * (side + GAP) + (groups - 1) * 2 * GAP - GAP
    grid = Grid(groups, (side, side), side, SMALL_FONT, [], [], width, tops[-1] + sides[-1])
    page = _Page.of(grid, Layout(), None, texts.with_note(note))
    for line, column, content, text in cells:
        axis = page.axes(column * (side + GAP) + column // most * 2 * GAP, tops[line], side, sides[line])
        _draw(axis, content, None, "equal")
        axis.set_anchor("S")  # titles stand on their image
        _write(axis, text, SMALL_FONT)
    page.bar(width, tops[0], tops[-1] + sides[-1], cmap, alpha, bar)
    return page.figure


# -- the page -----------------------------------------------------------------------------------------------------


def _room(layout: Layout, places: "Sequence[Axes] | None") -> tuple[float, float] | None:
    """(width, height) for panels and titles, where it is given."""
    if places is not None:
        box, dpi = places[0].get_window_extent(), places[0].figure.dpi
        return box.width / dpi, box.height / dpi
    if layout.figsize is None:
        return None
    return layout.figsize[0] - _BAR_ROOM - 2 * _MARGIN, layout.figsize[1] - 2 * _MARGIN - 0.2


def _distortion(grid: Grid, aspect: float, axes: Any) -> str:
    panel_aspect = grid.panel[1] / grid.panel[0]
    if axes is not None or abs(panel_aspect / aspect - 1) < 0.05:
        return ""
    return "; not to scale: the image is a thin strip"


@dataclass(frozen=True)
class _Page:
    """A figure, or the inside of somebody's axes, on which axes are placed by inches from the upper left corner.

    Attributes:
        figure: all of it.
        origin: (left, top) of the grid.
        size: (width, height).
        parent: the axes in which everything is placed; None for the figure.
    """

    figure: Any
    origin: tuple[float, float]
    size: tuple[float, float]
    parent: "Axes | None"

    @classmethod
    def of(cls, grid: Grid, layout: Layout, places: "Sequence[Axes] | None", note: str) -> "_Page":
        """A page for a grid, with title and note; in somebody's axes without them."""
        if places is not None:
            parent, size = places[0], _room(layout, places)
            assert size is not None
            parent.set_axis_off()
            origin = ((size[0] - grid.width) / 2, (size[1] - grid.height) / 2)
            return cls(parent.figure, origin, size, parent)
        width = grid.width + _BAR_ROOM + 2 * _MARGIN if layout.figsize is None else layout.figsize[0]
        title = fonts.wrapped([printable(layout.title)], width - 2 * _MARGIN, FONT + 2) if layout.title else ""
        note = fonts.wrapped([note], width - 2 * _MARGIN, _NOTE_FONT) if note else ""
        above = fonts.text_height(title, FONT + 2) + 0.06 if title else 0.0
        below = fonts.text_height(note, _NOTE_FONT) + 0.04 if note else 0.0
        height = grid.height + above + below + 2 * _MARGIN if layout.figsize is None else layout.figsize[1]
        spare = max(0.0, height - grid.height - above - below - 2 * _MARGIN)
        figure = Sheet(figsize=(width, height), dpi=layout.dpi or _DPI)
        left = (width - grid.width - _BAR_ROOM) / 2
        if title:
            _own_font(figure.suptitle(title, fontsize=FONT + 2, y=1 - _MARGIN / height, va="top"))
        if note:
            _own_font(figure.supxlabel(note, fontsize=_NOTE_FONT, y=_MARGIN / height, va="bottom"))
        return cls(figure, (left, _MARGIN + above + spare / 2), (width, height), None)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """New axes in the grid."""
        x, y = left + self.origin[0], top + self.origin[1]
        box = (x / self.size[0], 1 - (y + height) / self.size[1], width / self.size[0], height / self.size[1])
        return self.figure.add_axes(box) if self.parent is None else self.parent.inset_axes(box)

    def bar(self, left: float, top: float, bottom: float, cmap: str, alpha: Opacity, label: str) -> None:
        """The colour bar, as high as the panels, in colours that they have over grey."""
        height = min(bottom - top, _BAR_TALLEST)
        axis = self.axes(left + GAP, top + (bottom - top - height) / 2, _BAR, height)
        grey = np.full((1, 256, 3), 150, np.uint8)
        shades = np.asarray(overlay(grey, np.linspace(0, 1, 256)[None], alpha=alpha, cmap=cmap))[0] / 255
        bar = self.figure.colorbar(ScalarMappable(Normalize(0, 1), ListedColormap(shades)), cax=axis)
        bar.set_ticks([0, 1] if height < 1.5 else [0, 0.5, 1])
        bar.ax.tick_params(labelsize=SMALL_FONT, length=2, pad=1.5)
        bar.outline.set_linewidth(0.5)
        fits = fonts.width(label, FONT - 1) <= height
        bar.set_label(label if fits else label.partition(" ")[0], fontsize=FONT - 1, labelpad=2)


def _axes_of(ax: Any) -> list[Any]:
    """Somebody's axes as a list; raises ``InputError`` for anything else."""
    places = [ax] if isinstance(ax, Axes) else list(np.asarray(ax, object).ravel())
    if not places or not all(isinstance(place, Axes) for place in places):
        raise InputError(f"ax is one of matplotlib's Axes, or an array or list of them, got {brief(ax)}")
    return places


# -- panels -------------------------------------------------------------------------------------------------------


def _draw(axis: Any, content: Any, axes: tuple[Axis, Axis] | None, aspect: str) -> None:
    options = {"interpolation": "nearest"} if min(content.shape[:2]) < _TINY else {}
    if axes is None:
        axis.imshow(content, aspect=aspect, **options)
        axis.set_axis_off()
        return
    x, y = axes
    extent = (x.start, x.start + x.length, y.start, y.start + y.length)
    axis.imshow(content, extent=extent, aspect=aspect)
    for matplotlib_axis, scale in ((axis.xaxis, x), (axis.yaxis, y)):
        matplotlib_axis.set_label_text(scale.label, fontsize=8)
        if scale.ticks:
            matplotlib_axis.set_ticks(*zip(*scale.ticks, strict=True))
    axis.tick_params(labelsize=SMALL_FONT, length=2)


def _write(axis: Any, text: str, font: float, loc: str = "center") -> None:
    _own_font(axis.set_title(text, fontsize=font, loc=loc, parse_math=False, pad=3, linespacing=1.15))


def _own_font(artist: Any) -> None:
    """Fonts that have the letters of a text."""
    artist.set_parse_math(False)
    text = artist.get_text()
    if not text.isascii() and (families := fonts.families(text)) is not None:
        artist.set_fontfamily(families)


class _Texts:
    """Titles in whatever script; those that no font can draw become numbers, explained in the note."""

    def __init__(self) -> None:
        self._numbers: list[str] = []

    def lines(self, title: str, number: int, separator: str = "\n") -> list[str]:
        """The lines of a panel's title: number 0 is the original, the others are the targets."""
        lines = []
        for line in title.split("\n"):
            text = fonts.without_joiners(printable(line))
            if fonts.families(text) is None:
                text = f"[{number or 'image'}]"
                self._numbers.append(text)
            lines.append(text)
        return separator.join(lines).split("\n")

    def with_note(self, note: str) -> str:
        """A note that says what the numbers are."""
        numbers = ", ".join(dict.fromkeys(self._numbers))
        missing = f"{numbers}: in letters that no font here has; the text is in the manifest" if numbers else ""
        return "; ".join(filter(None, (note.removeprefix("; "), missing)))
