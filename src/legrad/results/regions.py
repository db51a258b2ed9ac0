"""What is there, out of an explanation: masks, boxes around connected parts, and points.

Coordinates are of the original image: x to the right, y down, in pixels from the upper left corner, so that the centre
of the first pixel is (0.5, 0.5). Of sounds x is seconds and y is Hz.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from legrad.checks import brief, check_count, check_number
from legrad.choices import THRESHOLDS, Scale, Threshold, Upsampling
from legrad.errors import FlatMapWarning, InputError, warn
from legrad.inputs import geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from legrad.results.view import ImageView

_BINS = 256  # of Otsu's histogram
_COARSE = 512  # pixels of the longer side, on which background points are searched
_TOUCHING = np.ones((3, 3), bool)  # parts that touch at a corner are one


@dataclass(frozen=True, eq=False)
class Boxes:
    """The connected parts of a mask, the best first.

    Attributes:
        xyxy: (n, 4) float64: left, top, right and bottom edge in pixels; of sounds begin and end in seconds, and lowest
            and highest frequency in Hz, in the order (begin, low, end, high).
        scores: (n,) float64 in [0, 1], mean saliency inside the part, on the scale that its threshold is on.
        areas: (n,) int64, pixels of the part.
        frames: (n,) int64, of videos the frame of each part; else zeros.
        parts: (n, H, W) bool, each part's mask.
        units: of x and y: "pixels", or "seconds" and "Hz" ("frames", "bins" where they are not known).
    """

    xyxy: Tensor
    scores: Tensor
    areas: Tensor
    frames: Tensor
    parts: Tensor
    units: tuple[str, str] = ("pixels", "pixels")

    def __len__(self) -> int:
        return len(self.xyxy)

    def __repr__(self) -> str:
        pairs = zip(self.xyxy.tolist(), self.scores.tolist(), strict=True)
        rows = [f"{[round(edge, 2) for edge in edges]}: {score:.2f}" for edges, score in pairs]
        return f"Boxes({', '.join(rows)})"


@dataclass(frozen=True, eq=False)
class Points:
    """Where a target is (label 1), and where it is surely not (label 0): prompts of a promptable segmenter.

    Attributes:
        xy: (n, 2) float64, centres of pixels; of sounds seconds and Hz.
        labels: (n,) int64, 1 or 0, positive ones first, the strongest first.
        scores: (n,) float64 in [0, 1], the saliency there.
        frames: (n,) int64, of videos the frame; else zeros.
        units: as of ``Boxes``.
    """

    xy: Tensor
    labels: Tensor
    scores: Tensor
    frames: Tensor
    units: tuple[str, str] = ("pixels", "pixels")

    def __len__(self) -> int:
        return len(self.xy)


class Regions:
    """Masks, boxes and points of an explanation."""

    if TYPE_CHECKING:
        relevance: Tensor
        valid: Tensor
        labels: list[list[str]]
        names: list[str]
        placements: list[geometry.Placement]

        def view(self, image: int) -> "ImageView":  # noqa: D102
            ...

        def target_maps(  # noqa: D102
            self, image: int, size: int | Sequence[int] | None, scale: Scale, upsampling: Upsampling = "bilinear"
        ) -> Tensor: ...

    def masks(
        self,
        threshold: Threshold | float = "half",
        upsampling: Upsampling = "guided",
        size: int | Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """Which pixels of the originals belong to each target.

        Args:
            threshold: what exceeds it is part of the mask. "half": half of the half-maximum scale, see ``saliency``;
                "otsu": the threshold that splits the map's values best into two groups (Otsu 1979); "mean": the map's
                mean over the pixels that the model saw, the published rule; a number in [0, 1]: on the map stretched to
                [0, 1].
            upsampling: as in ``saliency``.
            size: None for the original sizes, else an int or (H, W).

        Returns:
            (images, targets, H, W) bool, or a list of (targets, H, W) if the originals differ in size; videos have
            their frames in front of H. All False for a flat map, and for a target that an image does not have.

        Raises:
            InputError: no such threshold, upsampling or size.

        Warns:
            FlatMapWarning: a map without contrast has no mask.
        """
        check_threshold(threshold)
        self._warn_of_flat_maps()
        masks = [self.image_masks(image, threshold, upsampling, size)[0] for image in range(len(self.placements))]
        return torch.stack(masks) if len({mask.shape for mask in masks}) == 1 else masks

    def boxes(
        self,
        threshold: Threshold | float = "half",
        min_area: float = 0.001,
        upsampling: Upsampling = "guided",
    ) -> list[list[Boxes]]:
        """A box around every connected part of the masks.

        Args:
            threshold, upsampling: as in ``masks``.
            min_area: the least part, as a share of the image's pixels.

        Returns:
            ``boxes[image][target]``; no box for a flat map, and for a target that an image does not have.

        Raises:
            InputError: no such threshold or upsampling, or a share out of [0, 1].

        Warns:
            FlatMapWarning: a map without contrast has no box.
        """
        check_threshold(threshold)
        min_area = check_number("min_area", min_area, 0, 1)
        self._warn_of_flat_maps()
        result = []
        for image in range(len(self.placements)):
            masks, saliency = self.image_masks(image, threshold, upsampling)
            view = self.view(image)
            result.append([_boxes(view, *pair, min_area) for pair in zip(masks, saliency, strict=True)])
        return result

    def points(
        self,
        k: int = 1,
        negative: int = 0,
        threshold: Threshold | float = "half",
        upsampling: Upsampling = "guided",
    ) -> list[list[Points]]:
        """Points on each target, and points beside it: prompts for SAM and its like.

        Positive ones are maxima of the saliency inside the mask, apart from each other by a quarter of the mask's size
        at least. Negative ones lie where the map is below its median, as far as possible from the mask, from the
        border and from each other. Of a video all are in the frame where the map is strongest.

        Args:
            k: how many positive points each target gets, at most: a small mask has fewer.
            negative: how many negative ones.
            threshold, upsampling: as in ``masks``.

        Returns:
            ``points[image][target]``; none for a flat map, and for a target that an image does not have.

        Raises:
            InputError: a number below zero, or no such threshold or upsampling.

        Warns:
            FlatMapWarning: a map without contrast has no point.
        """
        check_threshold(threshold)
        check_count("k", k, 0)
        check_count("negative", negative, 0)
        self._warn_of_flat_maps()
        result = []
        for image in range(len(self.placements)):
            masks, saliency = self.image_masks(image, threshold, upsampling)
            view = self.view(image)
            result.append([_points(view, *pair, k, negative) for pair in zip(masks, saliency, strict=True)])
        return result

    def image_masks(
        self,
        image: int,
        threshold: Threshold | float,
        upsampling: Upsampling = "guided",
        size: int | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks of one image, (targets, H, W) bool, and its saliency on the scale of the threshold."""
        saliency = self.target_maps(image, size, "half" if threshold == "half" else "map", upsampling)
        seen = self.view(image).seen(size)
        limits = saliency.new_zeros(len(saliency))
        for target, values in enumerate(saliency[..., seen].flatten(1)):
            limits[target] = _limit(values, threshold)
        masks = (saliency > limits.reshape(-1, *[1] * (saliency.ndim - 1))) & seen
        return masks, saliency

    def _warn_of_flat_maps(self) -> None:
        flat = self.valid & (self.relevance.flatten(2).amax(-1) == self.relevance.flatten(2).amin(-1))
        if bool(flat.any()):
            image, target = flat.nonzero()[0].tolist()
            warn(
                f"{int(flat.sum())} maps are flat: nothing is found on them, first of {self.names[image]}, target "
                f"{self.labels[image][target]!r}",
                FlatMapWarning,
            )


