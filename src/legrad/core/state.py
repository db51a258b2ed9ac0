"""What is borrowed from a model or from torch and given back: flags, modes, attributes, locks, float32 parameters.

Whatever a pass needs to be otherwise is set inside a with-block, and put back at its end, also when the pass raises or
is interrupted.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def not_compiled(function: F) -> F:
    """Let ``torch.compile`` around a function leave it alone, and all that it calls; returns the function itself.

    ``torch.compiler.disable`` does the same with an import of seconds, and its own frames in front of the user's line.
    """
    assert isinstance(function, FunctionType)
    marks = vars(function)
    marks |= {"_torchdynamo_disable": True, "_torchdynamo_disable_msg": "legrad works on the model as it is"}
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, skip))
    except (ImportError, AttributeError):  # another version of torch: compiled around, explain is slow
        pass
    return function


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes with every parameter or buffer that is replaced or written to (except through ``.data``)."""
    tensors = (
        tensor
        for part in module.modules()
        for tensor in (*part._parameters.values(), *part._buffers.values())
        if tensor is not None
    )
    # tensors of inference mode have no version counter
    return tuple((id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)


@contextlib.contextmanager
def exclusive(module: nn.Module) -> Iterator[None]:
    """Serialise the use of one model between threads; the same thread may enter again."""
    with _locks_guard:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        yield


@contextlib.contextmanager
def attributes_set(settings: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes (owner, name, value) and put the old values back."""
    old: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, value in settings:
            old.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(old):
            setattr(owner, name, value)


class _FusedOnly:
    """``nn.MultiheadAttention`` without its fast path, which writes attention out on the CPU.

    At 1022 px that costs as much as the rest of a ViT-B/16. The switch is process-wide: several threads may be inside,
    the last one puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._threads_inside, self._enabled_before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._threads_inside == 0:
                self._enabled_before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._threads_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads_inside -= 1
            if self._threads_inside == 0:
                torch.backends.mha.set_fastpath_enabled(self._enabled_before)


_fused_only = _FusedOnly()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, settings: Iterable[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """The model in eval mode, without gradients, outside inference mode and autocast; afterwards all is as before.

    Under inference mode no graph can be built, so it is off for the duration. Autocast is off so that a map depends on
    the model's own dtype only. Training flags are set one by one because ``train()`` and ``eval()`` may do more in a
    subclass. Compiled forwards (``model.compile()``) are not used: hooks and modes need the model's Python code.

    Args:
        model: the vision tower, or the whole model.
        settings: further attributes (owner, name, value) to set for the duration.
    """
    training = [(module, "training", False) for module in model.modules() if module.training]
    compiled = [
        (module, "_compiled_call_impl", None) for module in model.modules() if module._compiled_call_impl is not None
    ]
    device = next(itertools.chain(model.parameters(), model.buffers())).device.type
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        _fused_only,
        attributes_set([*training, *compiled, *settings]),
    ):
        yield


class _Call(nn.Module):
    """A function of a module's parameters as a module, so that ``functional_call`` can replace them."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(tokens)


class InFloat:
    """Calls functions of a module's parts in float32 at least: with float32 copies of half-precision parameters.

    Args:
        module: the vision tower.
        blocks: modules inside it that no function uses; their parameters are left alone.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self._module = module
        self._float_parameters = {
            f"module.{name}": tensor.detach().float()
            for name, tensor in _parameters_outside(module, {id(block) for block in blocks})
            if tensor.dtype in (torch.float16, torch.bfloat16)
        }

    def __call__(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """``function(tokens)``; tokens are at least float32."""
        if not self._float_parameters:
            return function(tokens)
        result: Tensor = torch.func.functional_call(_Call(self._module, function), self._float_parameters, (tokens,))
        return result


def _parameters_outside(module: nn.Module, excluded: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names, except those of some modules."""
    for tensors in (module._parameters, module._buffers):
        yield from ((prefix + name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, child in module.named_children():
        if id(child) not in excluded:
            yield from _parameters_outside(child, excluded, f"{prefix}{name}.")
