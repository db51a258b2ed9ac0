"""The streaming pass: one forward, the layers' scores differentiated as their blocks finish."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from legrad import relevance
from legrad.core import attention, hooks
from legrad.core.closed_form import PostAttention
from legrad.core.confirm import Confirmation
from legrad.core.first_look import Examiner
from legrad.core.memory import ran_out
from legrad.core.planning import Shortcuts, find_shortcuts
from legrad.core.readout import Reader, TokenSpan
from legrad.core.routes import (
    FinishedBlock,
    LayerPass,
    relevance_at_pooler,
    relevance_by_autograd,
    relevance_closed_form,
)
from legrad.core.score import ResolvedTarget
from legrad.core.truth import (
    Instrumented,
    at_least_float32,
    block_name,
    check_calls,
    check_mismatch,
    check_same_output,
    coarsest,
    final_answer,
    native_feature,
)
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy

# So many layers are explained together, if they have no more tokens than that: for few images a read-out or a pooler is
# bound by memory traffic of its weights and by Python, so several layers share one call.
_LAYERS_TOGETHER, _TOKENS_TOGETHER = 4, 2000
_IN_CLOSED_FORM = (relevance.key_relevance, relevance.centred_relevance, relevance.simplex_relevance)
_FEW_ROWS = 4  # fewer than that are copied out of a block's activations


@dataclass(frozen=True)
class Explained:
    """The results of one pass, on the CPU, float32 or float64.

    Attributes:
        relevance: (images, targets, layers, *grid); with heads before the grid if the reduction keeps them apart.
        scores: the model's own, (images, targets).
        targets: those that waited for the model's answer are resolved.
        answer: the model's own, (images, features).
    """

    relevance: Tensor
    scores: Tensor
    targets: list[ResolvedTarget]
    answer: Tensor


def explain_batch(
    anatomy: ViTAnatomy,
    batch: Tensor,
    targets: Sequence[ResolvedTarget],
    layers: Sequence[int],
    readout: str,
    shortcuts: Shortcuts | None = None,
    keep_until_answer: bool = False,
    max_numel: int | None = None,
    reduction: relevance.Reduction = relevance.key_relevance,
) -> Explained:
    """Relevance of every layer, and the model's own scores, from one forward pass.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.
        targets: what is scored.
        layers: ascending block indices.
        readout: a key of ``anatomy.readouts``.
        shortcuts: closed forms to use; default autograd everywhere.
        keep_until_answer: where targets depend on the model's answer, keep what all layers need until then, instead of
            running the model twice.
        max_numel: most elements per activation that a chunk inside a layer holds; default a good size for the device.
        reduction: of gradients and values to keys; closed forms are used for those of ``_IN_CLOSED_FORM``.

    Raises:
        TruthCheckError: an attention did not fire as declared, or the native read-out is not the model's output.
    """
    shortcuts = Shortcuts() if shortcuts is None else shortcuts
    if not keep_until_answer and any(target.needs_answer for target in targets):
        answer = final_answer(anatomy, anatomy.run(batch))
        targets = [target.with_answer(answer) for target in targets]
    question = anatomy, batch, targets, layers, readout, shortcuts, max_numel, reduction
    if shortcuts.first_look is not None:
        result = shortcuts.first_look(batch, partial(_examined_pass, *question))
        if result is not None:
            return result
    for again in (True, True, False):
        result = _one_pass(*question)
        if result is not None:
            return result
        # a block computes something else than at its first use: find out anew, and once more, then do without
        shortcuts.replace_by(find_shortcuts(anatomy, batch[:1]) if again else Shortcuts())
    result = _one_pass(*question)
    assert result is not None
    return result


def _examined_pass(
    anatomy: ViTAnatomy,
    batch: Tensor,
    targets: Sequence[ResolvedTarget],
    layers: Sequence[int],
    readout: str,
    shortcuts: Shortcuts,
    max_numel: int | None,
    reduction: relevance.Reduction,
    examiner: Examiner,
) -> tuple[Explained | None, Instrumented]:
    """A pass that examines every block as it comes, and explains it: for ``FirstUse``.

    Returns:
        The result, None if the pass has to be run again without looking; and what the forward gave.
    """
    reader = Reader(anatomy, anatomy.readouts[readout])
    tails = examiner.shortcuts.tails if reduction is relevance.key_relevance else {}
    layer_pass = LayerPass(anatomy, reader, targets, reduction, tails, shortcuts.folds, max_numel, verify=True)
    streaming_pass = _StreamingPass(layer_pass, batch, layers, readout, shortcuts, examiner)
    result, forward = streaming_pass.run()
    span = shortcuts.token_spans.get(readout)
    wrong = span is not None and not reader.depends_on_mean_only(span, at_least_float32(forward.tokens))
    return None if span is not None and span.only_mean and wrong else result, forward


def _one_pass(
    anatomy: ViTAnatomy,
    batch: Tensor,
    targets: Sequence[ResolvedTarget],
    layers: Sequence[int],
    readout: str,
    shortcuts: Shortcuts,
    max_numel: int | None,
    reduction: relevance.Reduction,
) -> Explained | None:
    """``explain_batch`` with these closed forms; None if one of them does not agree with its block any more."""
    reader = Reader(anatomy, anatomy.readouts[readout])
    tails = shortcuts.tails if reduction in _IN_CLOSED_FORM else {}
    tails = {layer: tail for layer, tail in tails.items() if layer in layers and tail.fits(anatomy.blocks[layer])}
    streaming_pass = _StreamingPass(
        LayerPass(anatomy, reader, targets, reduction, tails, shortcuts.folds, max_numel),
        batch,
        layers,
        readout,
        shortcuts,
    )
    try:
        result, (_, tokens, _) = streaming_pass.run()
    except _StaleError:
        return None
    span = shortcuts.token_spans.get(readout)
    if span is not None and span.only_mean and not reader.depends_on_mean_only(span, at_least_float32(tokens)):
        # the read-out no longer depends on the mean only: forget the shortcut and run again
        shortcuts.token_spans[readout] = TokenSpan(None)
        result, _ = streaming_pass.run()
    return result


class _StaleError(Exception):
    """A closed form does not agree with its block any more."""


class _StreamingPass:
    """Explains the blocks of a forward pass: each as it finishes, a few together, or all after the model's answer.

    Args:
        layer_pass: what the layers share.
        batch: (images, *anatomy.shape) in the model's dtype.
        layers: ascending block indices.
        readout: the name of the reader's read-out.
        shortcuts: where the tokens that a read-out depends on are looked up, and added.
        examiner: at a first use, of all blocks, explained or not.
    """

    def __init__(
        self,
        layer_pass: LayerPass,
        batch: Tensor,
        layers: Sequence[int],
        readout: str,
        shortcuts: Shortcuts,
        examiner: Examiner | None = None,
    ) -> None:
        self._examiner = examiner
        self._layer_pass, self._batch, self._layers = layer_pass, batch, layers
        self._readout, self._shortcuts = readout, shortcuts
        self._waiting = any(target.needs_answer for target in layer_pass.targets)
        # a float64 model is after exactness, and other company in a batch rounds differently
        self._layers_together = 1 if batch.dtype == torch.float64 else _LAYERS_TOGETHER
        # finished blocks that wait: with their graph, or for a closed form or the pooler
        self._graphs: list[FinishedBlock] = []
        self._queue: list[FinishedBlock] = []
        self._relevance: dict[int, Tensor] = {}
        self._precision = batch.dtype
        self._confirmation = Confirmation(layer_pass.anatomy)

    def run(self) -> tuple[Explained, Instrumented]:
        """Run the model once; the results, and what the forward gave."""
        anatomy = self._layer_pass.anatomy
        span = self._shortcuts.token_spans.get(self._readout)
        rows = None if span is None or self._examiner is not None else span.rows
        # of a class token's read-out: what passes is not kept, and its memory serves the next block
        self._confirmation.rows_kept = rows if rows is not None and rows[1] - rows[0] <= _FEW_ROWS else None
        layer_pass = replace(self._layer_pass, rows_kept=self._confirmation.rows_kept is not None)
        blocks_alone = self._examiner is None or anatomy.route == "pooler"
        forward = hooks.StreamingForward(
            anatomy.blocks,
            self._layers if blocks_alone else range(len(anatomy.blocks)),
            lambda layer, output, calls: self._visit(layer_pass, layer, output, calls),
            tap=anatomy.attention if anatomy.route == "self-attention" else None,
            watched={layer: tail.watched(anatomy.blocks[layer]) for layer, tail in layer_pass.tails.items()},
            keep_input=self._confirmation.entering,
            keep_rows=self._confirmation.keep,
            examine=None if self._examiner is None else self._examiner.examine,
        )
        output, last = forward.run(lambda: anatomy.run(self._batch))
        tokens = anatomy.to_tokens(last)
        if not self._confirmation.holds(tokens):
            raise _StaleError
        native = native_feature(anatomy, tokens)
        name = "the native read-out of the last block's tokens"
        check_same_output(native, at_least_float32(output), name, self._precision)
        answer = final_answer(anatomy, output)
        targets = [target.with_answer(answer) for target in layer_pass.targets]
        layer_pass = replace(layer_pass, targets=targets)
        with torch.enable_grad():
            self._explain_graphs(layer_pass)
            self._explain_queue(layer_pass)
        scores = torch.stack([target(answer) for target in targets], 1).cpu()
        maps = torch.stack([self._relevance[layer] for layer in self._layers], 2)
        explained = Explained(maps, scores, targets, answer.detach().cpu())
        return explained, Instrumented(output, tokens, self._precision)

    def _visit(self, layer_pass: LayerPass, layer: int, output: Any, calls: list[attention.AttentionCall]) -> bool:
        """Explain a finished block, or keep it (True)."""
        anatomy = layer_pass.anatomy
        block = FinishedBlock(layer, anatomy.to_tokens(output), calls)
        self._precision = coarsest(self._precision, block.tokens.dtype, *(call.output.dtype for call in calls))
        if anatomy.route == "self-attention":
            check_calls(anatomy, calls, block_name(anatomy, layer))
            if self._examiner is not None:
                check_mismatch(calls, block_name(anatomy, layer), self._precision)
                self._examiner.ran(layer, block.tokens, calls)
            if layer not in self._layers:
                if layer in layer_pass.tails:
                    self._confirm(layer_pass.tails[layer], block)
                return False
            if layer not in layer_pass.tails:
                self._graphs.append(block)
                if not self._waiting:
                    self._explain_graphs(layer_pass)
                return self._waiting
            self._confirm(layer_pass.tails[layer], block)
            block = replace(block, tokens=block.tokens.detach())
        self._queue.append(block)
        num_tokens = math.prod(block.tokens.shape[:2])
        if not self._waiting and len(self._queue) >= min(self._layers_together, _TOKENS_TOGETHER // num_tokens):
            self._explain_queue(layer_pass)
        return bool(self._queue)

    def _confirm(self, tail: PostAttention, block: FinishedBlock) -> None:
        module = self._layer_pass.anatomy.blocks[block.layer]
        try:
            self._confirmation.add(tail, module, block.calls[0], block.tokens)
        except (TruthCheckError, RuntimeError, AttributeError, StopIteration) as error:
            if ran_out(error):
                raise
            raise _StaleError from error

    def _explain_graphs(self, layer_pass: LayerPass) -> None:
        """Autograd, one layer at a time: its graph is freed before the next."""
        while self._graphs:
            block = self._graphs.pop()
            self._relevance[block.layer] = relevance_by_autograd(layer_pass, block).cpu()

    def _explain_queue(self, layer_pass: LayerPass) -> None:
        """Closed forms, or the pooler, of all waiting layers together."""
        if not self._queue:
            return
        if layer_pass.anatomy.route == "pooler":
            maps = relevance_at_pooler(layer_pass, self._queue)
        else:
            spans = self._shortcuts.token_spans
            if self._readout not in spans:
                first_image = at_least_float32(self._queue[0].tokens[:1])
                spans[self._readout] = layer_pass.reader.find_tokens_read(first_image)
            maps = relevance_closed_form(layer_pass, spans[self._readout], self._queue)
        for block, relevance_map in zip(self._queue, maps, strict=True):
            self._relevance[block.layer] = relevance_map.cpu()
        self._queue.clear()