def check_threshold(threshold: Any) -> None:
    """Raise ``InputError`` unless it is one of ``THRESHOLDS`` or a number in [0, 1]."""
    if isinstance(threshold, str) and threshold in THRESHOLDS:
        return
    try:
        check_number("threshold", threshold, 0, 1)
    except InputError:
        words = ", ".join(map(repr, THRESHOLDS))
        raise InputError(f"threshold is one of {words}, or a number in [0, 1], got {brief(threshold)}") from None


def _limit(values: Tensor, threshold: Threshold | float) -> float:
    """What values of one map have to exceed."""
    if threshold == "half":
        return 0.5
    if threshold == "mean":
        return float(values.mean()) if values.numel() else 0.0
    if threshold == "otsu":
        return otsu(values)
    return float(threshold)


def otsu(values: Tensor) -> float:
    """The threshold in [0, 1] that leaves the least variance inside the two groups that it makes.

    Args:
        values: of a map in [0, 1].
    """
    counts = torch.histc(values.float(), _BINS, 0, 1).double()
    centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS
    below, total = counts.cumsum(0), counts.sum()
    sums = (counts * centres).cumsum(0)
    above = total - below
    between = (sums[-1] * below - total * sums) ** 2 / (below * above).clamp(min=1)
    return float((between.argmax() + 1) / _BINS) if bool((below * above > 0).any()) else 0.0


