"""The only place that touches a running model: hooks, attention taps, autograd modes. It undoes everything.

``stream`` runs the model forward once. A chosen block is entered without gradients; at its first attention the head
output O becomes a fresh leaf and gradients are on until the block ends. There ``visit`` sees the block's tokens and its
attention calls, and the model goes on with detached tokens: nothing of a block survives the block. A block whose tail
is known in closed form (see ``tails``) is only watched: no gradients, a few activations noted.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad.core.attention import (
    Attention,
    AttentionCall,
    AttentionTap,
    Kind,
    ModuleCall,
    Replacements,
    ValuesTap,
    WholeTap,
)
from legrad.errors import TruthCheckError

_session = threading.local()


# hooks that only look; another pass of ours may be running outside this one
_observer_hooks: weakref.WeakSet[Callable[..., None]] = weakref.WeakSet()


def has_foreign_hooks(block: nn.Module) -> bool:
    """Whether somebody's hooks or replaced forwards may change what the modules inside a block compute."""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    for module in itertools.islice(block.modules(), 1, None):
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values())
        if "forward" in vars(module) or any(hook not in _observer_hooks for hook in hooks):
            return True
    return False


def _detached(output: Any, copy: bool = False) -> Any:
    if isinstance(output, Tensor):
        return output.detach().clone() if copy else output.detach()
    if isinstance(output, tuple):
        return tuple(_detached(one, copy) for one in output)
    return output


def stream(
    run: Callable[[], Tensor],
    blocks: Sequence[nn.Module],
    layers: Iterable[int],
    visit: Callable[[int, Any, list[AttentionCall]], bool],
    tap: Kind | None = "fused",
    verify: bool = False,
    watched: Mapping[int, Sequence[nn.Module]] | None = None,
) -> tuple[Tensor, Any]:
    """Run the model once and visit the chosen blocks as they finish.

    Call it inside ``state.evaluation_mode``. Only the calling thread's forward is seen, and not
    those that ``visit`` starts.

    Args:
        run: the forward pass of the vision tower.
        blocks: all transformer blocks.
        layers: indices of the blocks to visit; each must run exactly once.
        visit: called as ``visit(layer, block_output, attention_calls)`` with gradients on; True says that it keeps the
            output: the model goes on with a copy, so that no block writes on what was kept.
        tap: the kind of attention to look at inside the blocks; None visits them with detached outputs only.
        verify: recompute a few rows of every attention explicitly, and watch every childless module of every block.
        watched: modules of a block to watch, see ``AttentionCall.behind``; such a block runs without gradients.

    Returns:
        The result of ``run`` and the (detached) output of the last block.

    Raises:
        TruthCheckError: a chosen block did not run, or ran more than once.
    """
    chosen = set(layers)
    last = len(blocks) - 1
    runs = dict.fromkeys(chosen | {last}, 0)
    final: list[Any] = []
    me = object()
    outer = getattr(_session, "current", None)
    open_taps: list[AttentionTap] = []
    handles: list[Any] = []
    watched = watched or {}
    noted: dict[int, nn.Module] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if getattr(_session, "current", None) is not me or not open_taps:
            return
        tap = open_taps[-1]
        if not tap.calls:
            tap.before.append(module)
        elif args:
            through = (args[0], output) if verify else (_detached(args[0]), _detached(output))
            tap.calls[-1].behind.append(ModuleCall(module, *through))

    _observer_hooks.add(note)

    def watch(layer: int) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            if getattr(_session, "current", None) is not me:
                return
            assert tap is not None
            open_taps.append(AttentionTap(tap, verify, differentiate=layer not in watched))
            open_taps[-1].__enter__()

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            if getattr(_session, "current", None) is not me:
                return None
            runs[layer] += 1
            calls: list[AttentionCall] = []
            if tap and layer in chosen:
                finished = open_taps.pop()
                finished.__exit__(None, None, None)
                calls = finished.calls
            kept = layer == last
            try:
                if layer in chosen:
                    _session.current = None
                    with torch.enable_grad():
                        kept |= visit(layer, output, calls)
            finally:
                _session.current = me
                torch.set_grad_enabled(False)
            output = _detached(output, copy=kept)
            if layer == last:
                final[:] = [output]
            return output

        if tap and layer in chosen:
            handles.append(blocks[layer].register_forward_pre_hook(enter))
            every = [module for module in blocks[layer].modules() if not list(module.children())] if verify else []
            # blocks may share modules
            noted.update({id(module): module for module in watched.get(layer, every)})
        # prepended, so that the user's own hooks see detached outputs and run without gradients
        handles.append(blocks[layer].register_forward_hook(leave, prepend=True))

    try:
        for layer in sorted(runs):
            watch(layer)
        handles.extend(module.register_forward_hook(note) for module in noted.values())
        _session.current = me
        output = run()
    finally:
        _session.current = outer
        for handle in handles:
            handle.remove()
        while open_taps:  # an exception left a block early
            open_taps.pop().__exit__(None, None, None)
    for layer, count in runs.items():
        if count != 1:
            raise TruthCheckError(
                f"block {layer} ({type(blocks[layer]).__name__}) ran {count} times in one forward pass, expected once: "
                "its tokens cannot be explained"
            )
    return output, final[0]


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
    handles = []

    def keep(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                outputs[index] = _detached(output)

        return hook

    try:
        handles = [block.register_forward_hook(keep(i), prepend=True) for i, block in enumerate(blocks)]
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def block_input(run: Callable[[], Tensor], block: nn.Module) -> Any:
    """What enters a block in one forward pass: its first argument, detached."""
    found: list[Any] = []
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            found.append(_detached(args[0] if args else next(iter(kwargs.values()))))

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return found[0]


@dataclass
class Whole:
    """One forward pass with the graph from the first block to the output.

    Attributes:
        output: what ``run`` returned.
        entered: the tokens that entered each block, as the block got them; those of block 0 are a leaf.
        left: what each block returned.
        inside: the attentions of each block.
        behind: the attentions after the last block.
    """

    output: Tensor
    entered: list[Any]
    left: list[Any]
    inside: list[list[Attention]]
    behind: list[Attention]


def _first_replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): value})


