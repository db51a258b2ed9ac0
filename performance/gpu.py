"""Everything to find out on a GPU, in one short run: ``python -m performance.gpu``.

Are the maps right (20 models, float32 and bfloat16, against float64 on the CPU), how many images per second beside the
bare forward, how much memory, what do prompts cost, and which chunks are best. ``--dry`` runs the same steps on the CPU
with tiny models, as a test of the script.
"""

import contextlib
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import legrad
from legrad import relevance
from legrad.core import routes
from performance.cases import B16, L14, Case
from performance.sampling import interleave, ratios
from performance.store import ROOT, revision
from performance.workloads import Workload, build

# of the largest value between float32 and float64, at most; correlation between bfloat16 and float64, at least
FLOAT32, BFLOAT16 = 1e-4, 0.9
CHUNKS = tuple(1 << power for power in (24, 26, 28, 30))


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        models: names as in ``cases``, with random weights, whose maps are compared.
        size: of their images, in pixels.
        speed: the cases whose time and memory are measured.
        seconds: that the readings of one case may take.
    """

    models: Sequence[str]
    size: int
    speed: Sequence[Case]
    seconds: float


def _case(model: str, **settings: Any) -> Case:
    return Case("time", "ours", model, dtype="bfloat16", **settings)


FULL = Plan(
    models=(
        *(f"open_clip/{name}" for name in ("ViT-B-32", "ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14")),
        *(f"open_clip/{name}" for name in ("coca_ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16", "MobileCLIP-B")),
        *(f"timm/{name}" for name in ("vit_tiny_patch16_224", "vit_base_patch16_224", "deit3_small_patch16_224")),
        *(
            f"timm/{name}"
            for name in ("vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "beit_base_patch16_224")
        ),
        *(f"timm/{name}" for name in ("vit_base_patch16_siglip_224", "vit_base_patch16_clip_224", "cait_xxs24_224")),
        *(f"torchvision/{name}" for name in ("vit_b_16", "vit_b_32", "vit_l_16")),
    ),
    size=224,
    speed=(
        *(_case(model, batch=batch) for model in (B16, L14) for batch in (64, 256)),
        *(_case(B16, batch=64, prompts=prompts) for prompts in (4, 16, 64)),
        *(_case(B16, batch=64, prompts=prompts, readout="native") for prompts in (1, 64)),
    ),
    seconds=3,
)
_TINY = "timm/vit_tiny_patch16_224"
DRY = Plan(models=(_TINY,), size=32, speed=(Case("time", "ours", _TINY, size=32, batch=2, prompts=2),), seconds=0)


def maps_are_right(name: str, size: int, device: torch.device) -> dict[str, Any]:
    """Compare the maps of one model on the device with those of float64 on the CPU.

    Returns:
        "float32": largest difference over the largest value; "bfloat16": correlation; "right": whether both are within
        the limits.
    """
    workload = build(Case("time", "ours", name, size=size, batch=2, prompts=2), torch.device("cpu"))
    exact = _map(workload, workload.model, torch.device("cpu"), torch.float64).flatten(2)
    found = {
        dtype: _map(workload, workload.model, device, dtype).double().flatten(2)
        for dtype in (torch.float32, torch.bfloat16)
    }
    difference = float((found[torch.float32] - exact).abs().max() / exact.abs().max())
    pairs = zip(found[torch.bfloat16].flatten(0, 1), exact.flatten(0, 1), strict=True)
    correlation = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs)
    right = difference <= FLOAT32 and correlation >= BFLOAT16
    return {"float32": difference, "bfloat16": correlation, "right": right}


def _map(workload: Workload, model: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    explainer = legrad.wrap(copy.deepcopy(model).to(device, dtype))
    return explainer.explain(workload.images.to(device, dtype), workload.targets).relevance


def rate(case: Case, device: torch.device, seconds: float) -> dict[str, Any]:
    """Images per second of the bare forward and of ours, their ratio, and the memory of one call beyond the model's.

    Returns:
        "bare", "ours": images per second; "share": ours / bare; "gigabytes": None on the CPU; "chunk": the best one for
        ours, with "chunks": chunk -> images per second.
    """
    workload = build(case, device)
    explainer = legrad.wrap(workload.model)

    def ours() -> None:
        readout: Any = case.readout  # a plain str in the cases
        explainer.explain(workload.images, workload.targets, layers=case.layers, readout=readout)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    ours()
    gigabytes = None
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        ours()
        gigabytes = (torch.cuda.max_memory_allocated(device) - before) / 1e9
    samples, _ = interleave({"bare": workload.bare, "ours": ours}, None, seconds, synchronise)
    by_chunk = {}
    for chunk in CHUNKS:
        with chunks_of(chunk, device):
            by_chunk[chunk] = case.batch / _median(ours, synchronise)
    return {
        "case": case.as_dict(),
        "bare": case.batch / statistics.median(samples["bare"]),
        "ours": case.batch / statistics.median(samples["ours"]),
        "share": 1 / ratios(samples["ours"], samples["bare"]).median,
        "gigabytes": gigabytes,
        "chunks": by_chunk,
        "chunk": max(by_chunk, key=by_chunk.__getitem__),
    }


@contextlib.contextmanager
def chunks_of(numel: int, device: torch.device) -> Iterator[None]:
    """A with-block in which the formula and the closed forms work on chunks of so many elements."""
    tables, key = (relevance._CHUNK_NUMEL, routes._CHUNK_NUMEL), device.type == "cuda"
    old = [table[key] for table in tables]
    try:
        for table in tables:
            table[key] = numel
        yield
    finally:
        for table, value in zip(tables, old, strict=True):
            table[key] = value


def _median(call: Callable[[], None], synchronise: Callable[[], None], count: int = 3) -> float:
    readings = []
    for _ in range(count):
        synchronise()
        start = time.perf_counter()
        call()
        synchronise()
        readings.append(time.perf_counter() - start)
    return statistics.median(readings)


def page_part(content: dict[str, Any]) -> str:
    """The results, as Markdown."""
    lines = [f"## On a GPU: {content['device']}", ""]
    lines += [
        "| model | float32 against float64, largest difference | bfloat16, correlation | |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in content["maps"].items():
        if "error" in row:
            lines.append(f"| {name} | | | {row['error']} |")
        else:
            verdict = "right" if row["right"] else "WRONG"
            lines.append(f"| {name} | {row['float32']:.1e} | {row['bfloat16']:.4f} | {verdict} |")
    lines += ["", "| case | bare, images/s | ours, images/s | share | extra memory, GB | best chunk |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for key, row in content["speed"].items():
        if "error" in row:
            lines.append(f"| {key} | {row['error']} | | | | |")
            continue
        memory = "" if row["gigabytes"] is None else f"{row['gigabytes']:.2f}"
        numbers = f"{row['bare']:,.0f} | {row['ours']:,.0f} | {row['share']:.2f}"
        lines.append(f"| {key} | {numbers} | {memory} | 2^{int(row['chunk']).bit_length() - 1} |")
    lines += ["", f"Measured by `python -m performance.gpu` at {content['revision']}, torch {torch.__version__}."]
    return "\n".join(lines) + "\n"


def _tried(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """The result, or {"error": ...}: a failure ends only its line."""
    try:
        return function(*args)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ...")] = "cuda",
    dry: Annotated[bool, typer.Option("--dry", help="Tiny models on the CPU: tests the script.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = ROOT / "docs" / "performance",
) -> None:
    """Check and measure; about five minutes on one GPU. Results are written after every step."""
    warnings.simplefilter("ignore")
    where, plan = (torch.device("cpu"), DRY) if dry else (torch.device(device), FULL)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "none, a dry run on the CPU"
    content: dict[str, Any] = {"device": name, "revision": revision(), "maps": {}, "speed": {}}
    out.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        (out / "gpu.json").write_text(json.dumps(content, indent=1))
        (out / "gpu.md").write_text(page_part(content))

    # the speed first: it is what only this machine can tell
    for case in plan.speed:
        content["speed"][case.key] = _tried(rate, case, where, plan.seconds)
        save()
    for model in plan.models:
        content["maps"][model] = _tried(maps_are_right, model, plan.size, where)
        save()
    typer.echo(page_part(content))
    if not all(row.get("right") for row in content["maps"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
