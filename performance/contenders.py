"""Everything that is timed: (subject, case) -> a call that makes the maps once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from performance.cases import Case
from performance.subjects import Subject

Call = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """Somebody else's way to a map.

    Attributes:
        title: for the tables.
        start: (its own subject, case) -> the call; may change the model.
        pins: packages of exactly these versions in an environment of its own; none means that ours will do.
        needs: what else they import, any version.
        modules: what has to be imported from that environment and from nowhere else.
    """

    title: str
    start: Callable[[Subject, Case], Call]
    pins: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def ours(subject: Subject, case: Case) -> tuple[Call, Call]:
    """(warm, cold): an explainer that has seen this input shape, and one that has to check its truth first."""
    import legrad

    # read-outs, layers and memory as a user would give them; nothing inside the library is touched
    settings: dict[str, Any] = {"layers": case.layers, "readout": case.readout, "memory": "auto"}
    explainer = legrad.wrap(subject.model)

    def warm() -> Any:
        return explainer.explain(subject.images, subject.targets, **settings)

    def cold() -> Any:
        return legrad.wrap(subject.model).explain(subject.images, subject.targets, **settings)

    return warm, cold


def _authors(subject: Subject, case: Case) -> Call:
    import legrad  # theirs, in this environment

    depth = len(subject.model.visual.transformer.resblocks)  # type: ignore[union-attr, arg-type]
    # the class is theirs: mypy sees ours, whose drop-in name takes the same arguments
    wrapper = legrad.LeWrapper(subject.model, layer_index=0 if case.layers is None else depth - case.layers)
    return lambda: wrapper.compute_legrad(subject.targets, subject.images)


def _torchcam(subject: Subject, case: Case) -> Call:
    from torchcam.methods import LeGrad

    model = subject.model
    blocks = list(model.encoder.layers)  # type: ignore[union-attr, arg-type]
    extractor = LeGrad(model, blocks if case.layers is None else blocks[-case.layers :])

    def call() -> Any:
        with torch.enable_grad():
            logits = model(subject.images)
        return extractor(subject.targets[0], logits)

    return call


def _gradcam(subject: Subject, case: Case) -> Call:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model: Any = subject.model
    rows, cols = model.patch_embed.grid_size
    prefix = model.num_prefix_tokens

    def on_the_grid(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].unflatten(1, (rows, cols)).permute(0, 3, 1, 2)

    # the package's own advice for ViTs: the first norm of the last block
    cam = GradCAM(model, [model.blocks[-1].norm1], reshape_transform=on_the_grid)
    targets = [ClassifierOutputTarget(subject.targets[0])] * len(subject.images)
    return lambda: cam(subject.images, targets)


def _chefer(subject: Subject, case: Case) -> Call:
    from performance.chefer import CheferCAM

    method = CheferCAM(subject.model)
    return lambda: method(subject.images, subject.targets[0]).cpu()


RIVALS = {
    "authors": Rival(
        "legrad_torch 1.1 (the authors)",
        _authors,
        ("legrad_torch==1.1", "open_clip_torch==2.23.0"),
        ("einops", "opencv-python-headless", "requests", "ftfy", "regex", "sentencepiece"),
        ("legrad", "open_clip"),
    ),
    "torchcam": Rival("torchcam 0.5 LeGrad", _torchcam, ("torchcam==0.5.0",), (), ("torchcam",)),
    "gradcam": Rival(
        "grad-cam 1.5.7 GradCAM",
        _gradcam,
        ("grad-cam==1.5.7",),
        ("ttach", "opencv-python-headless", "scikit-learn", "tqdm"),
        ("pytorch_grad_cam",),
    ),
    "chefer": Rival("CheferCAM (from the paper, autograd)", _chefer),
}


def prove(rival: Rival, environment: Path) -> None:
    """Stop if a module comes from somewhere else: two packages share the import name ``legrad``."""
    import importlib

    for name in rival.modules:
        found = Path(str(importlib.import_module(name).__file__)).resolve()
        if not found.is_relative_to(environment.resolve()):
            raise RuntimeError(f"{name} was imported from {found}, not from {environment}")
