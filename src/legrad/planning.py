"""Which blocks' tails have a closed form: found out once, and checked against autograd."""

from dataclasses import replace

import torch
from torch import Tensor

from legrad import capture, tails
from legrad.anatomy import ViTAnatomy
from legrad.errors import TruthCheckError
from legrad.streaming import Plan
from legrad.tails import Tail

# of the largest value; two correct ways of computing the same differ by less
_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 5e-2}


class Planner:
    """Watches the truth check's instrumented forward and collects the tails that can be computed in closed form.

    Args:
        anatomy: for the input's size.
    """

    def __init__(self, anatomy: ViTAnatomy) -> None:
        self._anatomy = anatomy
        self.plan = Plan()

    def visit(self, layer: int, tokens: Tensor, calls: list[capture.AttentionCall]) -> None:
        """Look at one block of one picture, with its graph and all its modules watched."""
        tail = confirmed_tail(self._anatomy, layer, tokens, calls)
        if tail is not None:
            self.plan.tails[layer] = tail


def confirmed_tail(anatomy: ViTAnatomy, layer: int, tokens: Tensor, calls: list[capture.AttentionCall]) -> Tail | None:
    """The block's tail, if there is a closed form that gives what autograd gives."""
    block = anatomy.blocks[layer]
    if anatomy.attention != "fused" or anatomy.lay is not None or len(calls) != 1 or not capture.undisturbed(block):
        return None
    call = calls[0]
    # one row of the head outputs per token
    if call.output.ndim != 4 or (call.output.shape[0], call.output.shape[2]) != tokens.shape[:2]:
        return None
    with torch.no_grad():
        tail = tails.recognise(block, call, tokens)
    if tail is None:
        return None
    plain, folded = _agreeing(tail, block, tokens, call)
    return replace(tail, foldable=folded) if plain else None


def _agreeing(tail: Tail, block: torch.nn.Module, tokens: Tensor, call: capture.AttentionCall) -> tuple[bool, bool]:
    """Do the plain and the folded closed form equal autograd, for arbitrary gradients at all tokens and at one?

    The shares of the MLP and of the sum in front of it are compared apart as well: a tiny LayerScale would hide one.
    """
    count = tokens.shape[1]
    agreeing = [True, True]
    try:
        norm, fc2 = (block.get_submodule(name) for name in (tail.norm, tail.fc2))
        before = next(one.entered for one in call.behind if one.module is norm)
        after = next(one.left for one in call.behind if one.module is fc2)
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
    tail: Tail,
    block: torch.nn.Module,
    call: capture.AttentionCall,
    g: Tensor,
    rows: slice,
    share: tuple[Tensor, Tensor] | None,
    folded: bool,
) -> Tensor:
    """The closed form at some rows, (batch, heads, rows, head_dim); of a share if one is given."""
    entered, *hidden = (one.detach()[:, rows] for one in tails.activations(tail, block, call))
    parts = tails.weights(tail, block, call)
    merged = tails.fold(parts, multiplied=False) if folded else None
    state = tails.State(parts, merged, entered, hidden, tails.Scratch())
    if share is None:
        found = state.head_gradient(g[:, None, rows])
    else:
        found = state.combined(*(one[:, None, rows] for one in share))
    return found[:, 0].unflatten(-1, (call.output.shape[1], -1)).transpose(1, 2)
