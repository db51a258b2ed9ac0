"""Which tails have a closed form, and what the read-outs read: found out once, and checked against autograd."""

from dataclasses import replace

import torch
from torch import Tensor

from legrad import capture, tails
from legrad.anatomy import ViTAnatomy
from legrad.reading import Reader, Reading
from legrad.streaming import Plan
from legrad.tails import Tail
from legrad.truth import as_float

# of the largest value; two correct ways of computing the same differ by less
_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 5e-2}


class Planner:
    """Watches the truth check's instrumented forward and collects what can be computed in closed form.

    Args:
        anatomy: for the input's size.
    """

    def __init__(self, anatomy: ViTAnatomy) -> None:
        self._anatomy = anatomy
        self._tails: dict[int, Tail] = {}
        self._readings: dict[str, Reading] = {}

    def visit(self, layer: int, tokens: Tensor, calls: list[capture.AttentionCall]) -> None:
        """Look at one block of one picture, with its graph and all its modules watched."""
        anatomy = self._anatomy
        tail = confirmed_tail(anatomy, layer, tokens, calls)
        if tail is None:
            return
        self._tails[layer] = tail
        if not self._readings:
            self._readings = {
                name: Reader(anatomy, readout).detect(as_float(tokens)) for name, readout in anatomy.readouts.items()
            }

    def plan(self) -> Plan:
        """What was found."""
        return Plan(self._tails, self._readings)


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
    if tail is None or not _agrees(tail, block, tokens, call, folded=False):
        return None
    return replace(tail, foldable=_agrees(tail, block, tokens, call, folded=True))


def _agrees(tail: Tail, block: torch.nn.Module, tokens: Tensor, call: capture.AttentionCall, folded: bool) -> bool:
    """Does the closed form equal autograd for an arbitrary gradient at the tokens?"""
    g = torch.linspace(0, 1, tokens.numel(), device=tokens.device).mul_(1e4).sin_().reshape(tokens.shape)
    g = g.to(tokens.dtype)
    (expected,) = torch.autograd.grad(tokens, call.output, g, retain_graph=True)
    with torch.no_grad():
        entered, *hidden = tails.activations(tail, block, call)
        parts = tails.weights(tail, block, call)
        try:
            state = tails.State(parts, tails.fold(parts) if folded else None, entered, hidden)
            found = state.head_gradient(g[:, None])[:, 0].unflatten(-1, (expected.shape[1], -1)).transpose(1, 2)
        except RuntimeError:  # shapes that do not fit: not the common block after all
            return False
        return found.shape == expected.shape and bool(
            (found - expected).abs().max() <= _LIMITS[tokens.dtype] * expected.abs().max()
        )
