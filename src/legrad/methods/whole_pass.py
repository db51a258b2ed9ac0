"""Passes through the whole model: attention maps of all layers, and gradients of the scores at them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad import relevance
from legrad.core import readout
from legrad.core.attention import Attention, Replacements
from legrad.core.graph import ForwardGraph, forward_with_graph
from legrad.core.truth import (
    ATTENTION_NAMES,
    at_least_float32,
    check_same_output,
    coarsest,
    final_answer,
    native_feature,
)
from legrad.errors import InputError, TruthCheckError, UnsupportedModelError
from legrad.methods.call import MethodInput
from legrad.models.anatomy import ViTAnatomy


def forward(
    call: MethodInput,
    replacements: Replacements | None = None,
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention,
    cut: Callable[[nn.Module], bool] | None = None,
    frozen_norm: bool = False,
    gradients: bool = True,
) -> "Pass":
    """Run the model with its graph; without rules the gradients are the model's own.

    Args:
        call: what is asked.
        replacements, attend, cut: rules for the backward pass, see ``core.graph``.
        frozen_norm: take the length of an embedding for a constant too.
        gradients: False for methods that look at the maps only.

    Raises:
        TruthCheckError: the native read-out of the last block's tokens is not the model's output.
    """
    anatomy = call.anatomy
    graph = forward_with_graph(
        lambda: anatomy.run(call.batch), anatomy.blocks, anatomy.attention, replacements, attend, cut, gradients
    )
    call.output = graph.output.detach()
    native = native_feature(anatomy, anatomy.to_tokens(graph.block_outputs[-1]).detach())
    captured = [attention for layer in [*graph.attentions, graph.attentions_after] for attention in layer]
    precision = coarsest(call.batch.dtype, *(attention.output.dtype for attention in captured))
    check_same_output(native, call.output, "the native read-out of the last block's tokens", precision)
    return Pass(call, graph, frozen_norm, precision)


@dataclass
class Pass:
    """The graph of a forward pass, and gradients of the targets' scores in it.

    Attributes:
        call: what is asked.
        graph: of the pass.
        frozen_norm: the length of an embedding is taken for a constant.
        precision: in which attention computes: under an autocast inside the model less than its weights' type.
    """

    call: MethodInput
    graph: ForwardGraph
    frozen_norm: bool
    precision: torch.dtype

    @property
    def anatomy(self) -> ViTAnatomy:
        """The model's."""
        return self.call.anatomy

    @property
    def last_tokens(self) -> Tensor:
        """What leaves the last block, (batch, tokens, dim)."""
        return self.anatomy.to_tokens(self.graph.block_outputs[-1])

    def gradients(self, target: int, at: Sequence[Tensor]) -> list[Tensor | None]:
        """d score / d each tensor, at least float32; None where the score does not depend on it."""
        output = self.graph.output
        final = at_least_float32(output.detach()).requires_grad_()
        with torch.enable_grad():
            if self.frozen_norm and self.anatomy.readouts["native"].normalize:
                feature = final / final.detach().norm(dim=-1, keepdim=True)
            else:
                feature = final_answer(self.anatomy, final)
            score = self.call.scores[target](feature).sum()
        if not score.requires_grad:
            raise InputError(
                f"target {target}: the callable's result does not depend on the feature (was it detached, or computed "
                "without gradients?)"
            )
        (grad_output,) = torch.autograd.grad(score, final)
        precision = coarsest(output.dtype, self.precision)
        grad_output, scale = readout.scaled_for_half(grad_output, output.dtype, 1, precision)
        gradients = torch.autograd.grad(output, list(at), grad_output, retain_graph=True, allow_unused=True)
        return [None if gradient is None else _unscaled(at_least_float32(gradient), scale) for gradient in gradients]

    def required_gradients(self, target: int, at: Sequence[Tensor]) -> list[Tensor]:
        """``gradients`` of tensors that the score has to depend on.

        Raises:
            TruthCheckError: it does not depend on one of them.
        """
        gradients = []
        for gradient in self.gradients(target, at):
            if gradient is None:
                raise TruthCheckError(
                    f"the score of target {target} does not depend on an attention or on tokens of the anatomy's blocks"
                )
            gradients.append(gradient)
        return gradients

    def attentions(self, layer: int) -> list[Attention]:
        """The explained attentions of a block, checked: one query and one key per token."""
        anatomy = self.anatomy
        block = f"{type(anatomy.blocks[layer]).__name__}"
        if anatomy.keys_to_grid is not None:
            raise UnsupportedModelError(
                f"{block}'s attention is not between all tokens of an image (windows, frames apart, or heads folded "
                "into the batch): only legrad, controls and black-box methods explain such a model"
            )
        fired = self.graph.attentions[layer]
        pooled = anatomy.route == "pooler"
        declared, taps = (1, (0,)) if pooled else (anatomy.attentions, anatomy.explained_attentions)
        if len(fired) != declared:
            raise UnsupportedModelError(
                f"{block} ran {len(fired)} {ATTENTION_NAMES[anatomy.attention]}, expected {declared}: the attention "
                "maps inside its blocks cannot be seen"
            )
        _only_whole_maps(len(taps), declared, block)
        count = anatomy.to_tokens(self.graph.block_outputs[layer]).shape[1]
        for attention in fired:
            _check_shape(attention, len(self.call.batch), (count, count), block)
        return [fired[tap] for tap in taps]

    def pooler(self) -> list[Attention]:
        """The attentions of the attentional pooler behind the blocks."""
        anatomy = self.anatomy
        fired = self.graph.attentions_after
        if len(fired) != anatomy.attentions:
            raise UnsupportedModelError(
                f"the attentional pooler ran {len(fired)} {ATTENTION_NAMES[anatomy.attention]}, expected "
                f"{anatomy.attentions}: "
                "its attention maps cannot be seen"
            )
        _only_whole_maps(len(anatomy.explained_attentions), anatomy.attentions, "the attentional pooler")
        for attention in fired:
            _check_shape(attention, len(self.call.batch), None, "the attentional pooler")
        return [fired[tap] for tap in anatomy.explained_attentions]

    def tokens(self, layer: int, entering: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The tensor of the graph that holds the tokens entering (or leaving) a block, and its layout's reader:
        (batch, tokens, dim)."""
        output = self.graph.block_outputs[layer]
        first, others = (output[0], output[1:]) if isinstance(output, tuple | list) else (output, None)
        to_tokens = self.anatomy.to_tokens
        return (
            self.graph.block_inputs[layer] if entering else first,
            lambda tensor: to_tokens(tensor if others is None else (tensor, *others)),
        )

    def patches(self, count: int) -> slice:
        """Where the patches are among the ``count`` tokens of a block."""
        anatomy = self.anatomy
        pooled = anatomy.route == "pooler"
        start = anatomy.num_prefix_tokens if pooled else anatomy.num_prefix_keys
        stop = start + math.prod(anatomy.grid)
        if anatomy.keys_to_grid is not None or count < stop + (0 if pooled else anatomy.num_suffix_keys):
            raise UnsupportedModelError(
                f"the tokens of {type(anatomy.tower).__name__} do not lie in one grid of {anatomy.grid}: only legrad, "
                "controls and black-box methods explain such a model"
            )
        return slice(start, stop)

    def on_grid(self, tokens: Tensor) -> Tensor:
        """Values of all tokens of a block, (batch, tokens) -> (batch, *grid)."""
        return relevance.on_grid(tokens, self.patches(tokens.shape[1]).start, self.anatomy.grid)

    @cached_property
    def rows(self) -> Tensor:
        """Indices of the last block's tokens that the model's own head reads: the class token, or all patches, ...

        Found by differentiating the head.
        """
        tokens = self.last_tokens.detach()[:1]
        anatomy = self.anatomy.for_images([0])
        return readout.rows_read(lambda leaf: native_feature(anatomy, leaf), at_least_float32(tokens))


def layer_maps(graph: Pass, formula: Callable[[Tensor, Tensor, slice], Tensor], gradients: bool = True) -> Tensor:
    """Methods that look at attention maps and their gradients, layer by layer: (images, targets, layers, *grid).

    Only the query rows that the model's head reads enter: the class token's, or all patches' where the head averages;
    of an attentional pooler query 0, in a single layer.

    Args:
        graph: of a pass with any rules.
        formula: (A, dS/dA, slice of the patches' keys) -> (batch, keys); both (batch, heads, rows, keys).
        gradients: False where the formula looks at A alone (it gets A twice).
    """
    anatomy = graph.anatomy
    pooled = anatomy.route == "pooler"
    attentions = [graph.pooler()] if pooled else [graph.attentions(layer) for layer in graph.call.layers]
    rows: Tensor | slice = slice(0, 1) if pooled else graph.rows
    patches = patches_of(anatomy)
    flat = [attention for layer in attentions for attention in layer]
    maps_read = [attention.probabilities()[:, :, rows] for attention in flat]
    results = []
    for target in range(len(graph.call.scores) if gradients else 1):
        output_grads = graph.required_gradients(target, [attention.output for attention in flat]) if gradients else []
        maps = []
        for index, attention in enumerate(flat):
            sensitivity = attention.sensitivity(output_grads[index], rows) if gradients else maps_read[index]
            keys = formula(maps_read[index], sensitivity, patches)
            maps.append(
                anatomy.on_grid(
                    keys, anatomy.explained_attentions[index % len(anatomy.explained_attentions)], len(graph.call.batch)
                )
            )
        taps = torch.stack(maps, 1).unflatten(1, (len(attentions), -1))
        results.append(taps.mean(2))
    if not gradients:
        results *= len(graph.call.scores)
    return torch.stack(results, 1)


def patches_of(anatomy: ViTAnatomy) -> slice:
    """Where the patches are among the keys of the explained attention."""
    return slice(anatomy.num_prefix_keys, anatomy.num_prefix_keys + math.prod(anatomy.grid))


def _unscaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """Gradient (batch, ...) divided by the (batch, 1) factors that it was scaled by."""
    return gradient / scale.reshape(-1, *[1] * (gradient.ndim - 1)).to(gradient)


def _only_whole_maps(taps: int, attentions: int, where: str) -> None:
    if taps != attentions:
        raise UnsupportedModelError(
            f"{where} runs {attentions} attentions that do not make one map (differential attention, layers of a "
            "pooler): use legrad, a control or a black-box method"
        )


def _check_shape(attention: Attention, batch: int, size: tuple[int, int] | None, where: str) -> None:
    keys = attention.output.shape[-1] if attention.key is None else attention.key.shape[-2]
    shape = (attention.output.shape[-2], keys)
    if len(attention.output) != batch or (size is not None and shape != size):
        raise UnsupportedModelError(
            f"{where} has attention maps of {shape[0]} x {shape[1]} for {len(attention.output)} rows, expected "
            f"{'one' if size is None else f'{size[0]} x {size[1]}'} for each of {batch} images"
        )
