"""What blocks take and return: tensors, alone or first in a tuple or list."""

from typing import Any

from torch import Tensor


def detached(output: Any, copy: bool = False) -> Any:
    """The same without its graph; ``copy`` for tensors of their own memory."""
    if isinstance(output, Tensor):
        return output.detach().clone() if copy else output.detach()
    if isinstance(output, tuple | list):
        items = [detached(item, copy) for item in output]
        return items if isinstance(output, list) else tuple(items)
    return output


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tokens that a block is called with, however they are laid out."""
    return args[0] if args else next(iter(kwargs.values()))


def with_first(argument: Any, tokens: Tensor) -> Any:
    """A block's first argument with other tokens in place of its own: itself, or the first of a tuple or list."""
    if isinstance(argument, tuple | list):
        items = [with_first(argument[0], tokens), *argument[1:]]
        return items if isinstance(argument, list) else tuple(items)
    return tokens
