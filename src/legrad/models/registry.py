"""Which library a model is of, by its name or its type, and the ``Adapter`` that the library's file makes of it.

A model in memory is tried against imported libraries only: it cannot be of another.
"""

import importlib
import sys
from typing import Any

import torch
from torch import nn

from legrad.defaults import usual_defaults
from legrad.errors import InputError, UnsupportedModelError
from legrad.models import folders
from legrad.models.adapter import Adapter
from legrad.models.unwrap import unwrap

# prefix of a model's name -> module with ``load(rest of the name, device, dtype)``, which returns an Adapter
_MODULES = {
    "embedded": "legrad.models.embedded",
    "open_clip": "legrad.models.open_clip",
    "timm": "legrad.models.timm",
    "torchvision": "legrad.models.torchvision",
    "hf": "legrad.models.hf",
}


LIBRARIES = tuple(_MODULES)

# library -> module with ``adapt(model)``, which returns an Adapter, or None for a model of another library
_ADAPTERS = {
    "open_clip": "legrad.models.open_clip",
    "timm": "legrad.models.timm",
    "torchvision": "legrad.models.torchvision",
    "transformers": "legrad.models.hf",
    "clip": "legrad.models.openai_clip",
    "imagebind": "legrad.models.imagebind",
}

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# their code is often copied into other packages: recognised by its structure, imported or not
_COPIED = {"clip", "imagebind"}


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | str | None) -> Adapter:
    """Build the model that ``name`` stands for, see ``legrad.load``."""
    if not isinstance(name, str):
        raise InputError(
            f"legrad.load takes a model's name, such as 'embedded' or 'hf:FOLDER', got {type(name).__name__}; for a "
            "model in memory use legrad.wrap(model)"
        )
    dtype = _dtype(dtype)
    prefix, _, rest = name.partition(":")
    if prefix not in _MODULES or (prefix != "embedded" and not rest):
        raise InputError(
            f"unknown model {name!r}; expected 'embedded', 'embedded:map', 'embedded:speech' or LIBRARY:NAME with "
            f"LIBRARY one of {', '.join(key for key in _MODULES if key != 'embedded')}, as in "
            "open_clip:ViT-B-16/openai or timm:local-dir:PATH; `legrad models` lists what can be loaded"
            f"{folders.hint(name)}"
        )
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use device {str(device)!r}: {str(error).splitlines()[0]}; try 'cpu'") from error
    if device is not None and torch.device(device).type == "meta":
        raise InputError("a model on the device 'meta' has no weights to explain; use 'cpu'")
    with usual_defaults():
        adapter: Adapter = importlib.import_module(_MODULES[prefix]).load(rest, device, dtype)
    return adapter


def _dtype(dtype_or_name: Any) -> torch.dtype | None:
    """A floating-point type of torch, given as such or by its name."""
    if dtype_or_name is None:
        return None
    is_name = isinstance(dtype_or_name, str)
    dtype = getattr(torch, dtype_or_name.removeprefix("torch."), None) if is_name else dtype_or_name
    if dtype not in _DTYPES:
        raise InputError(f"dtype is one of {', '.join(map(str, _DTYPES))} (or its name), got {dtype_or_name!r}")
    return dtype


def adapt(model: nn.Module) -> Adapter:
    """The adapter of a model in memory, recognised by its type or structure.

    Raises:
        InputError: not a module.
        UnsupportedModelError: of no library here, or a model that cannot be explained.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}; to load by name use legrad.load")
    model = unwrap(model)
    for library, module in _ADAPTERS.items():
        if library in sys.modules or library in _COPIED:
            adapter: Adapter | None = importlib.import_module(module).adapt(model)
            if adapter is not None:
                return adapter
    raise UnsupportedModelError(
        f"{type(model).__name__} (module {type(model).__module__}) is not a model that we know; tried: "
        f"{', '.join(_ADAPTERS)}. Describe it yourself with legrad.wrap(model, anatomy=legrad.ViTAnatomy(...))"
    )


def tools(adapter: Adapter, transform: Any, tokenizer: Any) -> tuple[Adapter, Any, Any]:
    """Put processors and tokenizers of a library into the adapter; all others are returned as they are.

    Returns:
        The adapter, and the transform and tokenizer, None where the adapter took them.
    """
    kinds = [kind for tool in (transform, tokenizer) for kind in type(tool).__mro__]
    if any(kind.__module__.startswith("transformers.") for kind in kinds):
        library = importlib.import_module(_ADAPTERS["transformers"])
        adapter, transform, tokenizer = library.tools(adapter, transform, tokenizer)
    return adapter, transform, tokenizer


def available() -> list[tuple[str, str]]:
    """(name for ``legrad.load``, why it is not supported or "") of every model with a name; nothing is built."""
    names = [("embedded", ""), ("embedded:map", ""), ("embedded:speech", "")]
    for module in _ADAPTERS.values():
        names.extend(importlib.import_module(module).available())
    return names
