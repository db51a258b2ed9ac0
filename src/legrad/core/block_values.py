"""What blocks take and return: tensors, alone or first in a tuple or list."""

from typing import Any

import torch
from torch import Tensor

from legrad.errors import InputError


def detached(output: Any, copy: bool = False) -> Any:
    """The same without its graph; ``copy`` for tensors of their own memory."""
    if isinstance(output, Tensor):
        return output.detach().clone() if copy else output.detach()
    if isinstance(output, tuple | list):
        items = [detached(item, copy) for item in output]
        return items if isinstance(output, list) else tuple(items)
    return output


def copied(value: Any) -> Any:
    """Tensors inside tuples, lists and dictionaries, detached and copied: whoever gets them may write on them."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return {key: copied(item) for key, item in value.items()} if type(value) is dict else value


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tokens that a block is called with, however they are laid out."""
    return args[0] if args else next(iter(kwargs.values()))


def with_first(argument: Any, tokens: Tensor) -> Any:
    """A block's first argument with other tokens in place of its own: itself, or the first of a tuple or list."""
    if isinstance(argument, tuple | list):
        items = [with_first(argument[0], tokens), *argument[1:]]
        return items if isinstance(argument, list) else tuple(items)
    return tokens


def with_first_argument(args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
    """The arguments of a call with another first one, as a forward pre-hook returns them."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): value})


def refuse_inference_mode() -> None:
    """Raise ``InputError`` if a model enters inference mode by itself, in front of its blocks."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "the model's forward runs its blocks under torch.inference_mode(), where nothing can be differentiated: "
            "use torch.no_grad() there, or give the anatomy a `run` without it"
        )
