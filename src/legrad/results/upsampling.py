"""Guided upsampling: maps that follow the contours of their image, and the half-maximum scale.

The guided filter is that of He, Sun, Tang: Guided Image Filtering, ECCV 2010 (colour guide, equations 14 to 16), with
the sub-sampled coefficients of He, Sun: Fast Guided Filter, arXiv:1505.00996.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# squared differences of colours in [0, 1] that count as texture, not as contour
EPSILON = 1e-3
# on so many pixels at most the fits are made; radii below _LEAST_RADIUS would not be worth it
_FIT_PIXELS = 1 << 17
_LEAST_RADIUS = 4

CUT = 0.5
"""Of the half-maximum scale: how far 0.5 is on the way from background to peak; best over methods on tuning scenes."""
# width of its step, share of the linear part, share of the pixels that are the peak
_WIDTH = 1 / 32
_LINEAR = 0.02
_PEAK = 0.03


def fit_size(size: tuple[int, int], radius: tuple[float, float]) -> tuple[int, int]:
    """The size that maps of a large image should have for ``guided``: no smaller than the windows allow.

    Args:
        size: of the image, (height, width).
        radius: of the windows in its pixels, (vertical, horizontal).
    """
    step = 1
    while (size[0] // step) * (size[1] // step) > _FIT_PIXELS and min(radius) / (step + 1) >= _LEAST_RADIUS:
        step += 1
    return max(1, size[0] // step), max(1, size[1] // step)


def guided(maps: Tensor, image: Tensor, radius: tuple[float, float], epsilon: float = EPSILON) -> Tensor:
    """Filter maps so that their edges are those of an image.

    In every window the map is fitted by a linear function of the colours; a pixel gets the mean of the fits of all
    windows that hold it. A flat map stays as it is.

    Args:
        maps: (maps, height, width), floating point, of the image's size; or smaller, see ``fit_size``: then the fits
            are made at that size and the mean fits are interpolated.
        image: the guide, (height, width, 3) in [0, 1].
        radius: of the windows in pixels of the image, (vertical, horizontal); a window has 2 r + 1 pixels.
        epsilon: colour variance below which a window counts as flat.

    Returns:
        (maps, height, width) of the image's size, the dtype of ``maps``; it may leave the range of the maps a little.
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    guide = image.to(dtype).permute(2, 0, 1)
    size, small = guide.shape[-2:], maps.shape[-2:]
    within = max(1, round(radius[0] * small[0] / size[0])), max(1, round(radius[1] * small[1] / size[1]))
    if small == size:
        slope, offset = _coefficients(maps.to(dtype), guide, within, epsilon)
        return _applied(slope, offset, guide).to(maps)
    slope, offset = _coefficients(maps.to(dtype), F.interpolate(guide[None], small, mode="area")[0], within, epsilon)
    result = torch.empty(len(maps), *size, dtype=maps.dtype, device=maps.device)
    for index in range(len(maps)):  # one at a time: they have the size of the image
        fit = torch.cat([slope[index], offset[index][None]])
        *slopes, whole = F.interpolate(fit[None], size, mode="bilinear")[0]
        for part, colour in zip(slopes, guide, strict=True):
            whole.addcmul_(part, colour)
        result[index] = whole.to(maps)
    return result


def _coefficients(maps: Tensor, guide: Tensor, radius: tuple[int, int], epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean slopes (maps, 3, height, width) and offsets (maps, height, width) of the fits.

    Args:
        maps: (maps, height, width).
        guide: (3, height, width).
        radius: whole pixels.
        epsilon: as of ``guided``.
    """
    mean_guide, mean_maps = _window_mean(guide, radius), _window_mean(maps, radius)
    upper = torch.triu_indices(3, 3, device=guide.device)  # of a symmetric matrix
    covariance = guide.new_empty(3, 3, *guide.shape[-2:])
    half = _window_mean(guide[upper[0]] * guide[upper[1]], radius) - mean_guide[upper[0]] * mean_guide[upper[1]]
    covariance[upper[0], upper[1]] = covariance[upper[1], upper[0]] = half
    with_maps = _window_mean(maps[:, None] * guide[None], radius) - mean_maps[:, None] * mean_guide[None]
    matrices = covariance.permute(2, 3, 0, 1) + epsilon * torch.eye(3, dtype=guide.dtype, device=guide.device)
    slope = torch.linalg.solve(matrices, with_maps.permute(2, 3, 1, 0)).permute(3, 2, 0, 1)
    offset = mean_maps - (slope * mean_guide).sum(1)
    return _window_mean(slope, radius), _window_mean(offset, radius)


def _applied(slope: Tensor, offset: Tensor, guide: Tensor) -> Tensor:
    return (slope * guide).sum(1) + offset


def _window_mean(values: Tensor, radius: tuple[int, int]) -> Tensor:
    """Mean over windows of (2 r + 1) pixels, cut at the borders, over the last two dimensions."""
    for dim, r in zip((-2, -1), radius, strict=True):
        # differences of sums over a whole side: float32 would lose what a window holds
        sums = F.pad(values.double().movedim(dim, -1).cumsum(-1), (1, 0))
        places = torch.arange(values.shape[dim], device=values.device)
        first, last = ((places + side).clamp(0, values.shape[dim]) for side in (-r, r + 1))
        means = (sums[..., last] - sums[..., first]) / (last - first)
        values = means.movedim(-1, dim).to(values.dtype)
    return values


def half_maximum(values: Tensor, cut: float = CUT) -> Tensor:
    """A calibrated zero and threshold: 0.5 is ``cut`` of the way from the background to the peak.

        (1 - e) sigmoid((t - cut) / w) + e min_max(u),    t = (u - b) / (p - b)

    with b the median of the map and p the mean of its highest 3 %, w = 1/32 and e = 0.02. Monotone: it changes no order
    of pixels, so neither average precision nor the pointing game; the small linear part e keeps float32 from rounding
    the ends into ties.

    Args:
        values: (maps, pixels), the pixels that the model saw.
        cut: in (0, 1).

    Returns:
        (maps, pixels) in [0, 1]; a flat map becomes zeros.
    """
    pixels = values.shape[-1]
    count = max(1, round(_PEAK * pixels))
    # selection, not sorting: an image may have millions of pixels
    chosen = np.partition(values.detach().cpu().numpy(), ((pixels - 1) // 2, pixels - count), axis=-1)
    ordered = torch.from_numpy(chosen).to(values)
    background, peak = ordered[..., (pixels - 1) // 2, None], ordered[..., pixels - count :].mean(-1, keepdim=True)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    flat = high <= low
    height = torch.where(peak > background, peak - background, (high - low).masked_fill(flat, 1))
    step = torch.sigmoid(((values - background) / height - cut) / _WIDTH)
    linear = (values - low) / (high - low).masked_fill(flat, 1)
    return ((1 - _LINEAR) * step + _LINEAR * linear).masked_fill(flat, 0)
