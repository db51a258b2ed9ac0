"""Arrays in, images out: overlays, figures, animations. No global state, no window."""

import io
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_HATCH = 12  # pixels from one line to the next
_PANEL, _TALLEST, _NARROWEST = 3.2, 4.5, 1.4  # inches: usual width, largest height and least width of a panel


@dataclass(frozen=True)
class Axis:
    """One axis of an image, counted from the lower left corner.

    Attributes:
        label: with its unit.
        length: of the whole image.
        ticks: (position, label), for uneven scales; default matplotlib's choice.
        start: value at the left or lower edge.
    """

    label: str
    length: float
    ticks: "Sequence[tuple[float, str]]" = ()
    start: float = 0.0


def uneven_ticks(centres: "Sequence[float]") -> list[tuple[float, str]]:
    """Ticks at round numbers along rows of an uneven scale.

    Args:
        centres: value at the middle of each row, ascending.

    Returns:
        (position in rows, label), at 0 and 1, 2 and 5 times the powers of ten, at least a fifteenth of the rows apart.
    """
    values = (0.0, *(digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)))
    ticks: list[tuple[float, str]] = []
    for value in values:
        if centres[0] <= value <= centres[-1]:
            position = float(np.interp(value, centres, np.arange(len(centres)) + 0.5))
            if not ticks or position - ticks[-1][0] >= len(centres) / 15:
                ticks.append((position, f"{value:g}"))
    return ticks


def check_cmap(cmap: str) -> None:
    """Raise ``InputError`` unless matplotlib has a colour map of this name."""
    import matplotlib

    if cmap not in matplotlib.colormaps:
        raise InputError(f"matplotlib has no colour map {cmap!r}; try 'inferno', 'viridis', 'magma' or 'jet'")


def colours(saliency: "NDArray[Any]", cmap: str = "inferno") -> "NDArray[np.uint8]":
    """Saliency (H, W) in [0, 1] -> RGB (H, W, 3) uint8 through a matplotlib colour map."""
    import matplotlib

    check_cmap(cmap)
    return matplotlib.colormaps[cmap](np.clip(saliency, 0, 1), bytes=True)[..., :3]


