"""One short file per model library: ``model -> Adapter``, data plus small functions.

A library is recognised by type, and only if it is imported already: a model of it cannot exist otherwise.
"""

import importlib
import sys
from typing import Any

import torch
from torch import nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.models import folders
from legrad.models.adapter import Adapter
from legrad.models.unwrap import unwrap

# prefix of a model's name -> the module with ``load(rest, device, dtype)``; the module's ``adapt(model)`` returns an
# Adapter, or None if the model is of another library
_MODULES = {
    "embedded": "legrad.models.embedded",
    "open_clip": "legrad.models.open_clip",
    "timm": "legrad.models.timm",
    "torchvision": "legrad.models.torchvision",
    "hf": "legrad.models.hf",
}


LIBRARIES = tuple(_MODULES)


# library -> what to call when one of its models comes in
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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"cannot use device {str(device)!r}: {str(error).splitlines()[0]}; try 'cpu'") from error
    if device is not None and torch.device(device).type == "meta":
        raise InputError("a model on the device 'meta' has no weights to explain; use 'cpu'")
    adapter: Adapter = importlib.import_module(_MODULES[prefix]).load(rest, device, dtype)
    return adapter


def _dtype(wanted: Any) -> torch.dtype | None:
    """A floating-point type of torch, given as such or by its name."""
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if found is None and wanted is None:
        return None
    if found not in _DTYPES:
        raise InputError(f"dtype is one of {', '.join(map(str, _DTYPES))} (or its name), got {wanted!r}")
    return found


def adapt(model: nn.Module) -> Adapter:
    """Recognise an in-memory model by its type."""
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
    """Put the processors and tokenizers of a library into the adapter; what is of no library is returned as it came."""
    kinds = [kind for tool in (transform, tokenizer) for kind in type(tool).__mro__]
    if any(kind.__module__.startswith("transformers.") for kind in kinds):
        found: tuple[Adapter, Any, Any] = importlib.import_module(_ADAPTERS["transformers"]).tools(
            adapter, transform, tokenizer
        )
        return found
    return adapter, transform, tokenizer


def available() -> list[tuple[str, str]]:
    """(name for ``legrad.load``, why it is not supported or "") of everything that can be named, nothing built."""
    listed = [("embedded", ""), ("embedded:map", ""), ("embedded:speech", "")]
    for module in _ADAPTERS.values():
        listed.extend(importlib.import_module(module).available())
    return listed
