"""What a call borrows is written down before it is taken, so that all of it goes back whatever ends the call.

A with-block alone is not enough: Ctrl-C may come after something was changed and before the block has begun, or inside
the clean-up itself. So every ``Borrowing`` enters a list of its thread before it takes anything, giving back may be
done twice, and ``guarded``, around each public call, gives back whatever the list still holds, and puts torch's modes
back.
"""

import contextlib
import functools
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from legrad.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps")
_SYMBOLIC_MODES = ("FakeTensorMode", "ProxyTorchDispatchMode", "FunctionalTensorMode")


class _Thread(threading.local):
    """Of this thread: what is borrowed, oldest first, and how many guarded calls are open."""

    def __init__(self) -> None:
        self.borrowed: list[Borrowing] = []
        self.open_calls = 0


_thread = _Thread()


class Borrowing:
    """A with-block that takes something on entry and gives it back at its end.

    Subclasses override ``take`` and ``give_back``. The latter may be called twice, and after a ``take`` that was cut
    anywhere: what it undoes is noted before it is done.
    """

    def take(self) -> None:
        """Change something."""

    def give_back(self) -> None:
        """Put it back, as often as this is called."""

    def __enter__(self) -> Self:
        _thread.borrowed.append(self)
        try:
            self.take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()
        # it may be struck off already: by a guarded call that ended in between
        with contextlib.suppress(ValueError):
            _thread.borrowed.remove(self)


class Together(Borrowing):
    """Several borrowings as one, each made when those before it are taken."""

    def __init__(self, *makers: Callable[[], Borrowing]) -> None:
        self._makers = makers
        self._parts: list[Borrowing] = []

    def take(self) -> None:
        """Take all of them, in order."""
        for make in self._makers:
            self._parts.append(make())
            self._parts[-1].__enter__()

    def give_back(self) -> None:
        """Give all of them back, in reverse order."""
        for part in reversed(self._parts):
            part.__exit__(None, None, None)


class Hook:
    """A hook of ours: it knows the set that it belongs to, so that it is found again by whoever removes it."""

    def __init__(self, owner: "Hooks", function: Callable[..., Any]) -> None:
        self.legrad_owner, self.function = owner, function

    def __call__(self, *args: Any) -> Any:
        """As torch calls hooks."""
        return self.function(*args)


class Hooks(Borrowing):
    """Hooks on modules that are removed at the end of the with-block."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []

    def before(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call ``function(module, args, kwargs)`` before the module's forward."""
        self._modules.append(module)
        module.register_forward_pre_hook(Hook(self, function), with_kwargs=True)

    def after(self, module: nn.Module, function: Callable[..., Any], prepend: bool = False) -> None:
        """Call ``function(module, args, output)`` after the module's forward, ``prepend`` before all other hooks."""
        self._modules.append(module)
        module.register_forward_hook(Hook(self, function), prepend=prepend)

    def give_back(self) -> None:
        """Remove them all."""
        while self._modules:
            module = self._modules[-1]
            for hooks, flags in (
                (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
                (module._forward_hooks, module._forward_hooks_with_kwargs),
            ):
                for key, hook in list(hooks.items()):
                    if isinstance(hook, Hook) and hook.legrad_owner is self:
                        flags.pop(key, None)  # before the hook itself, by which they are found
                        hooks.pop(key, None)
            self._modules.pop()


class _Modes:
    """Torch's modes of this thread, as they are now."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._dtype = torch.get_default_dtype()
        self._functions = len(_get_current_function_mode_stack())
        self._autocast = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in _AUTOCAST_DEVICES
        ]

    def put_back(self, interrupted: bool) -> None:
        """As they were; a mode that is as it was is not touched.

        The default type is the process's, and others may have set it since: it is put back after an interrupt only.
        """
        if interrupted and torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        while len(_get_current_function_mode_stack()) > self._functions:
            torch._C._pop_torch_function_stack()
        for device, enabled, dtype in self._autocast:
            if torch.is_autocast_enabled(device) != enabled:
                torch.set_autocast_enabled(device, enabled)
            if torch.get_autocast_dtype(device) != dtype:
                torch.set_autocast_dtype(device, dtype)
        if torch.is_grad_enabled() != self._grad:
            torch._C._set_grad_enabled(self._grad)


class _Call:
    """A guarded call that is open: what was borrowed before it, and the modes around it."""

    def __init__(self) -> None:
        self._open_calls = _thread.open_calls
        if self._open_calls == 0 and _thread.borrowed:  # of a call that could not clean up
            _give_back(0)
        self._borrowed = len(_thread.borrowed)
        self._modes = _Modes()

    def open(self) -> None:
        _thread.open_calls = self._open_calls + 1

    def close(self) -> None:
        """Give back what is still borrowed, and put modes back; may be called twice."""
        error = sys.exception()
        interrupted = error is not None and not isinstance(error, Exception)
        if error is not None and interrupted:
            _end_frames(error.__traceback__)
            _leave_batching()
        _give_back(self._borrowed)
        self._modes.put_back(interrupted)
        _thread.open_calls = self._open_calls


def _end_frames(trace: TracebackType | None) -> None:
    """Clear the frames of an interrupt: with-blocks that it cut while they were entered end with them."""
    error_ids = set()
    for frame, _ in traceback.walk_tb(trace):
        inner: FrameType | None = frame
        while inner is not None and inner not in error_ids:
            error_ids.add(inner)
            with contextlib.suppress(RuntimeError):  # it is running
                inner.clear()
            inner = inner.f_back


def _leave_batching() -> None:
    """Torch's own batching of gradients (``is_grads_batched``) counts its depth in plain steps; here it is 0."""
    while True:
        depth = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        if depth <= 0:
            return
        torch._C._vmapmode_decrement_nesting()


def _give_back(count: int) -> None:
    """All but the oldest ``count`` borrowings, the latest first."""
    while len(_thread.borrowed) > count:
        _thread.borrowed[-1].give_back()
        _thread.borrowed.pop()


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """A function after which nothing is borrowed any more and torch's modes are as before, also after Ctrl-C.

    The function raises ``InputError`` inside transforms that replace tensors: vmap, grad, jvp, fake tensors.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        _refuse_transforms(function.__name__)
        state = _Call()
        try:
            state.open()
            return function(*args, **kwargs)
        finally:
            # an interrupt may cut the first attempt anywhere, then the second does all of it
            try:
                state.close()
            finally:
                state.close()

    return call


def _refuse_transforms(name: str) -> None:
    transforms = [] if torch._C._functorch.peek_interpreter_stack() is None else ["a transform of torch.func"]
    modes = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack()]
    transforms += [mode for mode in modes if mode in _SYMBOLIC_MODES]
    if transforms:
        raise InputError(
            f"{name} needs tensors with numbers and runs its own derivatives, it cannot run inside {transforms[0]} "
            "(vmap, grad, jvp, fake tensors): call it outside, on plain tensors"
        )
