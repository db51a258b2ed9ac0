"""Methods that only look at the scores of changed images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.methods.call import MethodInput, on_cells, require_images
from legrad.methods.method import Method

_FORWARDS = 32  # changed images in one batch


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
    made = _masks(call.batch.shape[-2:], masks, side, keep, seed)
    weights = on_cells(call, made).flatten(1)
    results = []
    for image in range(len(call.batch)):
        scores = _scores(call, image, made)
        # by the coverage that a patch did get: an unequal one, times a similarity that hardly varies, hides the rest
        found = scores.T @ weights.to(scores) / weights.sum(0).to(scores)
        results.append(found.unflatten(-1, call.anatomy.grid))
    return torch.stack(results)[:, :, None]


RISE = Method(
    name="rise",
    summary="mean score of randomly masked images in which a patch is visible",
    source="Petsiuk et al., BMVC 2018, arXiv:1806.07421",
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
    cells = call.anatomy.patch_grid
    corners = [(r, c) for r in range(cells.grid[0] - window + 1) for c in range(cells.grid[1] - window + 1)]
    made = torch.ones(len(corners), *call.batch.shape[-2:])
    inside = torch.zeros(len(corners), *cells.grid, dtype=torch.float64)
    for mask, cover, (row, col) in zip(made, inside, corners, strict=True):
        top, left = row * cells.stride[0], col * cells.stride[1]
        height, width = ((window - 1) * s + p for s, p in zip(cells.stride, cells.patch, strict=True))
        mask[int(top) : int(top + height), int(left) : int(left + width)] = 0
        cover[row : row + window, col : col + window] = 1
    call.output = call.anatomy.run(call.batch)
    whole = call.answer()
    results = []
    for image in range(len(call.batch)):
        falls = (whole[image] - _scores(call, image, made)).T
        found = falls @ inside.flatten(1).to(falls) / inside.flatten(1).sum(0).to(falls)
        results.append(found.unflatten(-1, call.anatomy.grid))
    return torch.stack(results)[:, :, None]


OCCLUSION = Method(
    name="occlusion",
    summary="how much the score falls when a patch is covered",
    source="Zeiler and Fergus, ECCV 2014, arXiv:1311.2901",
    function=occlusion,
    needs="black box",
    cost="1 forward pass per patch",
    signed=True,
)


def _scores(call: MethodInput, image: int, masks: Tensor) -> Tensor:
    """Scores of one image under each mask (n, height, width): (n, targets)."""
    found = []
    for part in masks.split(_FORWARDS):
        outputs = call.anatomy.run(call.batch[image] * part[:, None].to(call.batch))
        found.append(call.scored(image, outputs))
    return torch.cat(found)


def _masks(size: tuple[int, ...], count: int, side: int, keep: float, seed: int) -> Tensor:
    """(count, height, width) in [0, 1], made on the CPU so that every device gets the same."""
    generator = torch.Generator().manual_seed(seed)
    cell = [math.ceil(pixels / side) for pixels in size]
    shifts = [torch.randint(0, pixels, (count,), generator=generator).tolist() for pixels in cell]
    masks = []
    for top, left in zip(*shifts, strict=True):
        coarse = (torch.rand(1, 1, side + 1, side + 1, generator=generator) < keep).float()
        large = F.interpolate(
            coarse, size=[(side + 1) * pixels for pixels in cell], mode="bilinear", align_corners=False
        )
        masks.append(large[0, 0, top : top + size[0], left : left + size[1]])
    return torch.stack(masks)
