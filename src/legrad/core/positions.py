"""The position check: does the token of every patch change with that patch's pixels?"""

from typing import Any

import torch
from torch import Tensor

from legrad.core import hooks
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy
from legrad.models.functions import first_tensor

_LARGEST_SHIFT = 0.75  # cells


def no_position_check(anatomy: ViTAnatomy) -> str:
    """Why an anatomy's positions cannot be checked here, "" if they can."""
    if anatomy.axes != ("rows", "cols"):
        return f"it knows images only, these inputs have the axes {', '.join(anatomy.axes)}"
    if anatomy.keys_to_grid is not None:
        return "a function of the anatomy puts the tokens on the grid, not the order of its rows"
    return ""


def random_input(anatomy: ViTAnatomy, seed: int = 0, batch: int = 1) -> Tensor:
    """Noise, (batch, *shape), on the model's device and in its dtype."""
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(batch, *anatomy.shape, generator=generator, device="cpu", dtype=torch.float32)
    return numbers.to(anatomy.device, anatomy.dtype)


def position_check(anatomy: ViTAnatomy, batch: Tensor) -> None:
    """Change the pixels of single patches, and compare the tokens that enter the first block.

    For images whose tokens enter the first block in the order of the grid, see ``no_position_check``. Convolutional
    stems look beyond their cell, so the change's centre on the grid counts, not the token that changes most.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (1, *anatomy.shape); noise, rather than an image with flat parts.

    Raises:
        TruthCheckError: another token than the anatomy's changed most.
    """
    rows, cols = anatomy.patch_grid.grid

    def tokens_of(images: Tensor) -> Tensor:
        return entering_tokens(anatomy, hooks.block_input(lambda: anatomy.run(images), anatomy.blocks[0]))

    base = tokens_of(batch)
    tokens, expected_tokens = base.shape[1], anatomy.num_prefix_tokens + rows * cols
    if tokens < expected_tokens:
        raise TruthCheckError(
            f"{tokens} tokens enter the first block, but {anatomy.num_prefix_tokens} prefix tokens and a grid of "
            f"{anatomy.grid} make {expected_tokens}"
        )
    for row, col in dict.fromkeys(((0, 0), (0, cols - 1), (rows - 1, 0), (rows // 2, (cols + 1) // 2 - 1))):
        # the middle of the patch only: convolutional stems look a little beyond their cell
        window = tuple(
            slice(index * step + patch // 4, index * step + patch - patch // 4)
            for index, step, patch in zip((row, col), anatomy.patch_grid.stride, anatomy.patch_size, strict=True)
        )
        perturbed = batch.clone()
        perturbed[..., window[0], window[1]] = -perturbed[..., window[0], window[1]] + 1
        change = (tokens_of(perturbed) - base).double().norm(dim=-1)[0].cpu()
        prefix, expected = anatomy.num_prefix_tokens, anatomy.num_prefix_tokens + row * cols + col
        patches = change[prefix : prefix + rows * cols].square()
        # where the change is on the grid: a convolutional stem spreads it over the neighbours
        places = torch.arange(rows * cols, device="cpu")
        centre_row = float((patches * (places // cols)).sum() / patches.sum())
        centre_col = float((patches * (places % cols)).sum() / patches.sum())
        shift = max(abs(centre_row - row), abs(centre_col - col))
        inside = prefix <= int(change.argmax()) < prefix + rows * cols
        if not (inside and shift < _LARGEST_SHIFT):
            raise TruthCheckError(
                f"pixels of the patch at row {row}, column {col} change most token {int(change.argmax())}, not token "
                f"{expected}: prefix tokens ({prefix}) or grid {anatomy.grid} are wrong (tokens in another order than "
                "the grid's rows need the anatomy's `keys_to_grid`)"
            )


def entering_tokens(anatomy: ViTAnatomy, block_input: Any) -> Tensor:
    """A block's input as (1, tokens, dim): laid out like its output, but seldom a tuple where that is one."""
    tokens = anatomy.to_tokens(block_input)
    if tokens.ndim != 3 and (plain := first_tensor(block_input)) is not None:
        return plain
    return tokens
