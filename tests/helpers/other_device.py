"""A second device on machines that have only a CPU: tensors claim to be on "meta" and hold numbers.

Every operation on tensors of both devices fails as it would with a GPU, so tests find code that forgets to move a
tensor.
"""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten._pin_memory.default)


class OtherDeviceTensor(torch.Tensor):
    """Numbers on the CPU that claim to be on ``DEVICE``."""

    @staticmethod
    def __new__(cls, numbers):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )

    def __init__(self, numbers):
        self.numbers = numbers

    def tolist(self, *_):
        """PyTorch refuses it for tensor subclasses of this kind."""
        return self.numbers.tolist()

    def __repr__(self):
        return f"OtherDeviceTensor({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class Pretend(TorchDispatchMode):
    """Intercepts every operation, those that create tensors too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


@contextlib.contextmanager
def pretend():
    """Inside, a model that is moved to ``DEVICE`` computes, and tensors made there hold numbers."""
    tensor, autocast = torch.tensor, torch.autocast

    def new_tensor(*args, device=None, **kwargs):  # does not pass through modes
        return tensor(*args, **kwargs).to(device)

    def cast(kind, *args, **kwargs):  # knows nothing of this device
        return contextlib.nullcontext() if kind == DEVICE.type else autocast(kind, *args, **kwargs)

    with (
        Pretend(),
        mock.patch("torch.tensor", new_tensor),
        mock.patch("torch.autocast", cast),
        mock.patch("legrad.models.checks.weights"),  # these have numbers
    ):
        yield


def _run(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = [isinstance(leaf, OtherDeviceTensor) for leaf in tensors]
    if function not in _MOVES and any(on_device):
        strays = [leaf for leaf, away in zip(tensors, on_device, strict=True) if not away and leaf.ndim]
        if strays and not _index(function):
            raise RuntimeError(f"{function} got tensors of two devices: {[tuple(leaf.shape) for leaf in strays]}")
    device = kwargs.get("device")
    away = any(on_device) if device is None else torch.device(device) == DEVICE
    if function is torch.ops.aten.copy_.default:
        away = on_device[0]
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    result = function(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
    if function._schema.name.endswith("_") and args and isinstance(args[0], torch.Tensor):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return (
        tree_map(lambda leaf: OtherDeviceTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
        if away
        else result
    )


def _index(function):
    """Indices may be on the CPU."""
    return function._schema.name in ("aten::index", "aten::index_put", "aten::index_put_")


def _numbers(leaf):
    return leaf.numbers if isinstance(leaf, OtherDeviceTensor) else leaf
