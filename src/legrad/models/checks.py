"""Values of a ``ViTAnatomy`` that cannot be right, and weights that cannot be used: one line each."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from legrad.checks import brief
from legrad.errors import InputError
from legrad.models.versions import tensors

_CHOICES: dict[str, tuple[Any, ...]] = {
    "output": ("embedding", "logits", "feature"),
    "route": ("self-attention", "pooler"),
    "attention": ("fused", "softmax"),
    "axes": (("rows", "cols"), ("frames", "rows", "cols"), ("frequency", "time")),
    "default_readout": (None, "native", "published"),
}
# field -> its least value; num_prefix_keys below 0 stands for all prefix tokens
_WHOLE_NUMBERS = {"attentions": 1, "num_prefix_tokens": 0, "num_prefix_keys": -1, "num_suffix_keys": 0}
_FUNCTIONS = ("run", "to_tokens", "keys_to_grid", "at_size")
_OPTIONAL = ("keys_to_grid", "at_size")


def fields(anatomy: Any) -> None:
    """Check the fields of a ``ViTAnatomy`` one by one, as far as they do not depend on others.

    Raises:
        InputError: names the field, what it should be, and what it is.
    """
    for name, choices in _CHOICES.items():
        value = getattr(anatomy, name)
        if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
            raise InputError(f"{name} is one of {', '.join(map(repr, choices))}, got {brief(value)}")
    if not isinstance(anatomy.tower, nn.Module):
        raise InputError(f"tower is the vision tower, a torch.nn.Module, got {type(anatomy.tower).__name__}")
    if next(itertools.chain(anatomy.tower.parameters(), anatomy.tower.buffers()), None) is None:
        raise InputError(f"tower is the module with the weights, and this {type(anatomy.tower).__name__} has none")
    if not isinstance(anatomy.library, str):
        raise InputError(f"library is a name, got {type(anatomy.library).__name__}")
    notes = anatomy.notes
    if not isinstance(notes, tuple | list) or not all(isinstance(note, str) for note in notes):
        raise InputError(f"notes are sentences, got {brief(notes)}")
    for name in _FUNCTIONS:
        value = getattr(anatomy, name)
        if not callable(value) and not (value is None and name in _OPTIONAL):
            raise InputError(f"{name} is a function, got {type(value).__name__}")
    blocks = anatomy.blocks if isinstance(anatomy.blocks, Sequence | nn.ModuleList | nn.Sequential) else ()
    if len(blocks) == 0 or not all(isinstance(block, nn.Module) for block in blocks):
        kinds = ", ".join(dict.fromkeys(type(block).__name__ for block in blocks))
        raise InputError(
            "blocks holds the transformer blocks, a sequence of torch.nn.Modules, at least one, got a "
            f"{type(anatomy.blocks).__name__} of {kinds or 'none'}"
        )
    for name, least in _WHOLE_NUMBERS.items():
        value = getattr(anatomy, name)
        if not _is_whole(value) or value < least:
            hint = "the number of tokens in front of the patches" if name == "num_prefix_tokens" else "a whole number"
            raise InputError(f"{name} is {hint}, from {least}, got {brief(value)}")
    _explained_attentions(anatomy.explained_attentions, anatomy.attentions)
    if not isinstance(anatomy.readouts, Mapping):
        raise InputError(f"readouts maps names to read-outs, got {type(anatomy.readouts).__name__}")
    _call_settings(anatomy.call_settings)
    shape = anatomy.shape
    if not isinstance(shape, tuple | list) or not all(_is_whole(side) and side > 0 for side in shape):
        raise InputError(f"shape is that of one input, as in (3, height, width), got {brief(shape)}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _explained_attentions(indices: Any, count: int) -> None:
    numbers = list(indices) if isinstance(indices, tuple | list) else []
    different = bool(numbers) and all(map(_is_whole, numbers)) and len(set(numbers)) == len(numbers)
    if not different or not set(numbers) <= set(range(count)):
        raise InputError(
            f"explained_attentions are indices, from 0 to {count - 1} (a block has attentions={count}), each once, got "
            f"{brief(indices)}"
        )


def _call_settings(settings: Any) -> None:
    for setting in settings if isinstance(settings, tuple | list) else [settings]:
        if not isinstance(setting, tuple | list) or len(setting) != 3 or not isinstance(setting[1], str):
            raise InputError(f"call_settings holds (owner, attribute, value), got {brief(setting)}")
        if not hasattr(setting[0], setting[1]):
            raise InputError(f"call_settings: {type(setting[0]).__name__} has no attribute {setting[1]!r}")


def sides(name: str, value: Any, axes: Sequence[str]) -> Any:
    """A tuple of positive whole numbers, one for every axis.

    Raises:
        InputError: something else.
    """
    try:
        numbers = tuple(operator.index(side) for side in value)
    except TypeError:
        numbers = ()
    if len(numbers) != len(axes) or min(numbers) < 1:
        raise InputError(f"{name} is ({', '.join(axes)}), positive whole numbers, got {brief(value)}")
    return numbers


def weights(model: nn.Module) -> None:
    """Raise ``InputError`` if a parameter or buffer has no data: on the device "meta", or of a lazy layer."""
    if not any(is_lazy(tensor) or tensor.is_meta for tensor in tensors(model)):
        return
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"{name} of {type(model).__name__} is not initialised: run the model on an input first")
        if tensor.is_meta:
            raise InputError(
                f"{type(model).__name__} has parameters without data (on the device 'meta', first: {name}): load its "
                "weights first"
            )


def holds_matrix(head: Any) -> bool:
    """Whether a head maps features to other features: it holds a tensor of two or more dimensions.

    A head without one (nothing, an identity, a dropout, a norm) hands the pooled feature on.
    """
    if isinstance(head, Tensor):
        return is_lazy(head) or head.ndim > 1
    if not isinstance(head, nn.Module):
        return False
    if any(hasattr(module, "out_features") for module in head.modules()):
        return True  # of any kind: quantised layers hide their weights
    attributes = [value for module in head.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    tensors = itertools.chain(head.parameters(), head.buffers(), attributes)
    return any(is_lazy(tensor) or tensor.ndim > 1 for tensor in tensors)
