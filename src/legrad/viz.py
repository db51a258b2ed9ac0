"""Arrays in, images out: overlays, animations, what figures are made of. No global state, no window."""

import contextlib
import io
import os
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad import fonts, pixels
from legrad.checks import brief, check_count, check_number
from legrad.choices import Opacity
from legrad.errors import InputError
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
_MOST_DPI = 2400
_STRONGEST = 0.8  # opacity of the most salient pixel, where opacity follows saliency


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


@dataclass(frozen=True)
class Layout:
    """How the panels of a figure are laid out.

    Attributes:
        title: above all panels.
        columns: panels of a row; default as many as fit, in rows that are alike.
        ax: matplotlib's ``Axes`` to draw into, one or several; default a figure of its own.
        figsize: (width, height) in inches; default what the panels need.
        dpi: pixels of an inch; default 150.
    """

    title: str = ""
    columns: int | None = None
    ax: Any = None
    figsize: tuple[float, float] | None = None
    dpi: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.title, str):
            raise InputError(f"title is a text, got {brief(self.title)}")
        if self.columns is not None:
            object.__setattr__(self, "columns", check_count("columns", self.columns))
        if self.dpi is not None:
            object.__setattr__(self, "dpi", check_number("dpi", self.dpi, 1, _MOST_DPI))
        if self.figsize is not None:
            sides = self.figsize if isinstance(self.figsize, tuple | list) else ()
            if len(sides) != 2:
                raise InputError(f"figsize is (width, height) in inches, got {brief(self.figsize)}")
            object.__setattr__(self, "figsize", tuple(check_number("figsize", side, 0.5, 200) for side in sides))


USUAL_LAYOUT = Layout()


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


def check_alpha(alpha: Opacity) -> Opacity:
    """An opacity, of Python, numpy or torch, or "saliency"; raises ``InputError`` unless it is one."""
    if isinstance(alpha, str) and alpha == "saliency":
        return alpha
    try:
        if not isinstance(alpha, str | bool) and 0 <= float(alpha) <= 1:
            return float(alpha)
    except (TypeError, ValueError, RuntimeError):  # what is no single number
        pass
    raise InputError(f"alpha lies in [0, 1], got {brief(alpha)}; or it is 'saliency'")


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
    alpha: Opacity = "saliency",
    cmap: str = "inferno",
) -> Image.Image:
    """Colour an image by saliency.

    Args:
        image: (H, W, 3) uint8; of other numbers of channels see ``rgb``.
        saliency: (H, W) in [0, 1].
        seen: (H, W) bool, False where the model saw nothing: these pixels become grey and hatched.
        alpha: opacity of the colours, in [0, 1]; "saliency": it grows with the saliency, so that what is not salient
            keeps its brightness.
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


def mixture(cmap: str, alpha: Opacity) -> Mixture:
    """What lays the colours of a matplotlib colour map over pixels."""
    check_cmap(cmap)
    colour_map = load_matplotlib().colormaps[cmap]
    opacity = _STRONGEST * np.linspace(0, 1, colour_map.N) if isinstance(alpha, str) else alpha
    return Mixture(colour_map(np.arange(colour_map.N), bytes=True)[:, :3], opacity)


def greyed(image: Image.Image) -> Image.Image:
    """Without colours, and pale: what stands for a target that is probably absent."""
    return Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.5)


def upside_down(image: Image.Image) -> Image.Image:
    """Flipped, because row 0 of a spectrogram is its lowest frequency, and row 0 of an image its top."""
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def gif(frames: "Sequence[Image.Image]", seconds: float = 0.2) -> bytes:
    """A GIF that repeats forever, ``seconds`` per frame."""
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": round(1000 * seconds), "loop": 0}
    frames[0].save(buffer, format="GIF", **options)
    return buffer.getvalue()


def png(image: Any) -> bytes:
    """A PIL image or a matplotlib figure as PNG."""
    return encoded(image, "png")


def _drawn(figure: "Figure") -> Image.Image:
    """The pixels of a figure; ``savefig`` draws twice where there is a layout."""
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fonts.fit(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))


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
        image = _drawn(image)
    if max(image.size) > longest:
        raise InputError(
            f"{name} files have at most {longest} pixels a side, this overlay has {image.width} x {image.height}; use "
            "format='png'"
        )
    image.save(buffer, format=name, **options)
    return buffer.getvalue()