def forward_with_graph(
    run: Callable[[], Tensor],
    blocks: Sequence[nn.Module],
    kind: Kind = "fused",
    replacements: Replacements | None = None,
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention,
    cut: Callable[[nn.Module], bool] | None = None,
) -> Whole:
    """Run the model once and keep the graph of all blocks and of what follows them, for methods that need gradients
    through the whole model. Nothing is kept but by the result.

    Call it inside ``state.evaluation_mode``. Only the calling thread's forward is seen.

    Args:
        run: the forward pass of the vision tower.
        blocks: all transformer blocks, in order; each must run exactly once.
        kind: the kind of attention to look at.
        replacements: torch functions -> what to call instead from the first block on.
        attend: called in place of fused attention.
        cut: which direct children of blocks hand on their output without its graph.

    Raises:
        TruthCheckError: a block did not run, or ran more than once.
    """
    tap = WholeTap(kind, replacements or {}, attend)
    entered: list[Any] = [[] for _ in blocks]
    left: list[Any] = [[] for _ in blocks]
    spans: list[slice] = [slice(0)] * len(blocks)
    thread = threading.get_ident()
    handles: list[Any] = []

    def watch(layer: int) -> None:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != thread:
                return None
            changed = None
            if layer == 0:
                torch.set_grad_enabled(True)
                tokens = args[0] if args else next(iter(kwargs.values()))
                changed = args, kwargs = _first_replaced(args, kwargs, tokens.detach().requires_grad_())
            entered[layer].append(args[0] if args else next(iter(kwargs.values())))
            spans[layer] = slice(len(tap.seen), None)
            return changed

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                left[layer].append(output)
                spans[layer] = slice(spans[layer].start, len(tap.seen))

        handles.append(blocks[layer].register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(blocks[layer].register_forward_hook(leave))
        for child in blocks[layer].children():
            if cut is not None and cut(child):
                handles.append(child.register_forward_hook(lambda _module, _args, output: _detached(output)))

    try:
        for layer in range(len(blocks)):
            watch(layer)
        with torch.no_grad(), tap:
            output = run()
    finally:
        for handle in handles:
            handle.remove()
    for layer, found in enumerate(left):
        if len(found) != 1:
            raise TruthCheckError(
                f"block {layer} ({type(blocks[layer]).__name__}) ran {len(found)} times in one forward pass, expected "
                "once: its tokens cannot be explained"
            )
    return Whole(
        output,
        [found[0] for found in entered],
        [found[0] for found in left],
        [tap.seen[span] for span in spans],
        tap.seen[spans[-1].stop :],
    )


def forward_values_only(run: Callable[[], Tensor], block: nn.Module) -> tuple[Any, int]:
    """What a block returns when each of its tokens attends to itself alone, and how many attentions it ran.

    Call it inside ``state.evaluation_mode``; fused attention only.
    """
    found: list[Any] = []
    tap = ValuesTap()
    inside = contextlib.ExitStack()  # left at the block's end, or by an exception
    thread = threading.get_ident()

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread:
            inside.enter_context(tap)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            inside.close()
            found.append(_detached(output))

    handles = [block.register_forward_pre_hook(enter), block.register_forward_hook(leave, prepend=True)]
    try:
        with inside:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0], len(tap.calls)
