"""Arrays in, images out: overlays, figures, animations. No global state, no window."""

import contextlib
import io
import math
import os
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad import fonts, pixels
from legrad.checks import brief
from legrad.errors import InputError
from legrad.names import printable
from legrad.pixels import Mixture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# format -> Pillow's name, most pixels a side, options: the slower ones of WebP save a hundredth of the bytes
_FORMATS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # the default takes five times as long, for as many bytes
    "png": ("PNG", 1 << 31, {"compress_level": 1, "compress_type": zlib.Z_RLE}),
    "jpg": ("JPEG", 65_500, {"quality": 92}),
    "webp": ("WEBP", 16_383, {"quality": 90, "method": 0}),
}
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


def load_matplotlib() -> Any:
    """Import matplotlib, which an unknown backend in the environment would prevent: nothing here needs one."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


def check_cmap(cmap: str) -> None:
    """Raise ``InputError`` unless matplotlib has a colour map of this name."""
    if not isinstance(cmap, str) or cmap not in load_matplotlib().colormaps:
        raise InputError(f"matplotlib has no colour map {brief(cmap)}; try 'inferno', 'viridis', 'magma' or 'jet'")


def check_alpha(alpha: float) -> float:
    """An opacity, of Python, numpy or torch; raises ``InputError`` unless it is one."""
    try:
        if not isinstance(alpha, str | bool) and 0 <= float(alpha) <= 1:
            return float(alpha)
    except (TypeError, ValueError, RuntimeError):  # what is no single number
        pass
    raise InputError(f"alpha lies in [0, 1], got {brief(alpha)}")


def _numbers(values: Any, expected: str) -> "NDArray[Any]":
    """An array of at least two dimensions; raises ``InputError`` for anything else."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # tensors on a device, or with a graph
        array = np.empty(0)
    if array.ndim < 2 or array.size == 0 or array.dtype.kind not in "buif":
        raise InputError(f"{expected}, got {brief(values)}")
    return array


def rgb(image: "NDArray[Any]") -> "NDArray[np.uint8]":
    """An image (..., H, W, 3) of one with any number of channels.

    (H, W) and one channel are grey, of two the mean is, of more the first three count.
    """
    image = _numbers(image, "an image is an array (H, W, 3) uint8")
    if image.ndim < 3:
        image = image[..., None]
    channels = image.shape[-1]
    if channels == 2:
        image = image.mean(-1, keepdims=True)
    return np.asarray(np.repeat(image, 3, -1) if channels < 3 else image[..., :3], np.uint8)


def colours(saliency: "NDArray[Any]", cmap: str = "inferno") -> "NDArray[np.uint8]":
    """Saliency (H, W) in [0, 1] -> RGB (H, W, 3) uint8 through a matplotlib colour map."""
    check_cmap(cmap)
    saliency = _numbers(saliency, "saliency is an array (H, W) in [0, 1]")
    return load_matplotlib().colormaps[cmap](np.clip(saliency, 0, 1), bytes=True)[..., :3]


def overlay(
    image: "NDArray[np.uint8]",
    saliency: "NDArray[Any]",
    seen: "NDArray[np.bool_] | None" = None,
    alpha: float = 0.65,
    cmap: str = "inferno",
) -> Image.Image:
    """Colour an image by saliency.

    Args:
        image: (H, W, 3) uint8; of other numbers of channels see ``rgb``.
        saliency: (H, W) in [0, 1].
        seen: (H, W) bool, False where the model saw nothing: these pixels become grey and hatched.
        alpha: opacity of the colours, in [0, 1].
        cmap: matplotlib colour map.

    Returns:
        RGB image, same size.

    Raises:
        InputError: another alpha, sizes that differ, or an unknown colour map.
    """
    alpha = check_alpha(alpha)
    image, saliency = rgb(image), _numbers(saliency, "saliency is an array (H, W) in [0, 1]")
    if image.shape[:2] != saliency.shape:
        raise InputError(f"image {image.shape[:2]} and saliency {saliency.shape} differ in size")
    rows = pixels.overlay_bands(
        image,
        mixture(cmap, alpha),
        lambda rows: saliency[rows],
        lambda rows: None if seen is None else seen[rows],
    )
    height, width = saliency.shape
    return Image.fromarray(pixels.joined(height, width, rows))


