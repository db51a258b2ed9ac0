"""The packages that are measured: (workload, case) -> a call that computes the maps once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from performance.cases import Case
from performance.workloads import Workload

Call = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """Another package, or another method.

    Attributes:
        title: for the tables.
        start: (workload, case) -> the call; may change the workload's model.
        pins: packages of exactly these versions in a separate environment; without any, this one is used.
        needs: packages that they import besides, in any version.
        modules: must be imported from that environment and from nowhere else.
    """

    title: str
    start: Callable[[Workload, Case], Call]
    pins: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def ours(workload: Workload, case: Case) -> tuple[Call, Call]:
    """(warm, cold): an explainer that knows this input shape, and one that has to run the truth check first."""
    import legrad

    # only public arguments, as a user would pass them
    settings: dict[str, Any] = {"layers": case.layers, "readout": case.readout, "memory": "auto"}
    explainer = legrad.wrap(workload.model)

    def warm() -> Any:
        return explainer.explain(workload.images, workload.targets, **settings)

    def cold() -> Any:
        return legrad.wrap(workload.model).explain(workload.images, workload.targets, **settings)

    return warm, cold


def _authors(workload: Workload, case: Case) -> Call:
    import legrad  # theirs, in this environment

    depth = len(workload.model.visual.transformer.resblocks)  # type: ignore[union-attr, arg-type]
    # the class is theirs: mypy sees ours, whose drop-in name takes the same arguments
    wrapper = legrad.LeWrapper(workload.model, layer_index=0 if case.layers is None else depth - case.layers)
    return lambda: wrapper.compute_legrad(workload.targets, workload.images)


def _torchcam(workload: Workload, case: Case) -> Call:
    from torchcam.methods import LeGrad

    model = workload.model
    blocks = list(model.encoder.layers)  # type: ignore[union-attr, arg-type]
    extractor = LeGrad(model, blocks if case.layers is None else blocks[-case.layers :])

    def call() -> Any:
        with torch.enable_grad():
            logits = model(workload.images)
        return extractor(workload.targets[0], logits)

    return call


def _gradcam(workload: Workload, case: Case) -> Call:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model: Any = workload.model
    rows, cols = model.patch_embed.grid_size
    prefix = model.num_prefix_tokens

    def on_the_grid(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].unflatten(1, (rows, cols)).permute(0, 3, 1, 2)

    # the package's own advice for ViTs: the first norm of the last block
    cam = GradCAM(model, [model.blocks[-1].norm1], reshape_transform=on_the_grid)
    targets = [ClassifierOutputTarget(workload.targets[0])] * len(workload.images)
    return lambda: cam(workload.images, targets)


def _chefer(workload: Workload, case: Case) -> Call:
    from performance.chefer import CheferCAM

    method = CheferCAM(workload.model)
    return lambda: method(workload.images, workload.targets[0]).cpu()


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
    """Raise ``RuntimeError`` if a module comes from elsewhere: two packages share the import name ``legrad``."""
    import importlib

    for name in rival.modules:
        source = Path(str(importlib.import_module(name).__file__)).resolve()
        if not source.is_relative_to(environment.resolve()):
            raise RuntimeError(f"{name} was imported from {source}, not from {environment}")
