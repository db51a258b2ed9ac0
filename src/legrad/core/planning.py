"""Which blocks' tails have a closed form: recognised at the first use of an input shape, and compared with autograd."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legrad.core import block_values, closed_form, hooks
from legrad.core.attention import AttentionCall, ModuleCall
from legrad.core.closed_form import (
    ACTIVATION_FUNCTIONS,
    LIMITS,
    PostAttention,
    activation_product,
    all_ran,
    block_structure,
    split_hidden,
)
from legrad.core.confirm import Confirmation
from legrad.core.memory import ran_out
from legrad.core.readout import TokenSpan
from legrad.core.truth import truth_check
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy


@dataclass
class Shortcuts:
    """What may be computed in closed form for one input shape of a model.

    Attributes:
        tails: layer -> its tail in closed form; other layers go through autograd.
        token_spans: name of a read-out -> the tokens that it reads, filled in at its first use.
        folds: layer -> whether its folded form holds, filled in when it is first wanted.
        first_look: (pass) -> its result, or None if it has to be run again; set until the shape was checked, which
            happens inside the first pass, see ``first_look``.
    """

    tails: dict[int, PostAttention] = field(default_factory=dict)
    token_spans: dict[str, TokenSpan] = field(default_factory=dict)
    folds: dict[int, bool] = field(default_factory=dict)
    first_look: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def replace_by(self, others: "Shortcuts") -> None:
        """Forget these and take others."""
        for mapping in (self.tails, self.token_spans, self.folds):
            mapping.clear()
        self.tails.update(others.tails)
        self.token_spans.update(others.token_spans)


class Planner:
    """Watches blocks as they run and collects the tails that can be computed in closed form.

    Args:
        anatomy: for the input's size.
    """

    def __init__(self, anatomy: ViTAnatomy) -> None:
        self._anatomy = anatomy
        self.shortcuts = Shortcuts()

    def visit(self, layer: int, tokens: Tensor, calls: list[AttentionCall]) -> None:
        """Look at one block, with its graph and all its modules watched."""
        tail = _candidate(self._anatomy, layer, tokens, calls)
        if tail is None:
            return
        block, call = self._anatomy.blocks[layer], calls[0]
        if _closed_form_holds(tail, block, tokens, call):
            foldable, confirmed = (
                _can_be_folded(tail, block, call),
                _confirmed(self._anatomy, tail, block, tokens, call),
            )
            self.shortcuts.tails[layer] = replace(tail, foldable=foldable, confirmed=confirmed)


def _candidate(anatomy: ViTAnatomy, layer: int, tokens: Tensor, calls: list[AttentionCall]) -> PostAttention | None:
    """The block's tail by its looks."""
    block = anatomy.blocks[layer]
    if (
        anatomy.attention != "fused"
        or anatomy.keys_to_grid is not None
        or len(calls) != 1
        or hooks.has_foreign_hooks(block)
    ):
        return None
    call = calls[0]
    # one row of the head outputs per token
    if call.output.dtype != tokens.dtype:  # an autocast inside the model
        return None
    if call.output.ndim != 4 or (call.output.shape[0], call.output.shape[2]) != tokens.shape[:2]:
        return None
    with torch.no_grad():
        return recognise(block, call, tokens)


def _confirmed(
    anatomy: ViTAnatomy, tail: PostAttention, block: nn.Module, tokens: Tensor, call: AttentionCall
) -> tuple[bool, bool, bool]:
    confirmation = Confirmation(anatomy)
    (args, kwargs) = call.arguments
    entered = confirmation.entering(block_values.first_argument(args, kwargs))
    try:
        return confirmation.what_holds(tail, block, replace(call, arguments=entered), tokens)
    except (RuntimeError, TypeError, AttributeError) as error:  # a norm that takes no single row, ...
        if ran_out(error):
            raise
        return False, False, False


def find_shortcuts(anatomy: ViTAnatomy, image: Tensor) -> Shortcuts:
    """Which closed forms hold for inputs like this one, by a truth check of its own.

    Raises:
        TruthCheckError: the model is not what its anatomy says.
    """
    planner = Planner(anatomy)
    truth_check(anatomy, image, planner.visit)
    return planner.shortcuts


