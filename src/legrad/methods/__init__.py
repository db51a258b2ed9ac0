"""Other methods behind the same call: ``explainer.explain(images, targets, method="gradcam")``.

``METHODS`` has one entry for each, see ``Method``. A method of one's own is a ``Method`` too, and so are other settings
of these:

    from dataclasses import replace
    from functools import partial
    from legrad.methods import METHODS, black_box

    rise = replace(METHODS["rise"], name="rise, 4000 masks", function=partial(black_box.rise, masks=4000))
    explainer.explain(images, targets, method=rise)

``register_method`` adds one to the table, for the command line's benchmarks too.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legrad.methods.method import Method
    from legrad.methods.registry import METHODS, all_methods, find, own_digest, register_method

__all__ = ["METHODS", "Method", "all_methods", "find", "own_digest", "register_method"]

# imported when they are first used: the catalogue alone takes no torch
_HOMES = {"Method": "method"} | dict.fromkeys(
    ("METHODS", "all_methods", "find", "own_digest", "register_method"), "registry"
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"legrad.methods.{_HOMES[name]}"), name)
    if name.startswith("_"):
        raise AttributeError(f"module 'legrad.methods' has no attribute {name!r}")
    try:
        return importlib.import_module(f"legrad.methods.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module 'legrad.methods' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
