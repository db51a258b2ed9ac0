"""Where NaN comes from: weights, input, precision. Nothing is searched for until something went wrong."""

import itertools

import torch
from torch import Tensor, nn

from legrad.errors import InputError, TruthCheckError
from legrad.models.anatomy import ViTAnatomy

_LARGEST_INPUT = 100  # normalised images lie within a few units of zero


def nonfinite_weight(module: nn.Module) -> str | None:
    """The name of the first parameter or buffer that holds NaN or infinite values."""
    for name, weight in itertools.chain(module.named_parameters(), module.named_buffers()):
        if not weight.is_floating_point():
            continue
        # buffers that mask an attention hold minus infinity on purpose
        bad = ~weight.isfinite() if isinstance(weight, nn.Parameter) else weight.isnan()
        if bool(bad.any()):
            return name
    return None


def check_output(anatomy: ViTAnatomy, batch: Tensor) -> None:
    """Say where it comes from if the model's own output holds NaN or infinite values.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.

    Raises:
        InputError: the input is far out of range.
        TruthCheckError: it comes from the model: a weight, its precision, its arithmetic.
    """
    if bool(torch.isfinite(anatomy.run(batch)).all()):
        return
    name, largest = nonfinite_weight(anatomy.tower), float(batch.abs().max())
    if name is not None:
        reason = f"its weight {name} does (diverged training, or a damaged file?)"
    elif largest > _LARGEST_INPUT:
        raise InputError(
            f"the model's own output holds NaN or infinite values: the input is far out of range, it reaches "
            f"{largest:.2g}; normalised inputs stay within a few units"
        )
    elif batch.dtype == torch.float16:
        reason = "float16 overflows in this model; use bfloat16 or float32"
    else:
        reason = "weights and input are finite, so it arises inside the model"
    raise TruthCheckError(f"the model's own output holds NaN or infinite values: {reason}")