def _closed_form_holds(tail: PostAttention, block: torch.nn.Module, tokens: Tensor, call: AttentionCall) -> bool:
    """Does the closed form equal autograd, for an arbitrary gradient at one token, of which nothing arrives elsewhere,
    and at all of them for the shares of the residual and of the MLP apart? A tiny LayerScale would hide one of them.
    """
    count = tokens.shape[1]
    try:
        norm, fc2 = (block.get_submodule(name) for name in (tail.norm, tail.fc2))
        norm_input = next(item.input for item in call.after if item.module is norm)
        mlp_output = next(item.output for item in call.after if item.module is fc2)
        every_row, middle_row = slice(0, count), slice(count // 2, count // 2 + 1)
        gradient = _wave(tokens, every_row)
        zeros = torch.zeros_like(gradient)
        checks = (
            (norm_input, gradient, every_row, (gradient, zeros)),
            (mlp_output, gradient, every_row, (zeros, gradient)),
            (tokens, _wave(tokens, middle_row), middle_row, None),
        )
        for tensor, grad_tensor, rows, shares in checks:
            (expected,) = torch.autograd.grad(tensor, call.output, grad_tensor, retain_graph=True)
            with torch.no_grad():
                head_grad = torch.zeros_like(expected)
                head_grad[:, :, rows] = _closed(tail, block, call, grad_tensor, rows, shares)
                # a comparison with NaN is False, and NaN must not pass
                if not bool((head_grad - expected).abs().max() <= LIMITS[tokens.dtype] * expected.abs().max()):
                    return False
    except (RuntimeError, TruthCheckError, StopIteration) as error:
        if ran_out(error):
            raise
        # shapes that do not fit, in-place changes: not the common block after all
        return False
    return True


def _can_be_folded(tail: PostAttention, block: torch.nn.Module, call: AttentionCall) -> bool:
    """Does the folded form give what the plain one gives, on two rows?"""
    with torch.no_grad():
        try:
            weights = closed_form.tail_weights(tail, block, call)
            folded = closed_form.fold(weights, multiplied=False)
            norm_input, *hidden = (tensor.detach()[:1, :2] for tensor in closed_form.activations(tail, block, call))
            return closed_form.fold_holds(weights, folded, norm_input, hidden)
        except (RuntimeError, TruthCheckError) as error:
            if ran_out(error):
                raise
            return False


def _wave(tokens: Tensor, rows: slice) -> Tensor:
    """An arbitrary gradient at some of the tokens."""
    wave = (
        torch.linspace(0, 1, tokens.numel(), device=tokens.device, dtype=torch.float32)
        .mul_(1e4)
        .sin_()
        .reshape(tokens.shape)
    )
    gradient = torch.zeros_like(tokens)
    gradient[:, rows] = wave[:, rows].to(gradient)
    return gradient.detach()


def _closed(
    tail: PostAttention,
    block: torch.nn.Module,
    call: AttentionCall,
    grad_tokens: Tensor,
    rows: slice,
    shares: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The closed form at some rows, (batch, heads, rows, head_dim).

    ``shares`` stand in for ``grad_tokens``: the gradients at the norm's input and at the MLP's output.
    """
    norm_input, *hidden = (tensor.detach()[:, rows] for tensor in closed_form.activations(tail, block, call))
    weights = closed_form.tail_weights(tail, block, call)
    derivative = closed_form.TailDerivative(weights, None, norm_input, hidden, closed_form.Scratch())
    if shares is None:
        head_grad = derivative.head_gradient(grad_tokens[:, None, rows])
    else:
        head_grad = derivative.combined(*(share[:, None, rows] for share in shares))
    return head_grad[:, 0].unflatten(-1, (call.output.shape[1], -1)).transpose(1, 2)


# what hands on its input in evaluation mode
_IDENTITIES = (nn.Identity, nn.Dropout)


def recognise(block: nn.Module, call: AttentionCall, tokens: Tensor) -> PostAttention | None:
    """The tail, from the childless modules that ran after the attention; None if they are not the common ones.

    Args:
        block: the block that ran.
        call: its only attention, with all childless modules watched.
        tokens: the block's output, (batch, tokens, dim).
    """
    if not all_ran(block, call):
        return None
    names = {id(module): name for name, module in block.named_modules()}
    rest = [
        item
        for item in call.after
        if not isinstance(item.module, _IDENTITIES) and type(item.module).__name__ != "DropPath"
    ]
    if any(not isinstance(item.input, Tensor) or not isinstance(item.output, Tensor) for item in rest):
        return None

    def take(fits: Callable[[nn.Module], bool]) -> ModuleCall | None:
        return rest.pop(0) if rest and fits(rest[0].module) else None

    def name(item: ModuleCall | None) -> str | None:
        return None if item is None else names[id(item.module)]

    out = None if call.projection is not None else take(_is_linear)
    if out is None and call.projection is None:
        return None
    scale1 = take(_is_scale)
    norm = take(lambda module: not _is_linear(module))
    if norm is None or norm.input.shape != tokens.shape:
        return None
    scale2 = rest.pop() if rest and _is_scale(rest[-1].module) else None
    if not rest or not _is_linear(rest[-1].module):
        return None
    fc2 = rest.pop()
    linears = [item for item in rest if _is_linear(item.module)]
    acts = [item for item in rest if not _is_linear(item.module)]
    if not 1 <= len(linears) <= 2 or len(acts) > 1 or any(item.input.shape != tokens.shape for item in linears):
        return None
    hidden = split_hidden([item.output for item in linears], fc2.input.shape[-1])
    functions = {names[id(item.module)]: item.module for item in acts} or ACTIVATION_FUNCTIONS
    gates: tuple[Literal[0, 1] | None, ...] = (None,) if len(hidden) == 1 else (0, 1)
    for act, gate in itertools.product(functions, gates):
        if _close(activation_product(functions[act], gate, hidden), fc2.input):
            return PostAttention(
                name(out),
                name(scale1),
                names[id(norm.module)],
                tuple(names[id(item.module)] for item in linears),
                act,
                gate,
                names[id(fc2.module)],
                name(scale2),
                block_structure(block),
            )
    return None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _is_scale(module: nn.Module) -> bool:
    """A LayerScale, by whatever name: a single vector as parameter."""
    vectors = list(module.parameters())
    return len(vectors) == 1 and vectors[0].ndim == 1 and not type(module).__name__.endswith("Norm")


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    limit = 1e-2 if a.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return bool((a - b).abs().max() <= limit * b.abs().max())
