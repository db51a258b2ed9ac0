"""What tells that a module may compute something else than before: its weights, its parts, their settings."""

from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

# No whole numbers: modules count with them. What computes with one that changed is noticed by its results.
_SETTINGS = frozenset({bool, float, str, FunctionType, BuiltinFunctionType, torch.dtype})


def parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all modules inside it, each once: ``modules()`` without names, in a fifth of its time."""
    waiting, visited = [module], set()
    while waiting:
        part = waiting.pop()
        if id(part) not in visited:
            visited.add(id(part))
            yield part
            waiting.extend(child for child in part._modules.values() if child is not None)


def weights_version(module: nn.Module) -> tuple[tuple[Any, ...], ...]:
    """Changes with every parameter or buffer that is replaced, moved or written to (except through ``.data``)."""
    # tensors of inference mode have no version counter
    return tuple(
        (id(tensor), 0 if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device)
        for tensor in tensors(module)
    )


def settings_version(module: nn.Module) -> tuple[Any, ...]:
    """Changes with a part that is replaced, a forward, a switch, a factor or a function that a part keeps."""
    return tuple(
        (
            id(part),
            type(part).forward,
            *(value for value in vars(part).values() if type(value) in _SETTINGS),
        )
        for part in parts(module)
    )


def checksum(tensor: Tensor) -> tuple[float, float]:
    """Changes with the numbers of a tensor, however they were written."""
    numbers = tensor.detach().float().nan_to_num()
    return float(numbers.sum()), float(numbers.square().sum())


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers, shared ones as often as they are held."""
    for part in parts(module):
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                yield tensor


def hooks_version(module: nn.Module) -> tuple[int, ...]:
    """Changes with the user's hooks; ours come and go."""
    return tuple(
        key
        for part in parts(module)
        for hooks in (part._forward_hooks, part._forward_pre_hooks)
        for key, hook in hooks.items()
        if not hasattr(hook, "legrad_owner")
    )
