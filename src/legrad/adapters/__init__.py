"""One short file per model library: ``model -> Adapter``, data plus small functions.

A library is recognised by type, and only if it is imported already: a model of it cannot exist otherwise.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from legrad.anatomy import ViTAnatomy
from legrad.errors import InputError, UnsupportedModelError

Size = tuple[int, int]


@dataclass(frozen=True)
class Adapter:
    """What a library knows about one of its models.

    Attributes:
        model: the whole model.
        anatomy: its vision tower.
        tokenize: texts -> token ids, a tensor or anything with ``.to(device)``; None if unknown.
        encode_text: what ``tokenize`` gives -> (texts, features), None without a text tower.
        transform: (size or None, fit) -> a picture transform made of torchvision-style steps, or a
            ``geometry.Preprocessing``; None if unknown.
        labels: class names in the order of the logits, None if unknown.
        name: how the model was asked for.
    """

    model: nn.Module
    anatomy: ViTAnatomy
    tokenize: Callable[[Sequence[str]], Any] | None = None
    encode_text: Callable[[Any], Tensor] | None = None
    transform: Callable[[Size | None, str], Any] | None = None
    labels: tuple[str, ...] | None = None
    name: str = ""


# prefix of a model's name -> the module with ``load(rest, device, dtype)``; the module's ``adapt(model)`` returns an
# Adapter, or None if the model is of another library
_MODULES = {
    "embedded": "legrad.adapters.embedded",
    "open_clip": "legrad.adapters.open_clip",
}
# library -> what to call when one of its models comes in
_ADAPTERS = {"open_clip": "legrad.adapters.open_clip"}


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """Build the model that ``name`` stands for, see ``legrad.load``."""
    prefix, _, rest = name.partition(":")
    if prefix not in _MODULES or (prefix == "embedded") != (not rest):
        raise InputError(
            f"unknown model {name!r}; expected 'embedded', 'open_clip:ARCH/TAG', 'open_clip:local-dir:PATH' or "
            "'open_clip:hf-hub:ORG/REPO'; `legrad models` lists what can be loaded"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use device {str(device)!r}: {str(error).splitlines()[0]}; try 'cpu'") from error
    adapter: Adapter = importlib.import_module(_MODULES[prefix]).load(rest, device, dtype)
    return adapter


def adapt(model: nn.Module) -> Adapter:
    """Recognise an in-memory model by its type."""
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}; to load by name use legrad.load")
    for library, module in _ADAPTERS.items():
        if library in sys.modules:
            adapter: Adapter | None = importlib.import_module(module).adapt(model)
            if adapter is not None:
                return adapter
    raise UnsupportedModelError(
        f"{type(model).__name__} (module {type(model).__module__}) is not a model that we know; tried: "
        f"{', '.join(_ADAPTERS)}. Describe it yourself with legrad.wrap(model, anatomy=legrad.ViTAnatomy(...))"
    )


def available() -> list[tuple[str, str]]:
    """(name for ``legrad.load``, why it is not supported or "") of everything that can be named, nothing built."""
    listed = [("embedded", "")]
    for module in _ADAPTERS.values():
        listed.extend(importlib.import_module(module).available())
    return listed
