"""LeGrad for vision transformers: where did the model look, for this text or this class?

    explainer = legrad.load("embedded")
    explanation = explainer.explain("photo.jpg", ["a photo of a dog", "a photo of a guitar"])
    explanation.figure().savefig("where.png")

The method is LeGrad (Bousselham et al., ICCV 2025, arXiv:2404.03214).
"""

import importlib
import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

from legrad.errors import FlatMapWarning, InputError, LeGradError, TruthCheckError, UnsupportedModelError
from legrad.explainer import Explainer, load, wrap
from legrad.models.adapter import AudioEncoder
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.results.explanation import Explanation
from legrad.targets.kinds import PREDICTED, Audio, Contrast, Prompts, Similar, ZeroShot

if TYPE_CHECKING:
    from legrad import doctor, embedded, viz
    from legrad.compat import LePreprocess, LeWrapper, list_pretrained, visualize

__all__ = [
    "PREDICTED",
    "Audio",
    "AudioEncoder",
    "Contrast",
    "Explainer",
    "Explanation",
    "FlatMapWarning",
    "InputError",
    "LeGradError",
    "LePreprocess",
    "LeWrapper",
    "Prompts",
    "Readout",
    "Similar",
    "TruthCheckError",
    "UnsupportedModelError",
    "ViTAnatomy",
    "ZeroShot",
    "doctor",
    "embedded",
    "heads",
    "list_pretrained",
    "load",
    "visualize",
    "viz",
    "wrap",
]

_LAZY = dict.fromkeys(("LePreprocess", "LeWrapper", "list_pretrained", "visualize"), "legrad.compat")
_LAZY_MODULES = ("doctor", "embedded", "heads", "viz")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _LAZY_MODULES:
        return importlib.import_module(f"legrad.{name}")
    if name == "__version__":
        return importlib.metadata.version("legrad")
    raise AttributeError(f"module 'legrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _warn_of_the_other_package() -> None:
    """The authors' ``legrad_torch`` installs into the same import name and would be mixed up with us."""
    try:
        version = importlib.metadata.version("legrad_torch")
    except importlib.metadata.PackageNotFoundError:
        return
    warnings.warn(
        f"legrad_torch {version} is installed too and shares the import name 'legrad': files may be mixed. Run "
        "`pip uninstall legrad_torch legrad` and then `pip install legrad`, which has the same names (LeWrapper, ...)",
        UserWarning,
        stacklevel=3,
    )


_warn_of_the_other_package()
