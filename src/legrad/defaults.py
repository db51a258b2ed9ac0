"""Whatever defaults a user gave torch, what is made here, and by the functions that users give, is made on the CPU.

``torch.set_default_device`` is for models: a tokenizer, or a transform of an image, that follows it would return
tensors elsewhere, or, on the device "meta", without numbers; and in ``torch.set_default_dtype(torch.float16)`` images
would be rounded before a model sees them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def usual_defaults() -> Iterator[None]:
    """A with-block in which tensors are made on the CPU, in float32, unless they say otherwise.

    The default type is the process's: inside the block other threads see it, too, see ``usual_dtype``.
    """
    import torch

    dtype = torch.get_default_dtype()
    device = contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    try:
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        with device:
            yield
    finally:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)


def usual_dtype() -> bool:
    """Whether the default type is float32, so that ``usual_defaults`` changes nothing that other threads see."""
    import torch

    return torch.get_default_dtype() == torch.float32


def with_usual_defaults(function: Callable[P, T]) -> Callable[P, T]:
    """The function inside ``usual_defaults``."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with usual_defaults():
            return function(*args, **kwargs)

    return call