def overlay(
    image: "NDArray[np.uint8]",
    saliency: "NDArray[Any]",
    seen: "NDArray[np.bool_] | None" = None,
    alpha: float = 0.65,
    cmap: str = "inferno",
) -> Image.Image:
    """Colour an image by saliency.

    Args:
        image: (H, W, 3) uint8.
        saliency: (H, W) in [0, 1].
        seen: (H, W) bool, False where the model saw nothing: these pixels become grey and hatched.
        alpha: opacity of the colours, in [0, 1].
        cmap: matplotlib colour map.

    Returns:
        RGB image, same size.

    Raises:
        InputError: another alpha, sizes that differ, or an unknown colour map.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha lies in [0, 1], got {alpha}")
    if image.shape[:2] != saliency.shape:
        raise InputError(f"image {image.shape[:2]} and saliency {saliency.shape} differ in size")
    pixels = image * (1 - alpha) + colours(saliency, cmap) * alpha
    if seen is not None and not seen.all():
        grey = image.mean(-1, keepdims=True) * 0.35 + 110
        y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
        grey = np.where(((x + y) % _HATCH < 2)[..., None], grey * 0.6, grey)
        pixels = np.where(seen[..., None], pixels, grey)
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def figure(
    image: "NDArray[np.uint8]",
    panels: "Sequence[Image.Image]",
    titles: "Sequence[str]",
    cmap: str = "inferno",
    name: str = "",
    columns: int = 5,
    axes: tuple[Axis, Axis] | None = None,
    note: str = "",
) -> "Figure":
    """The original and the panels side by side, with titles and one colour bar.

    Args:
        image: the original, (H, W, 3) uint8.
        panels: images of the original's size.
        titles: one per panel.
        cmap: colour map of the bar.
        name: title of the original.
        columns: images per row.
        axes: x and y; None for images without scales.
        note: a line below.
    """
    from matplotlib.figure import Figure

    count = 1 + len(panels)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    # bounds, because extreme shapes would give figures of a hundred inches or of none
    aspect = min(max(image.shape[0] / image.shape[1], 0.2), 5)
    side = min(_PANEL, max(_TALLEST / aspect, _NARROWEST))
    size = (side * columns + 0.9, (min(side * aspect, _TALLEST) + 0.7) * rows + 0.3 * bool(note))
    result = Figure(figsize=size, dpi=110, layout="constrained")
    grid = result.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    # the last row may have more axes than there are panels
    for axis, content, title in zip(grid.flat, [image, *panels], [name, *titles], strict=False):
        if axes is None:
            axis.imshow(np.asarray(content))
        else:
            x, y = axes
            axis.imshow(np.asarray(content), extent=_extent(x, y), aspect="auto")
            axis.set_axis_on()
            for matplotlib_axis, scale in ((axis.xaxis, x), (axis.yaxis, y)):
                matplotlib_axis.set_label_text(scale.label, fontsize=8)
                if scale.ticks:
                    matplotlib_axis.set_ticks(*zip(*scale.ticks, strict=True))
            axis.tick_params(labelsize=8)
        axis.set_title(_short(title, round(38 * side / _PANEL)), fontsize=10, parse_math=False)
    _finish(result, grid, cmap, note)
    return result


def _extent(x: Axis, y: Axis) -> tuple[float, float, float, float]:
    return x.start, x.start + x.length, y.start, y.start + y.length


def film(
    rows: "Sequence[Sequence[Any]]",
    titles: "Sequence[str]",
    labels: "Sequence[str]",
    cmap: str = "inferno",
    note: str = "",
) -> "Figure":
    """Film strips, one below the other.

    Args:
        rows: images of one size, as many in every strip.
        titles: one per strip.
        labels: one per column.
        cmap: colour map of the bar.
        note: a line below.
    """
    from matplotlib.figure import Figure

    height, width = np.asarray(rows[0][0]).shape[:2]
    aspect = min(max(height / width, 0.2), 5)
    side = min(3.2, 12 / len(labels))
    size = (side * len(labels) + 0.9, (side * aspect + 0.45) * len(rows))
    result = Figure(figsize=size, dpi=110, layout="constrained")
    axes = result.subplots(len(rows), len(labels), squeeze=False)
    for strip, row, title in zip(axes, rows, titles, strict=True):
        # the layout ignores the width of titles, so this one may run over the panels to its right
        strip[0].set_title(_short(title.replace("\n", "  "), 100), fontsize=10, loc="left", parse_math=False)
        for axis, image in zip(strip, row, strict=True):
            axis.imshow(np.asarray(image))
            axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, label in zip(axes[-1], labels, strict=True):
        axis.set_xlabel(label, fontsize=8)
    _finish(result, axes, cmap, note)
    return result


def _finish(figure: "Figure", axes: Any, cmap: str, note: str) -> None:
    """Add the colour bar and the note."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), cmap), ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("saliency (per map)")
    if note:
        figure.supxlabel(note, fontsize=8)


def upside_down(image: Image.Image) -> Image.Image:
    """Flipped, because row 0 of a spectrogram is its lowest frequency, and row 0 of an image its top."""
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def _short(title: str, longest: int = 38) -> str:
    """Cut every line of a title to what fits above a panel."""
    # matplotlib cannot draw bytes of a file name that are not UTF-8
    title = title.encode("utf-8", "replace").decode()
    return "\n".join(line if len(line) <= longest else line[: longest - 1] + "…" for line in title.split("\n"))


def gif(frames: "Sequence[Image.Image]", seconds: float = 0.2) -> bytes:
    """A GIF that repeats forever, ``seconds`` per frame."""
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": round(1000 * seconds), "loop": 0}
    frames[0].save(buffer, format="GIF", **options)
    return buffer.getvalue()


def png(image: Any) -> bytes:
    """A PIL image or a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        with warnings.catch_warnings():
            # titles in Chinese or with emojis: matplotlib draws boxes for glyphs that its font lacks
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            image.savefig(buffer, format="png")
    else:
        image.save(buffer, format="PNG")
    return buffer.getvalue()
