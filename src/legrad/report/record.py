"""What a page shows, as plain values that JSON holds: pixels and maps are text."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_SIDE = 768  # of an image on the page, in pixels
GALLERY_SIDE = 320  # of one among many
MANY = 12  # images, from which on a page is a gallery
_QUALITY = 82  # of WebP


@dataclass(frozen=True)
class MapRecord:
    """A map on the patch grid, in whole numbers from 0 to ``steps``, little-endian: value = low + number * step.

    Attributes:
        numbers: base64 of (rows, cols), of 1 byte each where ``steps`` is 255, else of 2.
        low, high: the values of 0 and of ``steps``.
        steps: 255 or 65535.
    """

    numbers: str
    low: float
    high: float
    steps: int


@dataclass(frozen=True)
class AxisRecord:
    """One axis of the image on the page: pixel i stands at ``slope * i + intercept`` of the patch grid.

    Attributes:
        count: pixels.
        cells: of the patch grid.
        slope, intercept: 0 is the centre of the first cell.
        first, last: pixels that the model saw; first > last if none.
        original: pixels of the original.
    """

    count: int
    cells: int
    slope: float
    intercept: float
    first: int
    last: int
    original: int

    def reversed(self) -> "AxisRecord":
        """Counted from the other end."""
        last = self.count - 1
        return AxisRecord(
            self.count,
            self.cells,
            -self.slope,
            self.intercept + self.slope * last,
            last - self.last,
            last - self.first,
            self.original,
        )


@dataclass(frozen=True)
class TargetRecord:
    """A target of one image.

    Attributes:
        label: its name.
        score: as a number; None where there is none.
        caption: the score in words, such as "cosine 0.26".
        maps: for every frame the merged map, then that of every layer.
        entropy: of the merged map as a distribution over its cells, 0 for one cell, 1 for all alike.
        note: what is doubtful about it; "" for nothing.
    """

    label: str
    score: float | None
    caption: str
    maps: list[list[MapRecord]]
    entropy: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class ImageRecord:
    """One image, video or sound.

    Attributes:
        name: of its file.
        kind: "image", "video" or "sound".
        frames: data URIs of what is shown, all of one size.
        captions: one for each frame.
        rows, cols: its axes.
        targets: in the order in which they were asked for.
    """

    name: str
    kind: str
    frames: list[str]
    captions: list[str]
    rows: AxisRecord
    cols: AxisRecord
    targets: list[TargetRecord]


@dataclass(frozen=True)
class PageRecord:
    """All that a page shows.

    Attributes:
        title: of the page.
        settings: what made the maps, name -> value.
        layers: names of the maps behind the merged one.
        colours: base64 of (256, 3) bytes, the colour map.
        opacity: of the colours at the beginning, in [0, 1].
        images: in order.
        failures: (name, message) of the images that could not be explained.
    """

    title: str
    settings: dict[str, str]
    layers: list[str]
    colours: str
    opacity: float
    images: list[ImageRecord] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)


def map_record(values: "NDArray[Any]", steps: int = 65535) -> MapRecord:
    """A map (rows, cols) of finite values."""
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    numbers = np.zeros(values.shape) if high == low else (values - low) / (high - low) * steps
    kind = np.uint8 if steps == 255 else np.dtype("<u2")
    return MapRecord(text_of(np.rint(numbers).astype(kind).tobytes()), low, high, steps)


def entropy(values: "NDArray[Any]") -> float:
    """Of a map's positive part as a distribution over its cells, divided by that of a flat map: in [0, 1]."""
    weights = np.clip(np.asarray(values, np.float64).ravel(), 0, None)
    if weights.size < 2 or weights.sum() <= 0:
        return 0.0
    shares = weights[weights > 0] / weights.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(weights.size))


def text_of(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode("ascii")


def shown_size(height: int, width: int, images: int = 1) -> tuple[int, int]:
    """(height, width) of an image on a page of so many images."""
    factor = min(1.0, (LONGEST_SIDE if images <= MANY else GALLERY_SIDE) / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def data_uris(frames: "Sequence[NDArray[np.uint8]]", size: tuple[int, int]) -> list[str]:
    """Frames (H, W, 3) as images of the size (height, width)."""
    uris = []
    for frame in frames:
        image = Image.fromarray(np.ascontiguousarray(frame))
        if image.size != size[::-1]:
            image = image.resize(size[::-1], Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small = max(size) <= 64  # every pixel counts
        image.save(buffer, "WEBP", quality=_QUALITY, lossless=small)
        uris.append(f"data:image/webp;base64,{text_of(buffer.getvalue())}")
    return uris
