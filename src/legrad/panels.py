"""Where the panels of a figure go, in inches: balanced rows, panels of about one area, titles that fit above them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from legrad import fonts
from legrad.viz import Layout

FONT, SMALL_FONT = 9.0, 7.0  # points; the small one where a title has many lines
GAP = 0.1  # inches between panels
ROW = 11.4  # all panels of a row
# side of a square panel, widest and tallest panel, least side, least width of a title
SIDE, _WIDEST, TALLEST, LEAST, _TITLE = 2.2, 7.2, 4.2, 0.4, 1.15
_LABELS = (0.62, 0.42)  # left of and below a panel with scales
_MANY_LINES = 4  # of a title


@dataclass(frozen=True)
class Grid:
    """Panels in rows, all in inches.

    Attributes:
        columns: panels of a row.
        panel: (width, height).
        cell: width of a panel with what is left and right of it.
        font: of the titles, in points.
        titles: wrapped.
        heights: of the titles of every row.
        width: of everything.
        height: of everything.
        labels: room left of and below every panel, for scales.
    """

    columns: int
    panel: tuple[float, float]
    cell: float
    font: float
    titles: list[str]
    heights: list[float]
    width: float
    height: float
    labels: tuple[float, float] = (0.0, 0.0)

    def corner(self, place: int) -> tuple[float, float]:
        """(left, top) of a panel."""
        row, column = divmod(place, self.columns)
        left = column * (self.cell + GAP) + self.labels[0] + (self.cell - self.labels[0] - self.panel[0]) / 2
        return left, sum(self.heights[: row + 1]) + row * (self.panel[1] + self.labels[1] + GAP)


def arranged(
    aspect: float, lines: Sequence[list[str]], layout: Layout, scales: bool, room: tuple[float, float] | None
) -> Grid:
    """The grid of panels.

    Args:
        aspect: height over width of a panel.
        lines: of every panel's title.
        layout: how many columns.
        scales: whether panels have scales.
        room: (width, height) to fill; None for panels of their usual size.
    """
    count = len(lines)

    def grid(columns: int, scale: float) -> Grid:
        return _grid(aspect, lines, min(columns, count), scale, _LABELS if scales else (0.0, 0.0))

    if room is None:
        cell = grid(1, 1.0).cell
        columns = layout.columns or _balanced(count, (ROW + GAP + 0.01) / (cell + GAP))
        return grid(columns, min(1.0, (ROW + GAP) / (columns * (cell + GAP))) if layout.columns is None else 1.0)
    best = None
    for columns in [layout.columns] if layout.columns else range(1, count + 1):
        low, high = 0.02, 8.0  # of the scale
        for _ in range(12):
            middle = math.sqrt(low * high)
            tried = grid(columns, middle)
            if tried.width <= room[0] and tried.height <= room[1]:
                low = middle
            else:
                high = middle
        if best is None or low > best[0] * 1.001:
            best = low, columns
    assert best is not None
    return grid(best[1], best[0])


def _balanced(count: int, most: float) -> int:
    """Columns with little left empty in the last row; a few more than usually fit make the panels smaller."""

    def cost(columns: int) -> float:
        return -count % columns / columns + (0.3 if columns > most else 0.1 * (most - columns))

    return min(range(min(count, math.ceil(most / 2)), max(1, min(count, int(most / 0.75))) + 1), key=cost)


def _grid(aspect: float, lines: Sequence[list[str]], columns: int, scale: float, labels: tuple[float, float]) -> Grid:
    """Panels of about the same area whatever their shape."""
    width = min(SIDE / math.sqrt(aspect), _WIDEST)
    height = width * aspect
    if height > TALLEST:
        height, width = TALLEST, TALLEST / aspect
    panel = (scale * max(width, LEAST), scale * max(height, LEAST))
    cell = max(panel[0], _TITLE * min(scale, 1)) + labels[0]
    room = cell - labels[0]
    font = FONT if scale >= 0.7 else SMALL_FONT
    titles = [fonts.wrapped(title, room, font) for title in lines]
    if max(title.count("\n") for title in titles) >= _MANY_LINES:
        font = SMALL_FONT
        titles = [fonts.wrapped(title, room, font) for title in lines]
    rows = math.ceil(len(lines) / columns)
    heights = [
        max(fonts.text_height(title, font) for title in titles[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    return Grid(
        columns,
        panel,
        cell,
        font,
        titles,
        heights,
        columns * (cell + GAP) - GAP,
        sum(heights) + rows * (panel[1] + labels[1] + GAP) - GAP,
        labels,
    )
