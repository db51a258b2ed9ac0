"""Facts and checks of a model, on a random image: what ``legrad doctor`` reports."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from legrad.core import state
from legrad.core.gradients import gradient_check
from legrad.core.memory import block_bytes
from legrad.core.positions import no_position_check, position_check, random_input
from legrad.core.truth import truth_check
from legrad.core.undo import guarded
from legrad.errors import InputError, LeGradError
from legrad.explainer import Explainer
from legrad.inputs import geometry
from legrad.models.anatomy import ViTAnatomy
from legrad.models.side_inputs import SideInputs
from legrad.targets.classes import num_classes

_MEGA = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: a few words.
        value: the fact, or the outcome of the check.
        good: False for a check that failed, None for a mere fact.
    """

    what: str
    value: str
    good: bool | None = None


@dataclass
class Report:
    """All findings about one model.

    Attributes:
        findings: in the order of the report.
    """

    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(finding.good is not False for finding in self.findings)

    def add(self, what: str, value: str, good: bool | None = None) -> None:
        """Append one finding."""
        self.findings.append(Finding(what, value, good))


@guarded
def examine(
    explainer: Explainer,
    size: int | Sequence[int] | None = None,
    seed: int = 0,
    inputs: Mapping[str, Tensor] | None = None,
) -> Report:
    """Facts and checks of a model.

    The truth check runs on random input; so does the position check: pixels of one patch are changed, and the token
    that changes with them has to be the one that the anatomy lays there.

    Args:
        explainer: the model.
        size: input size in pixels, int or (H, W); default what ``explain`` makes of images by default.
        seed: of the random image.
        inputs: what the model takes beside the images, one row each, see ``Explainer.explain``.

    Returns:
        The report; a failed check is a finding, not an exception.

    Raises:
        InputError: no such size, or inputs that the model does not take or misses.
    """
    report = Report()
    default = explainer.anatomy
    side_inputs = SideInputs(inputs, 1, default)
    with (
        state.exclusive(default.blocks[0]),
        state.evaluation_mode(explainer.model),
        state.evaluation_mode(default.tower, default.call_settings),
    ):
        anatomy = _usual(explainer) if size is None else default.at(geometry.as_size(size))
        _facts(explainer, anatomy, report)
        anatomy = side_inputs.bound(anatomy, [0])
        batch = random_input(anatomy, seed)
        checks: dict[str, Callable[[ViTAnatomy, Tensor], object]] = {
            "truth check": truth_check,
            "gradient check": gradient_check,
        }
        if why := no_position_check(anatomy):
            report.add("position check", f"not run: {why}")
        else:
            checks["position check"] = position_check
        for name, check in checks.items():
            try:
                check(anatomy, batch)
                report.add(name, "passed", True)
            except LeGradError as error:
                report.add(name, str(error), False)
        if report.healthy:
            report.add("output", _output(explainer, anatomy))
            _costs(explainer, anatomy, batch, report, inputs)
    for note in anatomy.notes:
        report.add("note", note)
    return report


def _usual(explainer: Explainer) -> ViTAnatomy:
    """For what ``explain`` makes of images by default: processors may want another size than the weights are for."""
    try:
        return explainer.anatomy.at(explainer.input_size)
    except InputError:  # told when an image is explained
        return explainer.anatomy


def allowed_sizes(anatomy: ViTAnatomy, usual: geometry.Size | None = None) -> str:
    """In words: which input sizes the architecture takes.

    Args:
        anatomy: of the size that the weights are for.
        usual: (height, width) that images get by default; default that of the anatomy.
    """
    height, width = anatomy.image_size
    if usual is not None and usual != anatomy.image_size:
        own_size = f"{height} x {width}"
        return f"{allowed_sizes(anatomy).replace(own_size, f'{usual[0]} x {usual[1]}')}; the weights are for {own_size}"
    rows, cols = anatomy.stride or anatomy.patch_size
    spectrogram = anatomy.axes == ("frequency", "time")
    default = f"time {width} x frequency {height}" if spectrogram else f"{height} x {width}"
    for steps, words in (((2, 4), "any"), ((2, 2), "any square")):
        try:
            anatomy.at((height + steps[0] * rows, width + steps[1] * cols))
        except InputError:
            continue
        return f"{words} ({default} by default, patches of {anatomy.patch_size[0]} x {anatomy.patch_size[1]})"
    return f"{default} only"


