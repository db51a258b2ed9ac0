"""Which blocks' tails have a closed form: found out once, and checked against autograd."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from legrad.core import closed_form, hooks
from legrad.core.attention import AttentionCall, ModuleCall
from legrad.core.closed_form import (
    _FUNCTIONS,
    PostAttention,
    activation_product,
    all_ran,
    block_structure,
    split_hidden,
)
from legrad.core.readout import TokenSpan
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy

# of the largest value; two correct ways of computing the same differ by less
_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Shortcuts:
    """What was found out about a model at the first use of an input shape, see ``planning``.

    Attributes:
        tails: layer -> its tail in closed form; other layers go through autograd.
        readings: name of a read-out -> the tokens that it reads, filled in when it is first asked for.
    """

    tails: dict[int, PostAttention] = field(default_factory=dict)
    readings: dict[str, TokenSpan] = field(default_factory=dict)


class Planner:
    """Watches the truth check's instrumented forward and collects the tails that can be computed in closed form.

    Args:
        anatomy: for the input's size.
    """

    def __init__(self, anatomy: ViTAnatomy) -> None:
        self._anatomy = anatomy
        self.shortcuts = Shortcuts()

    def visit(self, layer: int, tokens: Tensor, calls: list[AttentionCall]) -> None:
        """Look at one block of one picture, with its graph and all its modules watched."""
        tail = confirmed_tail(self._anatomy, layer, tokens, calls)
        if tail is not None:
            self.shortcuts.tails[layer] = tail


def confirmed_tail(anatomy: ViTAnatomy, layer: int, tokens: Tensor, calls: list[AttentionCall]) -> PostAttention | None:
    """The block's tail, if there is a closed form that gives what autograd gives."""
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
    if call.output.ndim != 4 or (call.output.shape[0], call.output.shape[2]) != tokens.shape[:2]:
        return None
    with torch.no_grad():
        tail = recognise(block, call, tokens)
    if tail is None:
        return None
    plain, folded = _agreeing(tail, block, tokens, call)
    return replace(tail, foldable=folded) if plain else None


def _agreeing(tail: PostAttention, block: torch.nn.Module, tokens: Tensor, call: AttentionCall) -> tuple[bool, bool]:
    """Do the plain and the folded closed form equal autograd, for arbitrary gradients at all tokens and at one?

    The shares of the MLP and of the sum in front of it are compared apart as well: a tiny LayerScale would hide one.
    """
    count = tokens.shape[1]
    agreeing = [True, True]
    try:
        norm, fc2 = (block.get_submodule(name) for name in (tail.norm, tail.fc2))
        before = next(one.input for one in call.behind if one.module is norm)
        after = next(one.output for one in call.behind if one.module is fc2)
        g, alone = _wave(tokens, slice(0, count)), slice(count // 2, count // 2 + 1)
        nothing = torch.zeros_like(g)
        checks = (
            (tokens, g, slice(0, count), None),
            (before, g, slice(0, count), (g, nothing)),
            (after, g, slice(0, count), (nothing, g)),
            (tokens, _wave(tokens, alone), alone, None),
        )
        for at, above, rows, share in checks:
            (expected,) = torch.autograd.grad(at, call.output, above, retain_graph=True)
            for form in (0, 1):
                with torch.no_grad():
                    found = torch.zeros_like(expected)
                    found[:, :, rows] = _closed(tail, block, call, above, rows, share, folded=bool(form))
                    # a comparison with NaN is False, and NaN must not pass
                    near = (found - expected).abs().max() <= _LIMITS[tokens.dtype] * expected.abs().max()
                    agreeing[form] &= bool(near)
    except (RuntimeError, TruthCheckError):  # shapes that do not fit, in-place changes: not the common block after all
        return False, False
    return agreeing[0], agreeing[1]


def _wave(tokens: Tensor, rows: slice) -> Tensor:
    """An arbitrary gradient at some of the tokens."""
    wave = torch.linspace(0, 1, tokens.numel(), device=tokens.device).mul_(1e4).sin_().reshape(tokens.shape)
    g = torch.zeros_like(tokens)
    g[:, rows] = wave[:, rows].to(g)
    return g.detach()


def _closed(
    tail: PostAttention,
    block: torch.nn.Module,
    call: AttentionCall,
    g: Tensor,
    rows: slice,
    share: tuple[Tensor, Tensor] | None,
    folded: bool,
) -> Tensor:
    """The closed form at some rows, (batch, heads, rows, head_dim); of a share if one is given."""
    entered, *hidden = (one.detach()[:, rows] for one in closed_form.activations(tail, block, call))
    parts = closed_form.weights(tail, block, call)
    merged = closed_form.fold(parts, multiplied=False) if folded else None
    state = closed_form.State(parts, merged, entered, hidden, closed_form.Scratch())
    if share is None:
        found = state.head_gradient(g[:, None, rows])
    else:
        found = state.combined(*(one[:, None, rows] for one in share))
    return found[:, 0].unflatten(-1, (call.output.shape[1], -1)).transpose(1, 2)


_PASSING = (nn.Identity, nn.Dropout)


def recognise(block: nn.Module, call: AttentionCall, tokens: Tensor) -> PostAttention | None:
    """The tail out of the childless modules that ran behind the attention; None if they are not the common ones.

    Args:
        block: the block that ran.
        call: its only attention, with all childless modules watched.
        tokens: the block's result, (batch, tokens, dim).
    """
    if not all_ran(block, call):
        return None
    names = {id(module): name for name, module in block.named_modules()}
    rest = [p for p in call.behind if not isinstance(p.module, _PASSING) and type(p.module).__name__ != "DropPath"]
    if any(not isinstance(p.input, Tensor) or not isinstance(p.output, Tensor) for p in rest):
        return None

    def take(fits: Callable[[nn.Module], bool]) -> ModuleCall | None:
        return rest.pop(0) if rest and fits(rest[0].module) else None

    def name(passage: ModuleCall | None) -> str | None:
        return None if passage is None else names[id(passage.module)]

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
    linears = [p for p in rest if _is_linear(p.module)]
    acts = [p for p in rest if not _is_linear(p.module)]
    if not 1 <= len(linears) <= 2 or len(acts) > 1 or any(p.input.shape != tokens.shape for p in linears):
        return None
    hidden = split_hidden([p.output for p in linears], fc2.input.shape[-1])
    functions = {names[id(p.module)]: p.module for p in acts} or _FUNCTIONS
    gates: tuple[Literal[0, 1] | None, ...] = (None,) if len(hidden) == 1 else (0, 1)
    for act, gate in itertools.product(functions, gates):
        if _close(activation_product(functions[act], gate, hidden), fc2.input):
            return PostAttention(
                name(out),
                name(scale1),
                names[id(norm.module)],
                tuple(names[id(p.module)] for p in linears),
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
