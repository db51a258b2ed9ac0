"""The functions of an anatomy with their results looked at: an error names the field that has to change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from legrad.checks import first_line
from legrad.errors import InputError, LeGradError


def first_tensor(value: Any) -> Tensor | None:
    """The value itself, or the first tensor in a tuple, list or mapping, also of those; None if there is none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            if (tensor := first_tensor(item)) is not None:
                return tensor
    return None


def description(value: Any) -> str:
    """What a function returned, for a message: ``a tensor of shape (2, 5)``, ``a list of 3``, ``None``."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Forward:
    """``ViTAnatomy.run``: the first tensor of what a model returns, (batch, features).

    Attributes:
        function: the user's.
    """

    function: Callable[..., Any]

    def __call__(self, images: Tensor, *more: Any, **options: Any) -> Tensor:
        """(batch, *shape) -> (batch, features); further arguments are handed on."""
        return _features(self.function(images, *more, **options), "run", "lambda images: model(images)[0]")


@dataclass(frozen=True)
class Head:
    """``Readout.function``: the first tensor of what a read-out returns, (batch, features).

    Attributes:
        name: of the read-out.
        function: the user's.
    """

    name: str
    function: Callable[..., Any]

    def __call__(self, tokens: Tensor, *more: Any, **options: Any) -> Tensor:
        """(batch, tokens, dim) -> (batch, features); further arguments are handed on."""
        example = "lambda z: model.head(model.norm(z)[:, 0])"
        return _features(self.function(tokens, *more, **options), f"the {self.name} read-out", example)


def _features(result: Any, field: str, example: str) -> Tensor:
    tensor = first_tensor(result)
    if tensor is None or tensor.ndim != 2:
        raise InputError(f"{field} returned {description(result)}, it has to return (batch, features), as in {example}")
    return tensor


@dataclass(frozen=True)
class TokenLayout:
    """``ViTAnatomy.to_tokens``: a block's output -> (batch, tokens, dim).

    Attributes:
        function: the user's.
    """

    function: Callable[[Any], Any]

    def __call__(self, output: Any) -> Tensor:
        """The tokens in a block's output."""
        try:
            tokens = first_tensor(self.function(output))
        except LeGradError:
            raise
        except (TypeError, AttributeError, LookupError, ValueError) as error:
            raise InputError(
                f"to_tokens fails on what a block returned, {description(output)}: {first_line(error)}"
            ) from error
        if tokens is None:
            raise InputError(
                f"a block returned {description(output)}, in which there are no tokens; give the anatomy to_tokens, "
                "(block's output) -> (batch, tokens, dim)"
            )
        return tokens
