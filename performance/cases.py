"""The cases that are measured, as plain data that every environment can import (``legrad`` may be the authors')."""

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

B16, L14, BIGG = "open_clip/ViT-B-16", "open_clip/ViT-L-14", "open_clip/ViT-bigG-14"
SIGLIP = "open_clip/ViT-B-16-SigLIP"
TORCHVISION, TIMM = "torchvision/vit_b_16", "timm/vit_base_patch16_224"


@dataclass(frozen=True)
class Case:
    """One contender on one model, measured in a process of its own.

    Attributes:
        measure: "time": interleaved with the bare forward; "memory": peak of one first call.
        contender: "bare", "ours", or a name in ``contenders.RIVALS``.
        model: "LIBRARY/NAME", random weights.
        size: input in pixels, square.
        batch: images per call.
        prompts: targets per image.
        layers: the last k blocks, None for all.
        readout: "auto", "published" or "native"; rivals ignore it.
        dtype: of the weights and the input.
        resized: the model keeps its trained size and the explainer brings it to ``size``; bare forwards cannot.
        cuda: for GPUs only.
        needs: free memory in GB that the case must have to start, on the CPU.
        processes: fresh processes, one after the other, of a memory case.
        quick: belongs to the quick subset.
    """

    measure: str
    contender: str
    model: str
    size: int = 224
    batch: int = 1
    prompts: int = 1
    layers: int | None = None
    readout: str = "auto"
    dtype: str = "float32"
    resized: bool = False
    cuda: bool = False
    needs: float = 2
    processes: int = 1
    quick: bool = False

    @property
    def key(self) -> str:
        """A name, unique in ``CASES``, that ``--only`` matches."""
        layers = "all" if self.layers is None else f"last{self.layers}"
        parts = [self.measure, self.contender, self.model, f"{self.size}px", f"batch{self.batch}"]
        parts += [f"prompts{self.prompts}", layers, self.readout, self.dtype]
        return ":".join(parts)

    @property
    def label(self) -> str:
        """The model's name without its library."""
        return self.model.split("/")[1]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``Case(**...)`` reads it."""
        return asdict(self)


def _ours() -> Iterator[Case]:
    def time(model: str, **settings: Any) -> Case:
        return Case("time", "ours", model, **settings)

    # the headline settings
    for batch in (1, 2, 8):
        for layers in (2, None):
            for prompts in (1, 8):
                quick = batch != 2 and prompts == 1
                yield time(B16, batch=batch, layers=layers, prompts=prompts, quick=quick)
    # growth with prompts: 1 and 8 stand above
    for prompts in (4, 16, 64):
        yield time(B16, prompts=prompts, quick=prompts == 4)
    for prompts in (4, 16):
        yield time(B16, batch=8, prompts=prompts)
    # growth with layers: 2 and all stand above
    for layers in (4, 8):
        yield time(B16, batch=8, layers=layers)
    # class-token read-out
    for batch in (1, 8):
        for prompts in (1, 8, 16, 64):
            yield time(B16, batch=batch, prompts=prompts, readout="native", quick=batch == 1 and prompts == 16)
    # larger inputs
    for batch, layers, prompts in ((1, 2, 1), (1, None, 1), (1, None, 8), (8, None, 1)):
        yield time(B16, size=448, batch=batch, layers=layers, prompts=prompts)
    for layers, readout in ((2, "auto"), (None, "auto"), (None, "native")):
        yield time(B16, size=1022, layers=layers, readout=readout, needs=3)
    # the larger tower
    for batch, layers, prompts in ((1, 2, 1), (1, None, 1), (1, None, 8), (2, None, 1), (8, 2, 1), (8, None, 1)):
        yield time(L14, batch=batch, layers=layers, prompts=prompts, needs=3)
    yield time(L14, batch=1, prompts=16, readout="native", needs=3)
    yield time(L14, size=448, needs=4)
    # the pooler route; its native read-out is "auto"
    for batch, layers, prompts in ((1, 2, 1), (1, None, 1), (2, None, 1), (8, None, 1), (1, None, 8), (1, None, 64)):
        yield time(SIGLIP, batch=batch, layers=layers, prompts=prompts, quick=batch == 1 and prompts == 1)
    yield time(SIGLIP, batch=8, prompts=8)
    yield time(SIGLIP, size=448)
    yield time(SIGLIP, size=1022, needs=3)
    # the rate on a GPU
    yield time(B16, batch=256, dtype="bfloat16", cuda=True)


def _rivals() -> Iterator[Case]:
    for layers in (2, None):
        for prompts in (1, 4, 16):
            yield Case("time", "authors", B16, layers=layers, prompts=prompts, needs=8, quick=prompts == 4)
    # ours with the authors' default, where it is not measured above
    for prompts in (4, 16):
        yield Case("time", "ours", B16, layers=2, prompts=prompts, quick=prompts == 4)
    for contender, model in (("torchcam", TORCHVISION), ("gradcam", TIMM), ("chefer", TIMM)):
        yield Case("time", contender, model, quick=contender != "gradcam")
    for model in (TORCHVISION, TIMM):
        yield Case("time", "ours", model, quick=True)


def _memory() -> Iterator[Case]:
    yield Case("memory", "bare", B16, batch=64, processes=3, needs=4)
    for layers in (2, None):
        yield Case("memory", "ours", B16, batch=64, layers=layers, processes=3, needs=4)
    for prompts in (1, 4, 16):
        for contender in ("authors", "ours"):
            needs = 8 if contender == "authors" else 2
            yield Case("memory", contender, B16, prompts=prompts, processes=3, needs=needs, quick=prompts == 1)
    yield Case("memory", "ours", L14, size=1022, resized=True, needs=9)
    yield Case("memory", "ours", BIGG, dtype="bfloat16", needs=9)


CASES: tuple[Case, ...] = (*_ours(), *_rivals(), *_memory())


def select(cases: Iterable[Case], quick: bool, only: str | None, cuda: bool) -> list[Case]:
    """The cases to run. ``only`` is a part of the key, or a pattern with ``*`` and ``?`` for the whole key."""
    selection = [case for case in cases if (case.quick or not quick) and (cuda or not case.cuda)]
    if only is not None:
        pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"
        selection = [case for case in selection if fnmatch.fnmatchcase(case.key, pattern)]
    return selection
