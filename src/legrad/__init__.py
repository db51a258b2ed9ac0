"""LeGrad for vision transformers: where did the model look, for this text or this class?

    explainer = legrad.load("embedded")
    explanation = explainer.explain("photo.jpg", ["a photo of a dog", "a photo of a guitar"])
    explanation.figure().savefig("where.png")

The method is LeGrad (Bousselham et al., ICCV 2025, arXiv:2404.03214).

Public are the names in ``__all__``, and the modules ``viz``, ``heads``, ``doctor``, ``embedded``, ``citations``,
``export``, ``methods``, ``metrics``, ``datasets``, ``bench``, ``results`` and ``utils``; everything else is private and
may change without notice. Names are imported when they are first used: ``import legrad`` itself loads neither torch nor
any model library.
"""

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from legrad.errors import FlatMapWarning, InputError, LeGradError, TruthCheckError, UnsupportedModelError, warn

if TYPE_CHECKING:
    from legrad import (
        bench,
        citations,
        datasets,
        doctor,
        embedded,
        export,
        heads,
        methods,
        metrics,
        results,
        utils,
        viz,
    )
    from legrad.compat import LePreprocess, LeWrapper, list_pretrained, visualize
    from legrad.explainer import Explainer, load, wrap
    from legrad.methods.registry import list_methods, register_method
    from legrad.metrics.own import register_metric
    from legrad.models.adapter import AudioEncoder
    from legrad.models.anatomy import Readout, ViTAnatomy
    from legrad.models.registry import list_models
    from legrad.results.explanation import Explanation
    from legrad.stream import Failure
    from legrad.targets import PREDICTED, Audio, Contrast, Prompts, Similar, Target, ZeroShot

__all__ = [
    "PREDICTED",
    "Audio",
    "AudioEncoder",
    "Contrast",
    "Explainer",
    "Explanation",
    "Failure",
    "FlatMapWarning",
    "InputError",
    "LeGradError",
    "LePreprocess",
    "LeWrapper",
    "Prompts",
    "Readout",
    "Similar",
    "Target",
    "TruthCheckError",
    "UnsupportedModelError",
    "ViTAnatomy",
    "ZeroShot",
    "bench",
    "citations",
    "datasets",
    "doctor",
    "embedded",
    "export",
    "heads",
    "list_methods",
    "list_models",
    "list_pretrained",
    "load",
    "methods",
    "metrics",
    "register_method",
    "register_metric",
    "results",
    "utils",
    "visualize",
    "viz",
    "wrap",
]

# public name -> the module that has it
_HOMES = {
    **dict.fromkeys(("Explainer", "load", "wrap"), "legrad.explainer"),
    "Explanation": "legrad.results.explanation",
    "Failure": "legrad.stream",
    **dict.fromkeys(("list_methods", "register_method"), "legrad.methods.registry"),
    "register_metric": "legrad.metrics.own",
    "list_models": "legrad.models.registry",
    **dict.fromkeys(("Readout", "ViTAnatomy"), "legrad.models.anatomy"),
    "AudioEncoder": "legrad.models.adapter",
    **dict.fromkeys(("PREDICTED", "Audio", "Contrast", "Prompts", "Similar", "Target", "ZeroShot"), "legrad.targets"),
    **dict.fromkeys(("LePreprocess", "LeWrapper", "list_pretrained", "visualize"), "legrad.compat"),
}
_MODULES = (
    "bench",
    "citations",
    "datasets",
    "doctor",
    "embedded",
    "export",
    "heads",
    "methods",
    "metrics",
    "results",
    "utils",
    "viz",
)
# names of the last release -> what they are called now
_RENAMED = {"Hearing": "AudioEncoder"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warn(f"legrad.{name} is called legrad.{_RENAMED[name]} now", DeprecationWarning)
        name = _RENAMED[name]
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value  # the next time without this function
        return value
    if name in _MODULES:
        return importlib.import_module(f"legrad.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("legrad")
    raise AttributeError(f"module 'legrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# what happens is told to loggers below "legrad"; who sets none up sees nothing
logging.getLogger("legrad").addHandler(logging.NullHandler())


def _warn_of_the_other_package() -> None:
    """The authors' ``legrad_torch`` installs into the same import name and would be mixed up with us."""
    import importlib.metadata

    try:
        version = importlib.metadata.version("legrad_torch")
    except importlib.metadata.PackageNotFoundError:
        return
    warn(
        f"legrad_torch {version} is installed too and shares the import name 'legrad': files may be mixed. Run "
        "`pip uninstall legrad_torch legrad` and then `pip install legrad`, which has the same names (LeWrapper, ...)"
    )


def _may_be_there(distribution: str) -> bool:
    """Whether a folder of packages names it: a thousandth of a second, where ``importlib.metadata`` takes fifty."""
    for folder in sys.path:
        try:
            if any(name.lower().replace("-", "_").startswith(distribution) for name in os.listdir(folder or ".")):
                return True
        except OSError:  # not a folder
            continue
    return False


if _may_be_there("legrad_torch"):
    _warn_of_the_other_package()
