"""All benchmarks by name, the switches that each takes, and what it measures by default."""

from collections.abc import Mapping, Sequence
from typing import Any

from legrad.bench.benchmark import Benchmark, Switch, switches_of
from legrad.bench.listener import Listener
from legrad.bench.model import ModelUnderTest
from legrad.bench.tasks import ablation
from legrad.bench.tasks.audio import AudioPrompted
from legrad.bench.tasks.layer_shares import LayerImportance
from legrad.bench.tasks.localisation import Localisation
from legrad.bench.tasks.open_vocabulary import OpenVocabulary
from legrad.bench.tasks.perturbation import Perturbation
from legrad.bench.tasks.presence import Presence
from legrad.bench.tasks.sanity import Sanity
from legrad.bench.tasks.segmentation import Segmentation
from legrad.bench.tasks.speed import Speed
from legrad.choices import check_choice
from legrad.datasets import Dataset, MaskFolder, SoundFolder
from legrad.errors import InputError
from legrad.explainer import Explainer
from legrad.methods import all_methods
from legrad.models.anatomy import ViTAnatomy

BENCHMARKS: dict[str, type[Any]] = {
    "segmentation": Segmentation,
    "openvocab": OpenVocabulary,
    "perturbation": Perturbation,
    "localisation": Localisation,
    "sanity": Sanity,
    "presence": Presence,
    "speed": Speed,
    "audio": AudioPrompted,
}
NAMES = (*BENCHMARKS, "ablation", "layer-importance")
_ABLATION_BASES = ("localisation", "segmentation", "openvocab", "perturbation")


def switches(name: str) -> dict[str, Switch]:
    """The switches of a benchmark; of the ablation ``on`` and those of all benchmarks that can score it."""
    if name == "ablation":
        on = Switch(str, _ABLATION_BASES[0], "The benchmark that scores it; its options hold too.", _ABLATION_BASES)
        return {"on": on, **_united(_ABLATION_BASES)}
    return switches_of(BENCHMARKS[name]) if name in BENCHMARKS else {}


def _united(names: Sequence[str]) -> dict[str, Switch]:
    """The switches of several benchmarks; each has its default by the benchmark that it is given to."""
    united: dict[str, Switch] = {}
    for name in names:
        for switch, facts in switches(name).items():
            before = united.get(switch)
            allowed = dict.fromkeys([*(before.allowed if before else ()), *facts.allowed])
            help_before = f"{before.help} " if before else ""
            united[switch] = Switch(
                facts.kind, None, f"{help_before}{name}: {facts.help}", tuple(allowed), optional=True
            )
    return united


def build(name: str, anatomy: ViTAnatomy, settings: Mapping[str, Any]) -> Benchmark:
    """A benchmark with its switches; None stands for a default.

    Args:
        name: of the benchmark.
        anatomy: of the model, which decides some defaults.
        settings: switch -> value, see ``switches``.

    Raises:
        InputError: an unknown name, a switch that it does not take, or a value that the switch does not take.
    """
    if name not in NAMES:
        raise InputError(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    values = {switch: value for switch, value in settings.items() if value is not None}
    base = name
    if name == "ablation":
        base = values.pop("on", _ABLATION_BASES[0])
        check_choice("--on of ablation", base, _ABLATION_BASES)
    takes = switches(base)
    for switch, value in values.items():
        if switch not in takes:
            instead = ", ".join(f"--{other}" for other in takes) or "none"
            raise InputError(f"{base} has no switch --{switch}; its switches: {instead}")
        if takes[switch].allowed:
            check_choice(f"--{switch} of {base}", value, takes[switch].allowed)
    if base == "perturbation" and anatomy.axes == ("frequency", "time"):
        values.setdefault("patch", min(anatomy.patch_size))
    if name == "layer-importance":
        return LayerImportance.of(anatomy)
    benchmark = BENCHMARKS[base](**values)
    return ablation.Ablation(benchmark) if name == "ablation" else benchmark


def fitting_switches(name: str, settings: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """The switches with a default that fits the data: in a folder of masks every object is explained by itself."""
    segmentation = "segmentation" in (name, settings.get("on"))
    if segmentation and isinstance(data, MaskFolder) and settings.get("explained") is None:
        return {**settings, "explained": "truth"}
    return dict(settings)


def model_under_test(name: str, explainer: Explainer, data: Dataset, **options: Any) -> ModelUnderTest:
    """A ``Listener`` where sounds are erased, else a ``ModelUnderTest``; ``options`` are those of the class.

    Of a model that sees and hears, sounds are measured on its audio tower.

    Raises:
        UnsupportedModelError: a model that this benchmark cannot measure.
        InputError: sounds for a model of images, or the other way round.
    """
    if isinstance(data, SoundFolder) and explainer.audio_explainer is not None:
        explainer = explainer.audio_explainer
    listens = explainer.anatomy.axes == ("frequency", "time")
    kind = Listener if listens and name == "perturbation" else ModelUnderTest
    if kind is Listener:
        options.pop("cache", None)  # it tells images apart, not sounds
        if options.get("size") is not None:
            raise InputError("--size is of images; spectrograms have the size that the model's extractor gives them")
    model = kind(explainer, labels=getattr(data, "classes", ()), **options)
    if listens != isinstance(data, SoundFolder):
        raise InputError(
            "a model of sounds is measured on a folder of class folders with sounds, and nothing else is; --data is "
            f"{data.facts['path']!r}"
        )
    return model


def methods(name: str, anatomy: ViTAnatomy) -> list[str]:
    """What is compared unless the user says: all methods but black boxes, or what the benchmark is about."""
    if name == "ablation":
        return ablation.variants(anatomy)
    if name == "layer-importance":
        return ["legrad"]
    # a control costs nothing and explains nothing: its speed would only confuse
    left_out = ("black box", "nothing") if name == "speed" else ("black box",)
    return [method for method, facts in all_methods().items() if facts.needs not in left_out]
