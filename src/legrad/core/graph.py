"""One forward pass with its graph, for methods that need gradients, or attention maps, of the whole model."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad.core.attention import Attention, Kind, Replacements, WholeTap
from legrad.core.block_values import (
    detached,
    first_argument,
    refuse_inference_mode,
    with_first,
    with_first_argument,
)
from legrad.core.hooks import require_one_run
from legrad.core.undo import Hooks
from legrad.models.functions import first_tensor


@dataclass
class ForwardGraph:
    """One forward pass with the graph from the first block to the output.

    Attributes:
        output: what the forward pass returned.
        block_inputs: the tokens that entered each block, in the block's layout; those of block 0 are a leaf.
        block_outputs: what each block returned.
        attentions: the attentions of each block.
        attentions_after: the attentions after the last block.
    """

    output: Tensor
    block_inputs: list[Any]
    block_outputs: list[Any]
    attentions: list[list[Attention]]
    attentions_after: list[Attention]


def forward_with_graph(
    run: Callable[[], Tensor],
    blocks: Sequence[nn.Module],
    kind: Kind = "fused",
    replacements: Replacements | None = None,
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention,
    cut: Callable[[nn.Module], bool] | None = None,
    gradients: bool = True,
) -> ForwardGraph:
    """Run the model once and keep the graph of all blocks and of what follows them, for methods that need gradients
    through the whole model. Only the result holds the graph.

    Call it inside ``state.evaluation_mode``. Only the calling thread's forward is seen.

    Args:
        run: the forward pass of the vision tower.
        blocks: all transformer blocks, in order; each must run exactly once.
        kind: the kind of attention to look at.
        replacements: torch functions -> what to call instead from the first block on.
        attend: called in place of fused attention.
        cut: which direct children of blocks hand on their output without its graph.
        gradients: False for methods that look at the values only: nothing has a graph.

    Raises:
        TruthCheckError: a block did not run, or ran more than once.
    """
    tap = WholeTap(kind, replacements or {}, attend)
    recorder = _GraphRecorder(blocks, tap, gradients)
    with Hooks() as hooks:
        recorder.register(hooks, cut)
        with torch.no_grad(), tap:
            output = run()
    return recorder.graph(output)


class _GraphRecorder:
    """Collects the parts of a ``ForwardGraph``; block 0 starts it from a leaf, and switches gradients on."""

    def __init__(self, blocks: Sequence[nn.Module], tap: WholeTap, gradients: bool) -> None:
        self._blocks, self._tap, self._gradients = blocks, tap, gradients
        self._inputs: list[list[Any]] = [[] for _ in blocks]
        self._outputs: list[list[Any]] = [[] for _ in blocks]
        # which of the tap's attentions ran inside a block
        self._spans: list[slice] = [slice(0)] * len(blocks)
        self._thread = threading.get_ident()

    def register(self, hooks: Hooks, cut: Callable[[nn.Module], bool] | None) -> None:
        """Register the hooks; ``cut`` as for ``forward_with_graph``."""
        for layer, block in enumerate(self._blocks):
            hooks.before(block, partial(self._enter, layer))
            hooks.after(block, partial(self._leave, layer))
            for child in block.children():
                if cut is not None and cut(child):
                    hooks.after(child, lambda _module, _args, output: detached(output))

    def _enter(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return None
        refuse_inference_mode()
        argument, arguments = first_argument(args, kwargs), None
        tokens = first_tensor(argument)
        if layer == 0 and self._gradients and tokens is not None:
            torch.set_grad_enabled(True)
            tokens = tokens.detach().requires_grad_()
            arguments = with_first_argument(args, kwargs, with_first(argument, tokens))
        self._inputs[layer].append(tokens)
        self._spans[layer] = slice(len(self._tap.attentions), None)
        return arguments

    def _leave(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:
            self._outputs[layer].append(output)
            self._spans[layer] = slice(self._spans[layer].start, len(self._tap.attentions))

    def graph(self, output: Tensor) -> ForwardGraph:
        """What was collected; raises ``TruthCheckError`` unless every block ran once."""
        require_one_run(self._blocks, {layer: len(outputs) for layer, outputs in enumerate(self._outputs)})
        return ForwardGraph(
            output,
            [inputs[0] for inputs in self._inputs],
            [outputs[0] for outputs in self._outputs],
            [self._tap.attentions[span] for span in self._spans],
            self._tap.attentions[self._spans[-1].stop :],
        )