def _boxes(view: "ImageView", mask: Tensor, saliency: Tensor, min_area: float) -> Boxes:
    """Of one map, (H, W) or (frames, H, W)."""
    ndimage = _ndimage()

    rows: list[tuple[float, list[float], int, int, NDArray[np.bool_]]] = []
    frames = zip(mask.numpy(), saliency.numpy(), strict=True) if view.is_video else [(mask.numpy(), saliency.numpy())]
    for frame, (pixels, values) in enumerate(frames):
        numbered, count = ndimage.label(pixels, _TOUCHING)
        for number, place in enumerate(ndimage.find_objects(numbered, count), 1):
            inside = numbered[place] == number
            area = int(inside.sum())
            if area < max(1.0, min_area * pixels.size):
                continue
            part = np.zeros_like(pixels)
            part[place] = inside
            (top, bottom), (left, right) = ((float(side.start), float(side.stop)) for side in place)
            score = float(values[place][inside].mean(dtype=np.float64))
            rows.append((score, [left, top, right, bottom], area, frame, part))
    rows.sort(key=lambda row: (-row[0], row[3], row[1]))
    corners = [_in_units(view, row[1][:2]) + _in_units(view, row[1][2:]) for row in rows]
    return Boxes(
        torch.tensor(corners, dtype=torch.float64).reshape(-1, 4),
        torch.tensor([row[0] for row in rows], dtype=torch.float64),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        torch.tensor([row[3] for row in rows], dtype=torch.int64),
        torch.from_numpy(np.array([row[4] for row in rows], bool).reshape(-1, *mask.shape[-2:])),
        _units(view),
    )


def _points(view: "ImageView", mask: Tensor, saliency: Tensor, k: int, negative: int) -> Points:
    """Of one map, (H, W) or (frames, H, W)."""
    frame = 0
    if view.is_video:
        frame = int(saliency.flatten(1).amax(1).argmax())
        mask, saliency = mask[frame], saliency[frame]
    values, inside = saliency.numpy(), mask.numpy()
    places = _maxima(np.where(inside, values, -1.0), k, 0.25 * math.sqrt(int(inside.sum())))
    count = len(places)
    if count:
        places += _far_away(values, inside, view.seen(values.shape).numpy(), negative)
    centres = [_in_units(view, [col + 0.5, row + 0.5]) for row, col in places]
    return Points(
        torch.tensor(centres, dtype=torch.float64).reshape(-1, 2),
        torch.tensor([1] * count + [0] * (len(places) - count), dtype=torch.int64),
        torch.tensor([float(values[place]) for place in places], dtype=torch.float64),
        torch.full((len(places),), frame, dtype=torch.int64),
        _units(view),
    )


def _maxima(values: "NDArray[Any]", count: int, apart: float) -> list[tuple[int, int]]:
    """(row, col) of the highest non-negative values, each some pixels apart from those before it."""
    values, places = values.copy(), []
    rows, cols = np.ogrid[: values.shape[0], : values.shape[1]]
    for _ in range(count):
        row, col = np.unravel_index(int(values.argmax()), values.shape)
        if values[row, col] < 0:
            break
        places.append((int(row), int(col)))
        values[(rows - row) ** 2 + (cols - col) ** 2 <= apart**2] = -1
    return places


def _far_away(
    values: "NDArray[Any]", mask: "NDArray[np.bool_]", seen: "NDArray[np.bool_]", count: int
) -> list[tuple[int, int]]:
    """(row, col) of background, far from the mask, the border and each other."""
    ndimage = _ndimage()

    if not count:
        return []
    step = -(-max(values.shape) // _COARSE)
    inside, shown = mask[::step, ::step], seen[::step, ::step]
    coarse = values[::step, ::step]
    # one pixel around it stands for the border
    distance = ndimage.distance_transform_edt(np.pad(~inside & shown, 1))[1:-1, 1:-1]
    distance[(coarse > np.median(coarse[shown])) | inside | ~shown] = 0
    rows, cols = np.ogrid[: coarse.shape[0], : coarse.shape[1]]
    places: list[tuple[int, int]] = []
    for _ in range(count):
        row, col = np.unravel_index(int(distance.argmax()), distance.shape)
        if distance[row, col] <= 0:
            break
        places.append((int(row) * step, int(col) * step))
        distance = np.minimum(distance, np.sqrt((rows - row) ** 2 + (cols - col) ** 2))
    return places


def _units(view: "ImageView") -> tuple[str, str]:
    if not view.is_spectrogram:
        return "pixels", "pixels"
    return "frames" if view.timing.duration is None else "seconds", "Hz" if view.frequencies else "bins"


def _in_units(view: "ImageView", place: Sequence[float]) -> list[float]:
    """(x, y) in pixels -> in seconds and Hz, where a spectrogram knows them."""
    x, y = place
    if not view.is_spectrogram:
        return [x, y]
    if view.timing.duration is not None:
        x = view.timing.start + x / view.placement.original[1] * view.timing.duration
    if view.frequencies:
        # rows are given by their centres; edges lie between them
        y = float(np.interp(y - 0.5, range(len(view.frequencies)), view.frequencies))
    return [x, y]


def _ndimage() -> Any:
    """Imported late: most explanations are only looked at."""
    return importlib.import_module("scipy.ndimage")
