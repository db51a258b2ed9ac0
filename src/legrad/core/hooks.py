"""All hooks on a running model: each is registered here, and removed when its forward pass ends or is interrupted.

``StreamingForward`` runs the model forward once. A chosen block is entered without gradients; at its first attention
the head output O becomes a fresh leaf and gradients are on until the block ends. There ``visit`` gets the block's
tokens and its attention calls, and the model goes on with detached tokens: nothing of a block outlives the block,
unless ``visit`` keeps it. A block whose post-attention part has a closed form (see ``closed_form``) is only watched: no
gradients, a few activations recorded.

``graph`` keeps the graph of all blocks instead. Flags, modes and locks are in ``state``, the tensors of an attention in
``attention``.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from legrad.core.attention import (
    AttentionCall,
    AttentionTap,
    Kind,
    ModuleCall,
    ValuesTap,
)
from legrad.core.block_values import (
    copied,
    detached,
    first_argument,
    refuse_inference_mode,
    with_first_argument,
)
from legrad.core.undo import Borrowing, Hook, Hooks
from legrad.errors import TruthCheckError
from legrad.models.versions import parts

_OUT_OF_LOOP = (
    "; blocks are modules that the model calls: where its forward writes them out (pairs of attention and MLP in a "
    "loop), wrap each in a module and give `run` a forward that calls those (docs/explain-your-own-model.md)"
)

# The pass whose hooks answer in this thread, or none: ``visit`` may run the model again.
_session = threading.local()


def has_foreign_hooks(block: nn.Module) -> bool:
    """Whether somebody's hooks or replaced forwards may change what the modules inside a block compute."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    for module in itertools.islice(parts(block), 1, None):
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values())
        if "forward" in vars(module) or not all(map(_only_observes, hooks)):
            return True
    return False


def _only_observes(hook: Callable[..., Any]) -> bool:
    """Whether a hook is ours and changes nothing; the pass around this one, or another thread's, may have set it."""
    function = hook.function if isinstance(hook, Hook) else hook
    return getattr(function, "__func__", None) is StreamingForward.record_call


def require_one_run(blocks: Sequence[nn.Module], runs: Mapping[int, int]) -> None:
    """Raise ``TruthCheckError`` unless each of these layers ran once."""
    for layer, count in runs.items():
        if count != 1:
            raise TruthCheckError(
                f"block {layer} ({type(blocks[layer]).__name__}) ran {count} times in one forward pass, expected once: "
                f"its tokens cannot be explained{_OUT_OF_LOOP if count == 0 else ''}"
            )


