"""What a first pass finds out about its blocks: each is run on two token rows before it is run for good.

A block's tail works token by token, so two of its rows tell all about it: what its parts are, whether a closed form
gives what autograd gives, and whether autograd follows what is computed. All rows are looked at where two do not go
through a block alone: with a mask, with rotary positions, with a grid inside. What holds for two rows is then
compared with what the block computes in the pass itself, see ``confirm``.

Of blocks with the same parts only the first is run by itself. A further one is a block like it if it computes what the
closed form says, see ``confirm``, and if its graph has the same nodes in the same places: a part that is detached, left
out or put elsewhere changes one or the other.
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

# the nodes of a block's graph between its attention and its output: their names, and those that each leads to
Graph = tuple[tuple[Any, ...], ...]


# a note on errors: smaller chunks of images would not help
EXAMINED = "while a block was run on two token rows"


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
        self._graphs: dict[tuple[Any, ...], Graph | None] = {}
        self._models: dict[tuple[Any, ...], PostAttention] = {}

    @property
    def shortcuts(self) -> Shortcuts:
        """What was found out so far."""
        return self._planner.shortcuts

    def examine(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[nn.Module], bool]:
        """Look at a block before it runs.

        Args:
            layer: its index.
            args, kwargs: what it will be called with.

        Returns:
            The modules to watch for its closed form, none if it has none; and whether its graph is asked for besides.
        """
        block = self._anatomy.blocks[layer]
        structure = block_structure(block)
        if self._known is not None:
            tail = self._known.get(layer)
        elif self._graphs.get(structure) is not None and self._models[structure].fits(block):
            tail = self._models[structure]
        else:
            self._run_alone(layer, args, kwargs)
            tail = self.shortcuts.tails.get(layer)
        if tail is None or not tail.fits(block):
            self.shortcuts.tails.pop(layer, None)
            return [], True
        self.shortcuts.tails[layer] = tail
        return tail.watched(block), self._known is None

    def ran(self, layer: int, tokens: Tensor, calls: list[AttentionCall]) -> None:
        """Look at the graph of a block that ran.

        Raises:
            TruthCheckError: it is another one than that of the first block with the same parts.
        """
        tail = self.shortcuts.tails.get(layer)
        if tail is None or self._known is not None or not all(tail.confirmed):
            return
        structure = tail.structure
        graph = _graph(tokens, calls[0].output)
        if self._graphs.setdefault(structure, graph) != graph:
            raise TruthCheckError(
                f"{block_name(self._anatomy, layer)} has the parts of an earlier block, but another graph"
            )
        self._models.setdefault(structure, tail)

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
                if ran_out(error):
                    error.add_note(EXAMINED)
                    raise
                if index == len(candidates) - 1:
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
                self._gradients.block(layer, tokens, calls)
            return False

        with torch.no_grad():
            alone = hooks.StreamingForward([block], [0], visit, self._anatomy.attention, verify=True)
            alone.run(lambda: self._anatomy.to_tokens(block(*args, **kwargs)))


def _fewer(
    anatomy: ViTAnatomy, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a block: two token rows of the first image, all of its rows, and everything."""
    argument = first_argument(args, kwargs)
    dims = _dims(anatomy, argument)
    if dims is not None:
        images, rows = dims
        first = argument.narrow(images, 0, 1)
        count = first.shape[rows]
        others = itertools.chain(args[1:], itertools.islice(kwargs.values(), 0 if args else 1, None))
        if not any(map(_holds_tensors, others)):
            indices = sorted({0, count - 1})
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


def _graph(tokens: Tensor, leaf: Tensor) -> Graph | None:
    """What leads from a block's output to its attention; None if it has a backward pass that somebody wrote.

    Args:
        tokens: the block's output.
        leaf: the head outputs.
    """
    places: dict[Any, int] = {}
    entries: list[tuple[Any, ...]] = []
    waiting: list[tuple[Any, bool]] = [(tokens.grad_fn, False)]
    visited: set[Any] = set()
    while waiting:
        node, inner_done = waiting.pop()
        if inner_done:
            inner = [places.get(following) for following, _ in node.next_functions]
            # weights that are trained have nodes of their own, those that are frozen have none
            if getattr(node, "variable", None) is leaf or any(place is not None for place in inner):
                places[node] = len(entries)
                entries.append((node.name(), *inner))
        elif node is not None and node not in visited:
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                return None
            visited.add(node)
            waiting.append((node, True))
            waiting.extend((following, False) for following, _ in node.next_functions)
    return tuple(entries)
