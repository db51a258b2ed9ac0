"""The position check: does the token of every patch change with that patch's pixels?"""

from typing import Any

import torch
from torch import Tensor

from legrad.core import hooks
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy

_OFF = 0.75  # cells


def no_position_check(anatomy: ViTAnatomy) -> str:
    """Why an anatomy's positions cannot be checked here, "" if they can."""
    if anatomy.axes != ("rows", "cols"):
        return f"it knows images only, these inputs have the axes {', '.join(anatomy.axes)}"
    if anatomy.keys_to_grid is not None:
        return "the tokens are laid on the grid by a function of the anatomy, not in the order of its rows"
    return ""


def random_input(anatomy: ViTAnatomy, seed: int = 0, batch: int = 1) -> Tensor:
    """(batch, *shape) of noise on the model's device and in its type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *anatomy.shape, generator=generator).to(anatomy.device, anatomy.dtype)


def position_check(anatomy: ViTAnatomy, batch: Tensor) -> None:
    """Change the pixels of single patches and look which token enters the first block changed.

    For pictures whose tokens enter the first block in the order of the grid, see ``no_position_check``. Convolutional
    stems look beyond their cell, so the change's centre on the grid counts, not its strongest token.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (1, *anatomy.shape); noise tells more than a picture with flat parts.

    Raises:
        TruthCheckError: another token than the anatomy's changed most.
    """
    rows, cols = anatomy.patch_grid.grid

    def block_input(images: Tensor) -> Tensor:
        return _tokens(anatomy, hooks.block_input(lambda: anatomy.run(images), anatomy.blocks[0]))

    base = block_input(batch)
    tokens, needed = base.shape[1], anatomy.num_prefix_tokens + rows * cols
    if tokens < needed:
        raise TruthCheckError(
            f"{tokens} tokens enter the first block, but {anatomy.num_prefix_tokens} prefix tokens and a grid of "
            f"{anatomy.grid} make {needed}"
        )
    for row, col in dict.fromkeys(((0, 0), (0, cols - 1), (rows - 1, 0), (rows // 2, (cols + 1) // 2 - 1))):
        # the middle of the patch only: convolutional stems look a little beyond their cell
        window = tuple(
            slice(index * step + patch // 4, index * step + patch - patch // 4)
            for index, step, patch in zip((row, col), anatomy.patch_grid.stride, anatomy.patch_size, strict=True)
        )
        changed = batch.clone()
        changed[..., window[0], window[1]] = -changed[..., window[0], window[1]] + 1
        moved = (block_input(changed) - base).double().norm(dim=-1)[0].cpu()
        prefix, expected = anatomy.num_prefix_tokens, anatomy.num_prefix_tokens + row * cols + col
        patches = moved[prefix : prefix + rows * cols].square()
        # where the change is on the grid: a convolutional stem spreads it over the neighbours
        found_row = float((patches * (torch.arange(rows * cols) // cols)).sum() / patches.sum())
        found_col = float((patches * (torch.arange(rows * cols) % cols)).sum() / patches.sum())
        off = max(abs(found_row - row), abs(found_col - col))
        inside = prefix <= int(moved.argmax()) < prefix + rows * cols
        if not (inside and off < _OFF):
            raise TruthCheckError(
                f"pixels of the patch at row {row}, column {col} change most token {int(moved.argmax())}, not token "
                f"{expected}: prefix tokens ({prefix}) or grid {anatomy.grid} are wrong (tokens in another order than "
                "the grid's rows need the anatomy's `lay`)"
            )


def _tokens(anatomy: ViTAnatomy, entering: Any) -> Tensor:
    """(1, tokens, dim) of what enters a block: laid out like a block's output, but seldom a tuple like that."""
    tokens = anatomy.to_tokens(entering)
    return tokens if tokens.ndim == 3 or not isinstance(entering, Tensor) else entering
