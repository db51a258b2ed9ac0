"""Black-box methods: they only look at the scores of changed images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.checks import check_count, check_number
from legrad.methods.call import MethodInput, mean_over_patches, require_images
from legrad.methods.catalogue import about
from legrad.methods.method import Method

_FORWARDS = 32  # masked images in one batch


def rise(call: MethodInput, masks: int = 256, side: int = 7, keep: float = 0.5, seed: int = 0) -> Tensor:
    """Mean score of the images in which a patch is visible, over random soft masks.

    A mask is a ``side`` x ``side`` grid of ones (with probability ``keep``) and zeros, enlarged bilinearly and shifted
    at random; it multiplies the model's input, whose zero is the mean colour. Every image gets the same masks.

    Args:
        call: what is asked.
        masks: how many; the paper takes 4000 to 8000.
        side: cells of a mask.
        keep: probability of a visible cell.
        seed: of the masks.
    """
    require_images(call, "rise")
    check_count("rise: masks", masks)
    check_count("rise: side", side)
    check_number("rise: keep", keep, 0, 1)
    random_masks = _random_masks(call.batch.shape[-2:], masks, side, keep, seed)
    visible = mean_over_patches(call, random_masks).flatten(1)
    results = []
    for image in range(len(call.batch)):
        scores = _masked_scores(call, image, random_masks)
        # by the coverage that a patch did get: an unequal one, times a similarity that hardly varies, hides the rest
        maps = scores.T @ visible.to(scores) / visible.sum(0).to(scores)
        results.append(maps.unflatten(-1, call.anatomy.grid))
    return torch.stack(results)[:, :, None]


RISE = Method(
    **about("rise"),
    function=rise,
    needs="black box",
    cost="256 forward passes",
    signed=True,
)


def occlusion(call: MethodInput, window: int = 1) -> Tensor:
    """How much the score falls when patches are replaced by the mean colour (zero in the model's input).

    Args:
        call: what is asked.
        window: side in patches; larger windows slide by one patch, and a patch gets the mean of those over it.
    """
    require_images(call, "occlusion")
    check_count("occlusion: window", window, high=min(call.anatomy.grid))
    masks, coverage = _windows(call, window)
    call.output = call.anatomy.run(call.batch)
    full_scores = call.answer()
    results = []
    for image in range(len(call.batch)):
        falls = (full_scores[image] - _masked_scores(call, image, masks)).T
        maps = falls @ coverage.to(falls) / coverage.sum(0).to(falls)
        results.append(maps.unflatten(-1, call.anatomy.grid))
    return torch.stack(results)[:, :, None]


OCCLUSION = Method(
    **about("occlusion"),
    function=occlusion,
    needs="black box",
    cost="1 forward pass per patch",
    signed=True,
)


def _windows(call: MethodInput, window: int) -> tuple[Tensor, Tensor]:
    """Masks (windows, height, width), 0 inside a window, and which patches each covers, (windows, patches)."""
    patches = call.anatomy.patch_grid
    rows, cols = patches.grid
    corners = [(row, col) for row in range(rows - window + 1) for col in range(cols - window + 1)]
    masks = torch.ones(len(corners), *call.batch.shape[-2:], device="cpu", dtype=torch.float32)
    coverage = torch.zeros(len(corners), *patches.grid, device="cpu", dtype=torch.float64)
    height, width = ((window - 1) * s + p for s, p in zip(patches.stride, patches.patch, strict=True))
    for index, (row, col) in enumerate(corners):
        top, left = row * patches.stride[0], col * patches.stride[1]
        masks[index, int(top) : int(top + height), int(left) : int(left + width)] = 0
        coverage[index, row : row + window, col : col + window] = 1
    return masks, coverage.flatten(1)


def _masked_scores(call: MethodInput, image: int, masks: Tensor) -> Tensor:
    """Scores of one image under each mask (n, height, width): (n, targets)."""
    scores, anatomy = [], call.anatomy.for_images([image])
    for chunk in masks.split(_FORWARDS):
        outputs = anatomy.run(call.batch[image] * chunk[:, None].to(call.batch))
        scores.append(call.scores_of(image, outputs))
    return torch.cat(scores)


def _random_masks(size: tuple[int, ...], count: int, side: int, keep: float, seed: int) -> Tensor:
    """(count, height, width) in [0, 1], made on the CPU so that every device gets the same."""
    generator = torch.Generator("cpu").manual_seed(seed)
    cell = [math.ceil(pixels / side) for pixels in size]
    shifts = [torch.randint(0, pixels, (count,), generator=generator, device="cpu").tolist() for pixels in cell]
    masks = []
    for top, left in zip(*shifts, strict=True):
        coarse = (
            torch.rand(1, 1, side + 1, side + 1, generator=generator, device="cpu", dtype=torch.float32) < keep
        ).float()
        large = F.interpolate(
            coarse, size=[(side + 1) * pixels for pixels in cell], mode="bilinear", align_corners=False
        )
        masks.append(large[0, 0, top : top + size[0], left : left + size[1]])
    return torch.stack(masks)
