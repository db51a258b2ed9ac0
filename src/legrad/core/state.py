"""What is borrowed from a model or from torch and given back: flags, modes, attributes, locks, float32 parameters.

Whatever a pass needs to be otherwise is set inside a with-block, and put back at its end, also when the pass raises or
is interrupted, see ``undo``.
"""

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from legrad.core.undo import Borrowing, Together
from legrad.models.versions import parts

F = TypeVar("F", bound=Callable[..., Any])

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


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


def _is_owned(lock: Any) -> bool:
    """Whether this thread holds it: what an interrupted ``acquire`` cannot tell."""
    return bool(lock._is_owned())


def _release(lock: Any) -> None:
    while _is_owned(lock):
        lock.release()


class exclusive(Borrowing):  # noqa: N801 a with-block, spelled as a function
    """Serialise the use of one model between threads; the same thread may enter again."""

    def __init__(self, module: nn.Module) -> None:
        # one step of the interpreter, so it needs no lock of its own
        self._lock = _locks.setdefault(module, threading.RLock())
        self._outermost = not _is_owned(self._lock)

    def take(self) -> None:
        """Wait for the lock, unless this thread has it already."""
        if self._outermost:
            self._lock.acquire()

    def give_back(self) -> None:
        """Release it, if this is the thread's outermost with-block."""
        if self._outermost:
            _release(self._lock)


class attributes_set(Borrowing):  # noqa: N801 a with-block, spelled as a function
    """Set attributes (owner, name, value) and put the old values back."""

    def __init__(self, settings: Iterable[tuple[Any, str, Any]]) -> None:
        self._settings = list(settings)
        self._old: list[tuple[Any, str, Any]] = []

    def take(self) -> None:
        """Set them, in order."""
        for owner, name, value in self._settings:
            self._old.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

    def give_back(self) -> None:
        """The old values, in reverse order."""
        for owner, name, value in reversed(self._old):
            setattr(owner, name, value)


class _FusedSwitch:
    """Who wants ``nn.MultiheadAttention`` without its fast path, which writes attention out on the CPU.

    At 1022 px that costs as much as the rest of a ViT-B/16. The switch is process-wide: several threads may be inside,
    the last one puts it back.

    Attributes:
        inside: who is inside -> the thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.inside: dict[object, int] = {}
        self._enabled_before = True

    def add(self, who: object) -> None:
        """Switch the fast path off."""

        def change() -> None:
            if not self.inside:
                self._enabled_before = torch.backends.mha.get_fastpath_enabled()
            self.inside[who] = threading.get_ident()
            torch.backends.mha.set_fastpath_enabled(False)

        self._alone(change)

    def discard(self, who: object) -> None:
        """Put it back, if nobody else is inside; nothing for somebody who is not inside."""

        def change() -> None:
            if who in self.inside:
                if len(self.inside) == 1:
                    torch.backends.mha.set_fastpath_enabled(self._enabled_before)
                del self.inside[who]

        self._alone(change)

    def renew(self) -> None:
        """In a forked child: other threads are not there any more."""
        self._lock = threading.RLock()
        for who in [who for who, thread in self.inside.items() if thread != threading.get_ident()]:
            self.discard(who)

    def _alone(self, change: Callable[[], None]) -> None:
        try:
            self._lock.acquire()
            change()
        finally:
            try:
                _release(self._lock)
            finally:  # the first attempt may be cut
                _release(self._lock)


_fused_switch = _FusedSwitch()


class _FusedOnly(Borrowing):
    def take(self) -> None:
        _fused_switch.add(self)

    def give_back(self) -> None:
        _fused_switch.discard(self)


class _OutsideInference(Borrowing):
    """Outside inference mode, where no graph can be built."""

    def __init__(self) -> None:
        self._mode = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None

    def take(self) -> None:
        if self._mode is not None:
            self._mode.__enter__()

    def give_back(self) -> None:
        if self._mode is not None:
            with suppress(AttributeError):  # it was not entered
                self._mode.__exit__(None, None, None)


class _NoGrad(Borrowing):
    def __init__(self) -> None:
        self._enabled = torch.is_grad_enabled()

    def take(self) -> None:
        torch._C._set_grad_enabled(False)

    def give_back(self) -> None:
        torch._C._set_grad_enabled(self._enabled)


class _NoAutocast(Borrowing):
    def __init__(self, device: str) -> None:
        self._device = device
        self._enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)

    def take(self) -> None:
        if self._enabled:
            torch.set_autocast_enabled(self._device, False)

    def give_back(self) -> None:
        if self._enabled:
            torch.set_autocast_enabled(self._device, True)


def ordinary_tensors() -> Borrowing:
    """A with-block outside inference mode, without gradients: what is made inside can be used in training code."""
    return Together(_OutsideInference, _NoGrad)


def evaluation_mode(model: nn.Module, settings: Iterable[tuple[Any, str, Any]] = ()) -> Borrowing:
    """A with-block with the model in eval mode, without gradients, outside inference mode and autocast; afterwards all
    is as before.

    Under inference mode no graph can be built, so it is off for the duration. Autocast is off so that a map depends on
    the model's own dtype only. Training flags are set one by one because ``train()`` and ``eval()`` may do more in a
    subclass. Compiled forwards (``model.compile()``) are not used: hooks and modes need the model's Python code.

    Args:
        model: the vision tower, or the whole model.
        settings: further attributes (owner, name, value) to set for the duration.
    """
    device = next(itertools.chain(model.parameters(), model.buffers())).device.type
    return Together(
        _OutsideInference,
        _NoGrad,
        lambda: _NoAutocast(device),
        _FusedOnly,
        lambda: attributes_set([*_own_attributes(model), *settings]),
    )


def _own_attributes(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in parts(model):
        if module.training:
            yield module, "training", False
        if module._compiled_call_impl is not None:
            yield module, "_compiled_call_impl", None


class _TensorsReplaced(Borrowing):
    """Entries (table, name, tensor) of modules' parameters and buffers, replaced for the duration."""

    def __init__(self, entries: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
        self._entries = entries
        self._old = [(table, name, table[name]) for table, name, _ in entries]

    def take(self) -> None:
        for table, name, tensor in self._entries:
            table[name] = tensor

    def give_back(self) -> None:
        for table, name, tensor in self._old:
            table[name] = tensor


class InFloat:
    """Calls functions of a module's parts in float32 at least: with float32 copies of half-precision parameters.

    Args:
        module: the vision tower.
        blocks: modules inside it that no function uses; their parameters are left alone.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        copies: dict[int, Tensor] = {}  # modules may share a tensor
        self._entries = [
            (table, name, copies.setdefault(id(tensor), tensor.detach().float()))
            for table, name, tensor in _parameters_outside(module, {id(block) for block in blocks})
            if tensor.dtype in (torch.float16, torch.bfloat16)
        ]

    def __call__(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """``function(tokens)``; tokens are at least float32."""
        if not self._entries:
            return function(tokens)
        with _TensorsReplaced(self._entries):
            return function(tokens)


def _parameters_outside(module: nn.Module, excluded: set[int]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Parameters and buffers, with the tables and names under which modules keep them, except those of some modules."""
    for table in (module._parameters, module._buffers):
        yield from ((table, name, tensor) for name, tensor in table.items() if tensor is not None)
    for child in module.children():
        if id(child) not in excluded:
            yield from _parameters_outside(child, excluded)


def _renew_after_fork() -> None:
    """Locks that other threads held when the process was forked would never be released in the child."""
    for module, lock in list(_locks.items()):
        if not _is_owned(lock):
            _locks[module] = threading.RLock()
    _fused_switch.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)
