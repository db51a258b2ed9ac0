"""Which library a model is of, by its name or its type, and the ``Adapter`` that the library's file makes of it.

A model in memory is tried against imported libraries only: it cannot be of another.
"""

import fnmatch
import importlib
import itertools
import sys
from typing import Any

import torch
from torch import nn

from legrad.checks import brief, check_switch, first_line
from legrad.choices import LIBRARIES, check_choice
from legrad.defaults import usual_defaults
from legrad.errors import InputError, LeGradError, UnsupportedModelError
from legrad.models import checks, folders, sequence, suggestions
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

# library -> module with ``adapt(model)``, which returns an Adapter, or None for a model of another library
_ADAPTERS = {
    "open_clip": "legrad.models.open_clip",
    "timm": "legrad.models.timm",
    "torchvision": "legrad.models.torchvision",
    "transformers": "legrad.models.hf",
    "clip": "legrad.models.openai_clip",
    "imagebind": "legrad.models.imagebind",
    "dino": "legrad.models.dino",
}

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# their code is often copied into other packages: recognised by its structure, imported or not
_COPIED = {"clip", "imagebind", "dino"}


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | str | None) -> Adapter:
    """Build the model that ``name`` stands for, see ``legrad.load``."""
    if not isinstance(name, str):
        raise InputError(
            f"legrad.load takes a model's name, such as 'embedded' or 'hf:FOLDER', got {type(name).__name__}; for a "
            "model in memory use legrad.wrap(model)"
        )
    dtype = _dtype(dtype)
    prefix, _, rest = name.partition(":")
    prefix = prefix.lower() if prefix.lower() in _MODULES else prefix
    rest = rest.lower() if prefix == "embedded" else rest
    if prefix not in _MODULES or (prefix != "embedded" and not rest):
        raise InputError(
            f"unknown model {name!r}; expected 'embedded', 'embedded:map', 'embedded:speech' or LIBRARY:NAME with "
            f"LIBRARY one of {', '.join(key for key in _MODULES if key != 'embedded')}, as in "
            "open_clip:ViT-B-16/openai or timm:local-dir:PATH; `legrad models` lists what can be loaded"
            f"{folders.hint(name) or suggestions.hint(name)}"
        )
    if device is None or (isinstance(device, str) and device == "auto"):
        device = automatic_device(dtype)
    check_device(device)
    try:
        with usual_defaults():
            adapter: Adapter = importlib.import_module(_MODULES[prefix]).load(rest, device, dtype)
    except LeGradError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{name!r} could not be loaded: {first_line(error)}") from error
    return adapter


def automatic_device(dtype: torch.dtype | None = None) -> torch.device:
    """CUDA, else MPS (which has no float64), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() and dtype != torch.float64 else "cpu")


def check_device(device: Any) -> None:
    """Raise ``InputError`` unless tensors can be made on a device, given as such, by its name, or None."""
    try:
        torch.empty(0, device="cpu" if device is None else device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise InputError(f"cannot use device {str(device)!r}: {first_line(error)}; try 'cpu'") from error
    if device is not None and torch.device(device).type == "meta":
        raise InputError("a model on the device 'meta' has no weights to explain; use 'cpu'")


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
    checks.weights(model)
    try:
        adapter = _recognised(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error}{_known_part(model)}") from error
    if adapter is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} (module {type(model).__module__}) is not a model that we know; tried: "
            f"{', '.join(_ADAPTERS)}{_known_part(model)}. Describe it yourself with legrad.wrap(model, "
            "anatomy=legrad.ViTAnatomy(...)), see docs/explain-your-own-model.md"
        )
    return adapter


def _recognised(model: nn.Module) -> Adapter | None:
    """The adapter of the first library that knows a model, None if there is none."""
    for library, module in _ADAPTERS.items():
        if library in sys.modules or library in _COPIED:
            try:
                adapter: Adapter | None = importlib.import_module(module).adapt(model)
            except LeGradError:
                raise
            except (AttributeError, TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
                raise UnsupportedModelError(
                    f"{type(model).__name__} looks like a model of {library}, but cannot be described as one "
                    f"({first_line(error)}): parts of it were replaced or removed; describe it with legrad.wrap(model, "
                    "anatomy=legrad.ViTAnatomy(...)), see docs/explain-your-own-model.md"
                ) from error
            if adapter is not None:
                return adapter
    if type(model) is nn.Sequential and len(model):
        inner = _recognised(unwrap(model[0]))
        return None if inner is None else sequence.adapt(model, inner)
    return None


def _known_part(model: nn.Module) -> str:
    """The end of a message: which part of a model can be wrapped alone; "" if none can."""
    for name, part in itertools.islice(model.named_modules(), 1, None):
        try:
            is_known = _recognised(part) is not None
        except UnsupportedModelError:
            is_known = False
        if is_known:
            digits = any(piece.isdigit() for piece in name.split("."))
            expression = f"model.get_submodule({name!r})" if digits else f"model.{name}"
            return f"; its {name} ({type(part).__name__}) can be wrapped alone: legrad.wrap({expression})"
    return ""


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


def list_models(filter: str = "", library: str | None = None, supported: bool = True) -> list[str]:
    """Names that ``legrad.load`` takes; nothing is built or downloaded.

    >>> legrad.list_models("embedded")
    ['embedded', 'embedded:map', 'embedded:speech']

    Args:
        filter: part of the name, any case, or a pattern with ``*`` for all of it (``"timm:vit_*_patch14_*"``).
        library: only this one: "embedded", "open_clip", "timm", "torchvision" or "hf".
        supported: leave out what cannot be explained.

    Returns:
        The names, in the order of the libraries; empty if none fits. Folders and the hub are not among them.

    Raises:
        InputError: an argument of another type, or no such library.
    """
    if not isinstance(filter, str):
        raise InputError(f"filter is a part of a name, or a pattern with *, got {brief(filter)}")
    if library is not None:
        check_choice("library", library, LIBRARIES)
    pattern = filter.lower() if any(sign in filter for sign in "*?[") else f"*{filter.lower()}*"
    return [
        name
        for name, reason in available()
        if (library is None or name.partition(":")[0] == library)
        and not (check_switch("supported", supported) and reason)
        and (fnmatch.fnmatchcase(name.lower(), pattern) or fnmatch.fnmatchcase(name.lower().partition(":")[2], pattern))
    ]
