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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


_locks_guard = threading.Lock()


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes with every parameter or buffer that is replaced or written to (except through ``.data``)."""
    tensors = (
        tensor
        for one in module.modules()
        for tensor in (*one._parameters.values(), *one._buffers.values())
        if tensor is not None
    )
    # tensors made under inference mode keep no count
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
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, value in settings:
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


class _FusedOnly:
    """``nn.MultiheadAttention`` without its fast path, which writes attention out on the processor.

    At 1022 px that costs as much as the rest of a ViT-B/16. The switch is the whole process': several threads may be
    inside, the last one puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.mha.set_fastpath_enabled(self._before)


_fused_only = _FusedOnly()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, settings: Iterable[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """The model in eval mode, without gradients, outside inference mode and autocast; all as before afterwards.

    Under inference mode no graph can be built, so it is left for the duration. Autocast is left so that a map depends
    on the model's own dtype only. Training flags are set one by one because ``train()`` and ``eval()`` may do more in
    a subclass. Compiled forwards (``model.compile()``) are left aside: hooks and modes need the Python of the model.
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
    """A function of a module's parameters as a module, so that ``functional_call`` can lend it other ones."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(tokens)


class InFloat:
    """Calls functions of a module's parts in float32 at least: a half-precision module lends them float32 parameters.

    Args:
        module: the vision tower.
        blocks: modules inside it that no function uses; their parameters are left alone.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self._module = module
        self._lent = {
            f"module.{name}": tensor.detach().float()
            for name, tensor in _outside(module, {id(block) for block in blocks})
            if tensor.dtype in (torch.float16, torch.bfloat16)
        }

    def __call__(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """``function(tokens)``; tokens are at least float32."""
        if not self._lent:
            return function(tokens)
        result: Tensor = torch.func.functional_call(_Call(self._module, function), self._lent, (tokens,))
        return result


def _outside(module: nn.Module, inside: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names, except those of some modules."""
    for tensors in (module._parameters, module._buffers):
        yield from ((prefix + name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, child in module.named_children():
        if id(child) not in inside:
            yield from _outside(child, inside, f"{prefix}{name}.")