def mixture(cmap: str, alpha: float) -> Mixture:
    """What lays the colours of a matplotlib colour map over pixels."""
    check_cmap(cmap)
    colour_map = load_matplotlib().colormaps[cmap]
    return Mixture(colour_map(np.arange(colour_map.N), bytes=True)[:, :3], alpha)


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

    A line that no installed font can draw is replaced by the number of its panel.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    names = _Names()
    image = rgb(image)
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
    for number, (axis, content, title) in enumerate(zip(grid.flat, [image, *panels], [name, *titles], strict=False)):
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
        names.write(axis, title, number, round(38 * side / _PANEL))
    _finish(result, grid, cmap, names.with_note(note))
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
    load_matplotlib()
    from matplotlib.figure import Figure

    names = _Names()
    height, width = np.asarray(rows[0][0]).shape[:2]
    aspect = min(max(height / width, 0.2), 5)
    side = min(3.2, 12 / len(labels))
    size = (side * len(labels) + 0.9, (side * aspect + 0.45) * len(rows))
    result = Figure(figsize=size, dpi=110, layout="constrained")
    axes = result.subplots(len(rows), len(labels), squeeze=False)
    for number, (strip, row, title) in enumerate(zip(axes, rows, titles, strict=True)):
        # the layout ignores the width of titles, so this one may run over the panels to its right
        names.write(strip[0], title, number, 100, loc="left", separator="  ")
        for axis, image in zip(strip, row, strict=True):
            axis.imshow(np.asarray(image))
            axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, label in zip(axes[-1], labels, strict=True):
        axis.set_xlabel(label, fontsize=8)
    _finish(result, axes, cmap, names.with_note(note))
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


class _Names:
    """Titles in whatever script; those that no font can draw become numbers, explained in the note."""

    def __init__(self) -> None:
        self._numbers: list[str] = []

    def write(
        self, axis: Any, title: str, number: int, longest: int, separator: str = "\n", loc: str = "center"
    ) -> None:
        """Set the title of a panel: number 0 is the original, the others are the targets."""
        lines = []
        for line in title.split("\n"):
            text = fonts.without_joiners(printable(line))
            if fonts.families(text) is None:
                text = f"[{number or 'image'}]"
                self._numbers.append(text)
            lines.append(_short(text, longest))
        text = separator.join(lines)
        axis.set_title(
            text,
            fontsize=10,
            loc=loc,
            parse_math=False,
            **({} if text.isascii() else {"fontfamily": fonts.families(text)}),
        )

    def with_note(self, note: str) -> str:
        """A note that says what the numbers are."""
        numbers = ", ".join(dict.fromkeys(self._numbers))
        missing = f"{numbers}: in letters that no font here has; the text is in the manifest" if numbers else ""
        return "; ".join(filter(None, (note, missing)))


def _short(line: str, longest: int) -> str:
    return line if len(line) <= longest else line[: longest - 1] + "…"


def gif(frames: "Sequence[Image.Image]", seconds: float = 0.2) -> bytes:
    """A GIF that repeats forever, ``seconds`` per frame."""
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": round(1000 * seconds), "loop": 0}
    frames[0].save(buffer, format="GIF", **options)
    return buffer.getvalue()


def png(image: Any) -> bytes:
    """A PIL image or a matplotlib figure as PNG."""
    return encoded(image, "png")


def encoded(image: Any, format: str) -> bytes:
    """A PIL image or a matplotlib figure as the bytes of a file.

    Args:
        image: what to write.
        format: one of ``choices.IMAGE_FORMATS``.

    Raises:
        InputError: it is larger than files of this format can be.
    """
    name, longest, options = _FORMATS[format]
    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        fonts.fit(image)
        image.savefig(buffer, format=format, pil_kwargs=options)
        return buffer.getvalue()
    if max(image.size) > longest:
        raise InputError(
            f"{name} files have at most {longest} pixels a side, this overlay has {image.width} x {image.height}; use "
            "format='png'"
        )
    image.save(buffer, format=name, **options)
    return buffer.getvalue()