def _facts(explainer: Explainer, anatomy: ViTAnatomy, report: Report) -> None:
    blocks = anatomy.blocks
    report.add("library", anatomy.library)
    report.add("model", f"{type(explainer.model).__name__}, vision tower {type(anatomy.tower).__name__}")
    parameters = sum(p.numel() for p in anatomy.tower.parameters())
    dtype = str(anatomy.dtype).removeprefix("torch.")
    report.add("parameters", f"{parameters / 1e6:.1f} M in the tower, {dtype} on {anatomy.device}")
    report.add("blocks", f"{len(blocks)} x {type(blocks[0]).__name__}")
    where = (
        "attentional pooler on every block's tokens" if anatomy.route == "pooler" else "self-attention of the blocks"
    )
    kind = {"fused": "fused (scaled_dot_product_attention)", "softmax": "eager (softmax)"}[anatomy.attention]
    side_by_side = (
        ""
        if anatomy.attentions == 1
        else f"; {anatomy.attentions} attentions, used: {list(anatomy.explained_attentions)}"
    )
    report.add("explained attention", f"{where}, {kind}{side_by_side}")
    report.add(
        "prefix tokens", f"{anatomy.num_prefix_tokens}, {anatomy.num_prefix_keys} of them keys in front of the patches"
    )
    grid = " x ".join(map(str, anatomy.grid))
    shape = " x ".join(map(str, anatomy.shape))
    axes = {"frames": " (frames, channels, height, width)", "frequency": " (time, frequency)"}.get(anatomy.axes[0], "")
    report.add("grid", f"{grid} ({', '.join(anatomy.axes)}) at {shape}{axes}")
    report.add("read-out", f"{anatomy.default_readout} by default, of {', '.join(sorted(anatomy.readouts))}")
    report.add("targets", _targets(explainer))
    report.add("input sizes", allowed_sizes(explainer.anatomy, _usual(explainer).image_size))


def _output(explainer: Explainer, anatomy: ViTAnatomy) -> str:
    """What the model returns, counted in a forward pass, and which names its classes have."""
    width, adapter = num_classes(anatomy, explainer.model), explainer.adapter
    if explainer.anatomy.output != "logits":
        return f"{explainer.anatomy.output} of {width} numbers"
    names = f"named {adapter.labels[0]!r}, ..." if adapter.labels else "without names: give labels= to legrad.wrap"
    return f"logits of {width} classes, {names}"


def _targets(explainer: Explainer) -> str:
    adapter, output = explainer.adapter, explainer.anatomy.output
    if output == "logits":
        labels = f"{len(adapter.labels)} labels" if adapter.labels else "no label names"
        return f"class indices, PREDICTED, callables; {labels}"
    if output == "embedding":
        texts = "texts, " if adapter.encode_text and adapter.tokenize else ""
        sounds = "sounds, " if adapter.audio_encoder else ""
        missing = " (texts need a tokenizer)" if adapter.encode_text and not adapter.tokenize else ""
        return f"{texts}{sounds}embeddings, Similar, callables{missing}"
    return "embeddings, Similar, callables (the model has no head)"


def _costs(
    explainer: Explainer, anatomy: ViTAnatomy, batch: Tensor, report: Report, inputs: Mapping[str, Tensor] | None
) -> None:
    """One measured explanation next to one bare forward pass."""

    def seconds(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        if anatomy.device.type == "cuda":
            torch.cuda.synchronize(anatomy.device)
        return time.perf_counter() - start

    def explain() -> object:
        return explainer.explain(batch, lambda feature: feature[:, 0], inputs=inputs)

    explain()
    forward_time = min(seconds(lambda: anatomy.run(batch)) for _ in range(3))
    explain_time = min(seconds(explain) for _ in range(3))
    report.add(
        "time for one image, one target",
        f"{explain_time:.3f} s, {explain_time / forward_time:.1f} x a bare forward pass",
    )
    weights = sum(p.numel() * p.element_size() for p in anatomy.tower.parameters())
    working = block_bytes(anatomy).working
    report.add("memory, estimated", f"{weights / _MEGA:.0f} MiB of weights, {working / _MEGA:.0f} MiB more per image")
