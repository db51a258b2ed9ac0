"""Is a closed form still what its block computes? One row of one image answers, in every pass.

What a closed form assumes about its block was found out at the first use of an input shape. Since then anything may
have changed: a factor, a function, a flag. So each closed form is compared with what its block really computed, in this
very pass, on one row and a few columns: as little arithmetic as a thousandth of the block's.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad.core import closed_form
from legrad.core.attention import AttentionCall
from legrad.core.block_values import detached
from legrad.core.closed_form import PostAttention
from legrad.core.positions import entering_tokens
from legrad.models.anatomy import ViTAnatomy

_COLUMNS = 32
# of the largest value among them: two correct ways of computing the same differ by less
_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 5e-2}
_REDUCED = 1e-2  # where matrix products may round float32

_passes = itertools.count()


class Confirmation:
    """Compares the closed forms of one pass with what the blocks computed, each at the same row of one image.

    Args:
        anatomy: for the input's size.

    Attributes:
        rows_kept: which rows of the watched modules' tensors were kept, see ``keep``; None for all of them.
    """

    def __init__(self, anatomy: ViTAnatomy) -> None:
        self._anatomy = anatomy
        self.rows_kept: tuple[int, int] | None = None
        # another place in every pass; not of the generators that users seed
        chance = random.Random(next(_passes))
        self._image, self._row, self._column = (chance.random() for _ in range(3))
        self._differences: list[Tensor] = []

    def entering(self, block_input: Any) -> Tensor | None:
        """What is kept of the tokens that enter a block, before it may write on them: the whole row."""
        try:
            tokens = entering_tokens(self._anatomy, block_input)
            return self._row_of(tokens).clone() if tokens.ndim == 3 else None
        except (RuntimeError, TypeError, AttributeError, IndexError):
            return None

    def keep(self, output: Any) -> Any:
        """What a pass keeps of a watched module's tensor, detached: the rows of ``rows_kept``, then the row that is
        compared here."""
        output = detached(output)
        if self.rows_kept is None or not isinstance(output, Tensor) or output.ndim != 3:
            return output
        row = int(self._row * output.shape[1])
        return torch.cat([output[:, slice(*self.rows_kept)], output[:, row : row + 1]], 1)

    def add(self, tail: PostAttention, block: nn.Module, call: AttentionCall, tokens: Tensor) -> None:
        """Compare one block.

        Args:
            tail: its closed form.
            block: the module.
            call: its attention, with the modules behind it watched and what ``entering`` kept as ``arguments``.
            tokens: its output, (batch, tokens, dim).

        Raises:
            TruthCheckError: its modules did not run as at the first use.
        """
        with torch.no_grad():
            for holds, (computed, expected) in zip(tail.confirmed, self._pairs(tail, block, call, tokens), strict=True):
                if holds:
                    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
                    self._differences.append((computed - expected).abs().max() / largest)

    def what_holds(
        self, tail: PostAttention, block: nn.Module, call: AttentionCall, tokens: Tensor
    ) -> tuple[bool, bool, bool]:
        """Which of the comparisons hold at the first use: a block may be laid out in another way."""
        with torch.no_grad():
            pairs = self._pairs(tail, block, call, tokens)
        first, second, third = (
            bool((computed - expected).abs().max() <= _limit(tokens) * expected.abs().max())
            for computed, expected in pairs
        )
        return first, second, third

    def holds(self, tokens: Tensor) -> bool:
        """Whether all closed forms agree with their blocks; the only moment that waits for the device."""
        # a comparison with NaN is False, and NaN must not pass
        return not self._differences or bool(torch.stack(self._differences).max() <= _limit(tokens))

    def _row_of(self, tensor: Tensor) -> Tensor:
        """The row in question of (batch, rows, ...), a view."""
        return tensor[int(self._image * tensor.shape[0]), int(self._row * tensor.shape[1])]

    def _pairs(
        self, tail: PostAttention, block: nn.Module, call: AttentionCall, tokens: Tensor
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """What the closed form's formulas give, and what the block computed: at the norm's input, at the outputs of the
        MLP's first layers, at the block's output."""
        parts = closed_form.activations(tail, block, call)
        if self.rows_kept is None:
            norm_input, *hidden = map(self._row_of, parts)
        else:
            norm_input, *hidden = (part[int(self._image * len(part)), -1] for part in parts)
        output = self._row_of(tokens)
        count = min(_COLUMNS, len(output), *(len(part) for part in hidden))
        first = int(self._column * (min(len(output), *(len(part) for part in hidden)) - count + 1))
        columns = slice(first, first + count)

        def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, scale: str | None = None) -> Tensor:
            outputs = F.linear(inputs, weight[columns], None if bias is None else bias[columns])
            return outputs if scale is None else outputs * next(block.get_submodule(scale).parameters())[columns]

        heads = self._row_of(call.output.transpose(1, 2)).flatten()
        out: Any = None if tail.out is None else block.get_submodule(tail.out)
        weight, bias = (call.projection, call.projection_bias) if out is None else (out.weight, out.bias)
        assert weight is not None
        entered = call.arguments
        attention = linear(heads, weight, bias, tail.scale1)
        behind = torch.full_like(attention, torch.nan) if entered is None else entered[columns] + attention
        linears: list[Any] = [block.get_submodule(name) for name in tail.linears]
        normed = block.get_submodule(tail.norm)(norm_input[None, None])[0, 0]
        features = torch.cat([linear(normed, module.weight, module.bias) for module in linears])
        fc2: Any = block.get_submodule(tail.fc2)
        act: Callable[[Tensor], Tensor] = closed_form.activation_of(tail, block)
        product = closed_form.activation_product(act, tail.gate, closed_form.split_hidden(hidden, fc2.in_features))
        result = norm_input[columns] + linear(product, fc2.weight, fc2.bias, tail.scale2)
        return (
            (behind, norm_input[columns]),
            (features, torch.cat([part[columns] for part in hidden])),
            (result, output[columns]),
        )


def _limit(tokens: Tensor) -> float:
    limit = _LIMITS[tokens.dtype]
    reduced = tokens.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return max(limit, _REDUCED) if reduced else limit