class StreamingForward(Borrowing):
    """One forward pass of the vision tower that visits the chosen blocks as they finish.

    Use it once, inside ``state.evaluation_mode``. Only the calling thread's forward is seen, and not those that
    ``visit`` starts.

    Args:
        blocks: all transformer blocks.
        layers: indices of the blocks to visit; each must run exactly once.
        visit: called as ``visit(layer, block_output, attention_calls)`` with gradients on; True says that it keeps the
            output: the model goes on with a copy, so that no block writes on what was kept.
        tap: the kind of attention to look at inside the blocks; None visits them with detached outputs only.
        verify: recompute a few rows of every attention explicitly, and watch every childless module of every block.
        watched: layer -> modules of its block to watch, see ``AttentionCall.after``; such a block runs without
            gradients.
        keep_input: what is kept of the input of such a block, as ``AttentionCall.arguments``.
        keep_rows: what is kept of the tensors of such a block's watched modules.
        examine: called as ``examine(layer, args, kwargs)`` in front of every chosen block, which it may run by itself;
            the modules to watch, and whether the block gets a graph all the same, in place of ``watched``. Every
            attention is verified.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        layers: Collection[int],
        visit: Callable[[int, Any, list[AttentionCall]], bool],
        tap: Kind | None = "fused",
        verify: bool = False,
        watched: Mapping[int, Sequence[nn.Module]] | None = None,
        keep_input: Callable[[Any], Any] | None = None,
        keep_rows: Callable[[Any], Any] = detached,
        examine: Callable[[int, Any, Any], tuple[Sequence[nn.Module], bool]] | None = None,
    ) -> None:
        self._blocks, self._layers, self._visit = blocks, set(layers), visit
        self._tap, self._verify, self._watched = tap, verify, dict(watched or {})
        self._keep_input, self._keep_rows, self._examine = keep_input, keep_rows, examine
        self._with_graph: set[int] = set()
        self._watched_modules: dict[int, nn.Module] = {}
        self._last = len(blocks) - 1
        self._runs = dict.fromkeys(sorted({*self._layers, self._last}), 0)
        self._last_output: Any = None
        self._open_taps: list[AttentionTap] = []
        self._hooks = Hooks()
        self._enclosing_pass = getattr(_session, "current", None)

    def run(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Any]:
        """Run the model.

        Args:
            forward: the forward pass of the vision tower.

        Returns:
            The result of ``forward`` and the (detached) output of the last block.

        Raises:
            TruthCheckError: a chosen block did not run, or ran more than once.
        """
        with self, self._hooks:
            self._register()
            _session.current = self
            output = forward()
        require_one_run(self._blocks, self._runs)
        return output, self._last_output

    def give_back(self) -> None:
        """Nothing of this pass is running any more."""
        _session.current = self._enclosing_pass
        while self._open_taps:  # an exception ended a block early
            self._open_taps[-1].__exit__(None, None, None)
            self._open_taps.pop()

    def _register(self) -> None:
        for layer in self._runs:
            block = self._blocks[layer]
            if self._tap and layer in self._layers:
                self._hooks.before(block, partial(self._enter, layer))
                inner = itertools.islice(block.modules(), 1, None) if self._verify else ()
                self._watch(self._watched.get(layer, inner))
            # prepended, so that the user's own hooks see detached outputs and run without gradients
            self._hooks.after(block, partial(self._leave, layer), prepend=True)

    def _watch(self, modules: Iterable[nn.Module]) -> None:
        for module in modules:
            if id(module) not in self._watched_modules:  # blocks may share modules
                self._watched_modules[id(module)] = module
                self._hooks.after(module, self.record_call)

    def _is_running(self) -> bool:
        """Whether this thread runs the model for this pass, and not for one that ``visit`` started."""
        return getattr(_session, "current", None) is self

    def _enter(self, layer: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Hook in front of a block."""
        if not self._is_running():
            return
        assert self._tap is not None
        refuse_inference_mode()
        if self._examine is not None:
            self._prepare(layer, self._examine, args, kwargs)
        verify = self._verify or self._examine is not None
        differentiate = layer in self._with_graph or layer not in self._watched
        self._open_taps.append(AttentionTap(self._tap, verify, differentiate))
        if self._verify:
            self._open_taps[-1].arguments = copied((args, kwargs))
        elif self._keep_input is not None and layer in self._watched:
            self._open_taps[-1].arguments = self._keep_input(first_argument(args, kwargs))
        self._open_taps[-1].__enter__()

    def _prepare(self, layer: int, examine: Callable[[int, Any, Any], Any], args: Any, kwargs: Any) -> None:
        """Ask how to look at a block."""
        _session.current = None
        try:
            with torch.no_grad():
                modules, with_graph = examine(layer, args, kwargs)
        finally:
            _session.current = self
        if modules:
            self._watched[layer] = modules
            self._watch(modules)
        if with_graph:
            self._with_graph.add(layer)

    def record_call(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook after a watched module: add it to the attention before it."""
        if not self._is_running() or not self._open_taps:
            return
        tap = self._open_taps[-1]
        if self._verify:
            if args:
                tap.modules.append(ModuleCall(module, args[0], output))
            if list(module.children()):
                return
        if not tap.calls:
            tap.before.append(module)
        elif args:
            tensors = (args[0], output) if self._verify else (self._keep_rows(args[0]), self._keep_rows(output))
            tap.calls[-1].after.append(ModuleCall(module, *tensors))

    def _leave(self, layer: int, module: nn.Module, args: Any, output: Any) -> Any:
        """Hook after a block: visit it, and hand on its output without the graph."""
        if not self._is_running():
            return None
        refuse_inference_mode()
        self._runs[layer] += 1
        calls: list[AttentionCall] = []
        if self._tap and layer in self._layers:
            tap = self._open_taps[-1]
            tap.__exit__(None, None, None)
            self._open_taps.pop()
            calls = tap.calls
        keep = layer == self._last
        try:
            if layer in self._layers:
                _session.current = None
                with torch.enable_grad():
                    keep |= self._visit(layer, output, calls)
        finally:
            _session.current = self
            torch.set_grad_enabled(False)
        output = detached(output, copy=keep)
        if layer == self._last:
            self._last_output = output
        return output


def tapped(
    function: Callable[[], Tensor], kind: Kind = "fused", verify: bool = False
) -> tuple[Tensor, list[AttentionCall]]:
    """Run ``function`` with its attention tapped; gradients are on from the first attention to its end."""
    with torch.no_grad(), AttentionTap(kind, verify) as tap:
        return function(), tap.calls


@contextlib.contextmanager
def record(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """The detached outputs of all blocks of the forward passes that this thread runs inside."""
    outputs: list[Any] = [None] * len(blocks)
    thread = threading.get_ident()

    def keep(index: int, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            outputs[index] = detached(output)

    with Hooks() as hooks:
        for index, block in enumerate(blocks):
            hooks.after(block, partial(keep, index), prepend=True)
        yield outputs


def block_input(run: Callable[[], Tensor], block: nn.Module) -> Any:
    """What enters a block in one forward pass: its first argument, detached."""
    inputs: list[Any] = []
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            inputs.append(detached(first_argument(args, kwargs)))

    with Hooks() as hooks:
        hooks.before(block, hook)
        run()
    return inputs[0]


def run_shifted(run: Callable[[], Tensor], block: nn.Module, shift: Tensor) -> Tensor:
    """The result of a forward pass in which something is added to what enters a block."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != thread:
            return None
        return with_first_argument(args, kwargs, first_argument(args, kwargs) + shift)

    with Hooks() as hooks:
        hooks.before(block, hook)
        return run()


def forward_values_only(run: Callable[[], Tensor], block: nn.Module) -> tuple[Any, int]:
    """What a block returns when each of its tokens attends to itself alone, and how many attentions it ran.

    Call it inside ``state.evaluation_mode``; fused attention only.
    """
    outputs: list[Any] = []
    tap = ValuesTap()
    thread = threading.get_ident()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            tap.__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            tap.__exit__(None, None, None)
            outputs.append(detached(output))

    with Hooks() as hooks:
        hooks.before(block, enter)
        hooks.after(block, leave, prepend=True)
        try:
            run()
        finally:
            tap.__exit__(None, None, None)  # an exception ended the block early
    return outputs[0], len(tap.calls)
