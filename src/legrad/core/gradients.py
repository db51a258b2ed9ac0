"""The gradient check: does autograd follow what the model computes?

A quantised layer, ``detach``, ``no_grad`` or a backward pass of a module's own leave every number of the forward pass
right and the gradients wrong. So at the first use the gradients that a map is made of are compared with finite
differences: a part of the model is run again with its input a little changed.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from legrad.core import block_values, hooks
from legrad.core.attention import AttentionCall, ModuleCall, ShiftTap
from legrad.core.graph import forward_with_graph
from legrad.core.memory import ran_out
from legrad.core.readout import Reader, is_without_derivative, lacks_derivative
from legrad.core.truth import at_least_float32, coarsest, truth_check
from legrad.core.undo import Hooks
from legrad.errors import TruthCheckError
from legrad.models.anatomy import ViTAnatomy

# of the root mean square of what is changed; the first one at which rounding and curvature do not matter is taken
_STEPS = (1e-3, 1e-2, 1e-1, 1.0)
_LITTLE_DOUBT, _TOO_MUCH_DOUBT = 0.02, 0.5
_LIMIT = {False: 0.02, True: 0.1}  # of the finite difference's length; True: in half precision
_UNNOTICEABLE = 1e-3  # a module without a gradient that matters less than that is let be
_PROJECTIONS = 2
_NOISE, _CHANGED_SHARE = 0.1, 0.1

_NO_GRADIENT = "hands on no gradient"
_WAY_OUT = (
    "explain the float model, or use a method that needs no gradient: raw-attention, rollout, maskclip, rise, occlusion"
)


class _Error(NamedTuple):
    """How far a gradient is from a finite difference.

    Attributes:
        size: as a share of the difference's length.
        doubt: share of rounding, curvature and kinks in the difference; as much error, and some more, they may explain.
    """

    size: float
    doubt: float

    @property
    def certain(self) -> float:
        """The share that nothing but a wrong gradient explains."""
        return max(0.0, self.size - 2 * self.doubt)

    def or_worse(self, other: "_Error") -> "_Error":
        """Whichever is more certain."""
        return max(self, other, key=lambda error: (error.certain, error.size))


_NOTHING_WRONG, _ALL_WRONG = _Error(0.0, 0.0), _Error(math.inf, 0.0)


@dataclass
class GradientCheck:
    """Collects what is wrong with the gradients of a model's parts, block by block.

    Attributes:
        anatomy: for the input's size.
        modules: names of modules that hand on no gradient, or a wrong one, with what is wrong.
        parts: what else is wrong, in words.
    """

    anatomy: ViTAnatomy
    modules: list[tuple[str, str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def block(self, layer: int, tokens: Tensor, calls: list[AttentionCall]) -> None:
        """Check one block of the self-attention route: from its head outputs to its tokens.

        Args:
            layer: its index.
            tokens: its output, with its graph.
            calls: its attentions, from a pass that verifies.
        """
        anatomy, block = self.anatomy, self.anatomy.blocks[layer]
        where = f"block {layer}"
        names = {id(module): f"{where}'s {name}" for name, module in block.named_modules()}
        faults = _faults(calls[0].modules)
        worst = _ALL_WRONG if lacks_derivative(tokens) else _NOTHING_WRONG
        if worst is _ALL_WRONG:
            faults = faults or [(block, _NO_GRADIENT)]
        for tap in anatomy.explained_attentions:
            call = calls[tap]

            def shifted(shift: Tensor, tap: int = tap) -> Tensor:
                args, kwargs = block_values.copied(calls[0].arguments)
                with ShiftTap(anatomy.attention, tap, shift):
                    return anatomy.to_tokens(block(*args, **kwargs))

            error = None if worst is _ALL_WRONG else _error(tokens, call.output, shifted)
            # unknown: then its modules decide
            worst = worst.or_worse((_ALL_WRONG if faults else _NOTHING_WRONG) if error is None else error)
        self._note(faults, worst.size, names)
        if not faults and worst.certain > _limit(tokens, calls[0].output):
            self.parts.append(
                f"{where} ({type(block).__name__}): the gradient at its attention differs from finite differences by "
                f"{worst.size:.0%}: something in it hands on no gradient, or a wrong one (detach, no_grad, rounding, a "
                "backward pass of its own)"
            )

    def readouts(self, tokens: Tensor) -> None:
        """Check the read-outs, and the attentional pooler where there is one.

        Args:
            tokens: of the last block, (1, tokens, dim).
        """
        anatomy = self.anatomy
        leaf = at_least_float32(tokens.detach()).requires_grad_()
        inside = {id(module) for block in anatomy.blocks for module in block.modules()}
        outside = [module for module in anatomy.tower.modules() if id(module) not in inside]
        names = {id(module): f"the head's {name or 'module'}" for name, module in anatomy.tower.named_modules()}
        for name, readout in anatomy.readouts.items():
            if anatomy.is_made(name):  # of the native one, which may not take a mean token
                continue
            reader = Reader(anatomy, readout)
            with Watched(outside[1:]) as watched, torch.enable_grad():
                if anatomy.route == "pooler":
                    feature, calls = hooks.tapped(partial(reader, leaf.detach()), anatomy.attention)
                    at = [(tap, calls[tap].output) for tap in anatomy.explained_attentions]
                else:
                    feature, at = reader(leaf), [(-1, leaf)]
            worst = _ALL_WRONG if lacks_derivative(feature) else _NOTHING_WRONG
            for tap, tensor in at if worst is _NOTHING_WRONG else []:

                def shifted(shift: Tensor, tap: int = tap, reader: Reader = reader) -> Tensor:
                    if tap < 0:
                        return reader(leaf.detach() + shift)
                    with ShiftTap(anatomy.attention, tap, shift):
                        return reader(leaf.detach())

                worst = worst.or_worse(_error(feature, tensor, shifted) or _NOTHING_WRONG)
            faults = _faults(watched.calls)
            self._note(faults, worst.size, names)
            if not faults and worst.certain > _limit(feature):
                self.parts.append(
                    f"the {name} read-out's gradient differs from finite differences by {worst.size:.0%}: something in "
                    "it hands on no gradient, or a wrong one"
                )

    def whole_model(self, image: Tensor) -> None:
        """Check the graph from the first block to the output, for methods that need gradients through all of it.

        Args:
            image: (1, *anatomy.shape).
        """
        anatomy = self.anatomy
        names = {id(module): name for name, module in anatomy.tower.named_modules()}
        with Watched(list(anatomy.tower.modules())[1:]) as watched:
            graph = forward_with_graph(lambda: anatomy.run(image), anatomy.blocks, anatomy.attention)
        leaf = graph.block_inputs[0]

        def shifted(shift: Tensor) -> Tensor:
            return hooks.run_shifted(lambda: anatomy.run(image), anatomy.blocks[0], shift)

        faults = _faults(watched.calls)
        missing = lacks_derivative(graph.output)
        error = _ALL_WRONG if missing else _error(graph.output, leaf, shifted, _LITTLE_DOUBT)
        self._note(faults, math.inf if error is None else error.size, names)
        if not faults and error is not None and error.certain > _LIMIT[True]:
            self.parts.append(
                f"the gradient from the first block to the output differs from finite differences by {error.size:.0%}: "
                "something between hands on no gradient, or a wrong one"
            )

    def require_right(self) -> None:
        """Raise ``TruthCheckError`` if something was found, in one line that names it."""
        if self.modules:
            (name, what), *others = self.modules
            more = f" (and {len(others)} more, up to {others[-1][0]})" if others else ""
            raise TruthCheckError(f"{name} {what}{more}: a map would miss what goes through it; {_WAY_OUT}")
        if self.parts:
            raise TruthCheckError(f"{self.parts[0]}; {_WAY_OUT}")

    def _note(self, faults: Sequence[tuple[nn.Module, str]], error: float, names: dict[int, str]) -> None:
        if error > _UNNOTICEABLE:
            noted_names = {name for name, _ in self.modules}
            titles = [(_title(names, module), what) for module, what in faults]
            self.modules += [title for title in titles if title[0] not in noted_names]


def gradient_check(anatomy: ViTAnatomy, batch: Tensor) -> None:
    """Check the gradients that a map is made of, see ``GradientCheck``.

    Call it inside ``state.evaluation_mode``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (1, *anatomy.shape) in the model's dtype.

    Raises:
        TruthCheckError: names what hands on no gradient, or a wrong one.
    """
    check = GradientCheck(anatomy)
    check.readouts(truth_check(anatomy, batch, check.block))
    check.require_right()


class Watched(Hooks):
    """A with-block inside which the calls of some modules are noted, those with a graph.

    Attributes:
        calls: in the order in which they ended.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._watched = modules
        self.calls: list[ModuleCall] = []

    def take(self) -> None:
        """Register the hooks."""
        for module in self._watched:
            self.after(module, self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        if args and torch.is_grad_enabled():
            self.calls.append(ModuleCall(module, args[0], output))


def _title(names: dict[int, str], module: nn.Module) -> str:
    return f"{names.get(id(module), 'a module')} ({module._get_name()})"


def _limit(*tensors: Tensor) -> float:
    return _LIMIT[torch.finfo(coarsest(*(tensor.dtype for tensor in tensors))).eps > 1e-4]


def _tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def _faults(calls: Sequence[ModuleCall]) -> list[tuple[nn.Module, str]]:
    """The modules whose input has a gradient and whose output has none, or a wrong one, with what is wrong.

    A module is judged by the modules that it called, if any.
    """
    called = {id(item.module) for item in calls}
    culprits = []
    for item in calls:
        module, source, output = item.module, _tensor(item.input), _tensor(item.output)
        if source is None or output is None or not source.requires_grad or output is source:
            continue
        if any(id(inner) in called for inner in itertools.islice(module.modules(), 1, None)):
            continue
        if is_without_derivative(output.grad_fn):
            culprits.append((module, _NO_GRADIENT))
        elif not output.requires_grad:
            if _depends(module, source.detach()):
                culprits.append((module, _NO_GRADIENT))
        elif not type(module).__module__.startswith("torch.nn.modules."):
            culprits += [(module, what) for what in _wrong_gradient(module, source, output)]
    return culprits


def _depends(module: nn.Module, source: Tensor) -> bool:
    """Whether most of a module's output changes with its input; not that of a gate, which is flat almost everywhere."""
    try:
        with torch.no_grad():
            output = _tensor(module(source))
            shifted = _tensor(module(source + _NOISE * _noise(source, 0)))
    except (RuntimeError, TypeError, ValueError) as error:
        if ran_out(error):
            raise
        return True  # it wants more than its input: take it for an ordinary one
    if output is None or shifted is None:
        return False
    return float((output != shifted).float().mean()) > _CHANGED_SHARE


def _wrong_gradient(module: nn.Module, source: Tensor, output: Tensor) -> list[str]:
    """What is wrong with the gradient of a module's output at its input, if anything."""
    start = source.detach().clone()

    def shifted(shift: Tensor) -> Tensor:
        result = _tensor(module(start + shift))
        assert result is not None
        return result

    error = _error(output, source, shifted)
    if error is None or error.certain <= _limit(output, source):
        return []
    gradient = _gradient(output, source, torch.ones_like(output))
    return [_NO_GRADIENT if gradient is None else "hands on a wrong gradient"]


def _gradient(output: Tensor, at: Tensor, grad_output: Tensor) -> Tensor | None:
    """None if there is none, or only zeros."""
    if not output.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(output, at, grad_output, retain_graph=True, allow_unused=True)
    return gradient if gradient is not None and bool(gradient.any()) else None


def _noise(like: Tensor, seed: int) -> Tensor:
    """Normal numbers with the root mean square of a tensor."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    numbers = torch.randn(like.shape, generator=generator, device="cpu", dtype=torch.float32).to(like)
    return numbers * at_least_float32(like.detach()).square().mean().sqrt().to(like)


def _error(
    output: Tensor, at: Tensor, shifted: Callable[[Tensor], Tensor], too_much_doubt: float = _TOO_MUCH_DOUBT
) -> _Error | None:
    """How far the gradient of an output is from a finite difference; None if unknown.

    Args:
        output: with its graph.
        at: a tensor of the graph.
        shifted: (like ``at``) -> the output with that added to ``at``.
        too_much_doubt: share of rounding and curvature in the difference from which on it says nothing.
    """
    try:
        with torch.no_grad():
            difference = _finite_difference(at.detach(), shifted, output.detach())
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError) as error:
        if ran_out(error):
            raise
        return None  # a part that does not run alone
    if difference is None or difference[3] > too_much_doubt:
        return None
    change, step, length, doubt = difference
    squares = []
    for seed in range(1, _PROJECTIONS + 1):
        generator = torch.Generator(device="cpu").manual_seed(seed)
        weights = torch.randn(output.shape, generator=generator, device="cpu", dtype=torch.float32).to(change)
        gradient = _gradient(output, at, weights.to(output))
        predicted = 0.0 if gradient is None else float((at_least_float32(gradient) * step).sum())
        squares.append((predicted - float((change * weights).sum())) ** 2)
    return _Error(math.sqrt(sum(squares) / len(squares)) / length, doubt)


def _finite_difference(
    at: Tensor, shifted: Callable[[Tensor], Tensor], output: Tensor
) -> tuple[Tensor, Tensor, float, float] | None:
    """The change of an output with a step at a tensor, the step, the change's length, and the share of it that is
    rounding and curvature; None if there is none."""
    base = at_least_float32(shifted(torch.zeros_like(at)))
    largest = float(output.abs().max())
    if base.shape != output.shape or not float((base - output).abs().max()) <= 3e-2 * largest:
        return None  # run alone, this part computes something else
    direction = _noise(at, 0)
    best: tuple[float, Tensor, Tensor, float] | None = None
    for size in _STEPS:
        step = size * direction
        up, down = at_least_float32(shifted(step)), at_least_float32(shifted(-step))
        change = (up - down) / 2
        length = float(change.norm())
        if not (math.isfinite(length) and length > 0):
            continue
        # of a change of single bits rounding may happen to say nothing
        rounding = torch.finfo(output.dtype).eps * float(base.norm())
        doubt = max(float((up + down - 2 * base).norm()) / 2, rounding) / length
        if best is None or doubt < best[0]:
            best = doubt, change, at_least_float32(step), length
        if doubt < _LITTLE_DOUBT:
            break
    return None if best is None else (*best[1:], best[0])
