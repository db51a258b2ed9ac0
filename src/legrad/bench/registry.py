"""All benchmarks by name, with the switches that each takes."""

from collections.abc import Callable, Mapping
from typing import Any

from legrad.bench.benchmark import Benchmark
from legrad.bench.listener import Listener
from legrad.bench.subject import Subject
from legrad.bench.tasks import ablation
from legrad.bench.tasks.audio import AudioPrompted
from legrad.bench.tasks.layer_shares import Fingerprint
from legrad.bench.tasks.localisation import Localisation
from legrad.bench.tasks.open_vocabulary import OpenVocabulary
from legrad.bench.tasks.perturbation import Perturbation
from legrad.bench.tasks.presence import Presence
from legrad.bench.tasks.sanity import Sanity
from legrad.bench.tasks.segmentation import Segmentation
from legrad.bench.tasks.speed import Speed
from legrad.datasets import Dataset, SoundFolder
from legrad.errors import InputError
from legrad.explainer import Explainer
from legrad.methods import METHODS
from legrad.models.anatomy import ViTAnatomy

BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "segmentation": Segmentation,
    "openvocab": OpenVocabulary,
    "perturbation": Perturbation,
    "localisation": Localisation,
    "sanity": Sanity,
    "presence": Presence,
    "speed": Speed,
    "audio": AudioPrompted,
}
NAMES = (*BENCHMARKS, "ablation", "fingerprint")
# switch -> benchmark -> allowed values; None = any of its type
SWITCHES: dict[str, dict[str, tuple[str, ...] | None]] = {
    "explained": {"segmentation": ("predicted", "truth"), "perturbation": ("both", "predicted", "truth")},
    "geometry": {"segmentation": ("squash", "crop", "prs_compat"), "audio": ("crop", "squash")},
    "timing": {"audio": ("basic", "advanced")},
    "prompt": {"audio": ("audio", "text")},
    "threshold": {"openvocab": None},
    "fill": {"perturbation": ("black", "mean", "blur")},
    "patch": {"perturbation": None},
    "ties": {"perturbation": ("index", "random")},
    "tolerance": {"localisation": None},
    "on": {"ablation": ("localisation", "segmentation", "openvocab", "perturbation")},
}


def build(name: str, anatomy: ViTAnatomy, switches: Mapping[str, Any]) -> Benchmark:
    """A benchmark with its switches; None stands for a default.

    Raises:
        InputError: an unknown name, a switch that it does not take, or a value that the switch does not take.
    """
    if name not in NAMES:
        raise InputError(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    given = {switch: value for switch, value in switches.items() if value is not None}
    base = given.pop("on", "localisation") if name == "ablation" else name
    if base != name:
        _check("ablation", "on", base)
    for switch, value in given.items():
        _check(base, switch, value)
    if base == "perturbation" and anatomy.axes == ("frequency", "time"):
        given.setdefault("patch", min(anatomy.patch_size))
    if name == "fingerprint":
        return Fingerprint.of(anatomy)
    made = BENCHMARKS[base](**given)
    return ablation.Ablation(made) if name == "ablation" else made


def subject(name: str, explainer: Explainer, data: Dataset, **options: Any) -> Subject:
    """The model under test: a ``Listener`` where sounds are erased, else a ``Subject``; ``options`` as these take them.

    Of a model that sees and hears, sounds are measured on its audio tower.

    Raises:
        UnsupportedModelError: a model that this benchmark cannot measure.
        InputError: sounds for a model of images, or the other way round.
    """
    if isinstance(data, SoundFolder) and explainer.audio_explainer is not None:
        explainer = explainer.audio_explainer
    listens = explainer.anatomy.axes == ("frequency", "time")
    kind = Listener if listens and name == "perturbation" else Subject
    if kind is Listener:
        options.pop("memory", None)  # it tells images apart, not sounds
        if options.get("size") is not None:
            raise InputError("--size is of images; spectrograms have the size that the model's extractor gives them")
    made = kind(explainer, labels=getattr(data, "classes", ()), **options)
    if listens != isinstance(data, SoundFolder):
        raise InputError(
            "a model of sounds is measured on a folder of class folders with sounds, and nothing else is; --data is "
            f"{data.facts['path']!r}"
        )
    return made


def methods(name: str, anatomy: ViTAnatomy) -> list[str]:
    """What is compared unless the user says: all methods but black boxes, or what the benchmark is about."""
    if name == "ablation":
        return ablation.variants(anatomy)
    if name == "fingerprint":
        return ["legrad"]
    # a control costs nothing and explains nothing: its speed would only confuse
    left_out = ("black box", "nothing") if name == "speed" else ("black box",)
    return [method for method, facts in METHODS.items() if facts.needs not in left_out]


def _check(benchmark: str, switch: str, value: Any) -> None:
    takes = SWITCHES[switch]
    if benchmark not in takes:
        always = "; each result has both thresholds, the map's mean and 0.5"
        why = always if (benchmark, switch) == ("segmentation", "threshold") else ""
        raise InputError(f"{benchmark} has no switch --{switch}{why}; it is for {', '.join(takes)}")
    allowed = takes[benchmark]
    if allowed is not None and value not in allowed:
        raise InputError(f"--{switch} of {benchmark} is one of {', '.join(allowed)}, got {value!r}")
