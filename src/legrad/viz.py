"""Arrays in, pictures out: overlays and figures. No global state, no window."""

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from legrad.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_HATCH = 12  # pixels between two lines


def colours(saliency: "NDArray[Any]", cmap: str = "inferno") -> "NDArray[np.uint8]":
    """Saliency (H, W) in [0, 1] -> RGB (H, W, 3) uint8 through a matplotlib colour map."""
    import matplotlib

    if cmap not in matplotlib.colormaps:
        raise InputError(f"matplotlib has no colour map {cmap!r}; try 'inferno', 'viridis', 'magma' or 'jet'")
    return matplotlib.colormaps[cmap](np.clip(saliency, 0, 1), bytes=True)[..., :3]


def overlay(
    picture: "NDArray[np.uint8]",
    saliency: "NDArray[Any]",
    seen: "NDArray[np.bool_] | None" = None,
    alpha: float = 0.65,
    cmap: str = "inferno",
) -> Image.Image:
    """Colour a picture by saliency.

    Args:
        picture: (H, W, 3) uint8.
        saliency: (H, W) in [0, 1].
        seen: (H, W) bool; pixels that the model never saw become grey and hatched.
        alpha: opacity of the colours, in [0, 1].
        cmap: matplotlib colour map.

    Returns:
        RGB picture, same size.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha lies in [0, 1], got {alpha}")
    if picture.shape[:2] != saliency.shape:
        raise InputError(f"picture {picture.shape[:2]} and saliency {saliency.shape} differ in size")
    mixed = picture * (1 - alpha) + colours(saliency, cmap) * alpha
    if seen is not None and not seen.all():
        grey = picture.mean(-1, keepdims=True) * 0.35 + 110
        y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]]
        grey = np.where(((x + y) % _HATCH < 2)[..., None], grey * 0.6, grey)
        mixed = np.where(seen[..., None], mixed, grey)
    return Image.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8))


def figure(
    picture: "NDArray[np.uint8]",
    panels: "Sequence[Image.Image]",
    titles: "Sequence[str]",
    cmap: str = "inferno",
    name: str = "",
    columns: int = 5,
) -> "Figure":
    """The original and the panels side by side, with titles and one colour bar.

    Args:
        picture: the original, (H, W, 3) uint8.
        panels: pictures of the original's size.
        titles: one per panel.
        cmap: colour map of the bar.
        name: title of the original.
        columns: pictures per row.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    count = 1 + len(panels)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    # extreme shapes would give figures of a hundred inches or none
    aspect = min(max(picture.shape[0] / picture.shape[1], 0.2), 5)
    result = Figure(figsize=(3.2 * columns + 0.9, (3.2 * aspect + 0.7) * rows), dpi=110, layout="constrained")
    axes = result.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shown = zip(axes.flat, [picture, *panels], [name, *titles], strict=False)
    for axis, content, title in shown:
        axis.imshow(np.asarray(content))
        axis.set_title(_short(title), fontsize=10, parse_math=False)
    bar = result.colorbar(ScalarMappable(Normalize(0, 1), cmap), ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("saliency (per map)")
    return result


def _short(title: str, longest: int = 38) -> str:
    """Cut every line of a title to what fits above a panel."""
    # matplotlib cannot draw the bytes of a file name that are no UTF-8
    title = title.encode("utf-8", "replace").decode()
    return "\n".join(line if len(line) <= longest else line[: longest - 1] + "…" for line in title.split("\n"))


def png(picture: Any) -> bytes:
    """A PIL image or a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        with warnings.catch_warnings():
            # a title in Chinese or with an emoji: matplotlib draws boxes for what its font lacks
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            picture.savefig(buffer, format="png")
    else:
        picture.save(buffer, format="PNG")
    return buffer.getvalue()
