"""What a first pass finds out about its blocks: each is run on a few token rows before it is run for good.

A block's tail works token by token, so a few of its rows tell all about it: what its parts are, whether a closed form
gives what autograd gives, and whether autograd follows what is computed. All rows are looked at where a few do not go
through a block alone: with a mask, with rotary positions, with a grid inside. What holds for a few rows is then
compared with all that the block computes in the pass itself, see ``confirm``.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from legrad.core import hooks
from legrad.core.attention import AttentionCall
from legrad.core.block_values import copied, first_argument, with_first_argument
from legrad.core.closed_form import PostAttention, block_structure
from legrad.core.gradients import GradientCheck
from legrad.core.memory import ran_out
from legrad.core.planning import Planner, Shortcuts
from legrad.core.positions import entering_tokens
from legrad.core.truth import block_name, check_calls, check_pooler
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy


class Examiner:
    """Examines the blocks of one pass.

    Args:
        anatomy: for the input's size.
        gradients: collects what is wrong with gradients; None if they were checked before.
        known: layer -> tail, of another input size; None if nothing is known yet.
    """

    def __init__(
        self, anatomy: ViTAnatomy, gradients: GradientCheck | None, known: Mapping[int, PostAttention] | None
    ) -> None:
        self._anatomy, self._gradients, self._known = anatomy, gradients, known
        self._planner = Planner(anatomy)
        self._checked_structures: set[tuple[Any, ...]] = set()

    @property
    def shortcuts(self) -> Shortcuts:
        """What was found out so far."""
        return self._planner.shortcuts

    def examine(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[nn.Module] | None:
        """Look at a block before it runs.

        Args:
            layer: its index.
            args, kwargs: what it will be called with.

        Returns:
            The modules to watch for its closed form; None if it has none.
        """
        block = self._anatomy.blocks[layer]
        if self._known is None:
            self._run_alone(layer, args, kwargs)
        else:
            tail = self._known.get(layer)
            if tail is not None and tail.fits(block):
                self.shortcuts.tails[layer] = tail
        tail = self.shortcuts.tails.get(layer)
        return None if tail is None else tail.watched(block)

    def finish(self, tokens: Tensor) -> None:
        """Check what follows the blocks.

        Args:
            tokens: of the last block, (images, tokens, dim).

        Raises:
            TruthCheckError: the pooler or a gradient is wrong.
        """
        if self._anatomy.route == "pooler":
            check_pooler(self._anatomy, len(self._anatomy.blocks) - 1, tokens[:1], tokens.dtype)
        if self._gradients is not None:
            self._gradients.readouts(tokens[:1])
            self._gradients.require_right()

    def _run_alone(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        candidates = list(_fewer(self._anatomy, args, kwargs))
        for index, (few_args, few_kwargs) in enumerate(candidates):
            try:
                return self._run(layer, few_args, few_kwargs)
            except Exception as error:  # a part that does not run like this
                if ran_out(error) or index == len(candidates) - 1:
                    raise
                self.shortcuts.tails.pop(layer, None)

    def _run(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the block by itself, with its graph and all its modules watched."""
        block = self._anatomy.blocks[layer]

        def visit(_: int, output: Any, calls: list[AttentionCall]) -> bool:
            tokens = self._anatomy.to_tokens(output)
            check_calls(self._anatomy, calls, block_name(self._anatomy, layer))
            if tokens.ndim != 3:
                raise TruthCheckError(f"{block_name(self._anatomy, layer)} returns no (batch, tokens, dim)")
            self._planner.visit(layer, tokens, calls)
            if self._gradients is not None:
                self._gradients.block(layer, tokens, calls, modules_only=self._arithmetic_is_known(layer, tokens))
            return False

        with torch.no_grad():
            alone = hooks.StreamingForward([block], [0], visit, self._anatomy.attention, verify=True)
            alone.run(lambda: self._anatomy.to_tokens(block(*args, **kwargs)))

    def _arithmetic_is_known(self, layer: int, tokens: Tensor) -> bool:
        """Whether finite differences would tell nothing new: the block computes what its closed form says, autograd
        follows it, and a block like it was compared with finite differences."""
        tail = self.shortcuts.tails.get(layer)
        structure = block_structure(self._anatomy.blocks[layer])
        known = tail is not None and all(tail.confirmed) and structure in self._checked_structures
        self._checked_structures.add(structure)
        return known


def _fewer(
    anatomy: ViTAnatomy, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a block: a few token rows of the first image, all of its rows, and everything."""
    argument = first_argument(args, kwargs)
    dims = _dims(anatomy, argument)
    if dims is not None:
        images, rows = dims
        first = argument.narrow(images, 0, 1)
        count = first.shape[rows]
        others = itertools.chain(args[1:], itertools.islice(kwargs.values(), 0 if args else 1, None))
        if not any(map(_holds_tensors, others)):
            indices = sorted({0, count // 3, 2 * count // 3, count - 1})
            few = first.index_select(rows, torch.tensor(indices, device=first.device))
            yield with_first_argument(args, kwargs, few)
        if argument.shape[images] > 1:
            rest_args, rest_kwargs = copied((args, kwargs))
            yield with_first_argument(rest_args, rest_kwargs, first.detach().clone())
    yield copied((args, kwargs))


def _dims(anatomy: ViTAnatomy, argument: Any) -> tuple[int, int] | None:
    """Which dimensions of a block's first argument are images and token rows; None if it is laid out otherwise."""
    if not isinstance(argument, Tensor) or argument.ndim != 3:
        return None
    try:
        tokens = entering_tokens(anatomy, argument)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return None
    for images, rows in ((0, 1), (1, 0)):
        laid_out = argument.transpose(0, images)
        if tokens.shape == laid_out.shape and tokens.stride() == laid_out.stride():
            return images, rows
    return None


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_tensors, value))
