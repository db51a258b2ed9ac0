"""Measure one case in this process: the case is JSON on stdin, the samples are written as JSON to a file named there.

It runs in this project's environment and in the rivals', where ``legrad`` is the authors' package.
"""

import gc
import importlib.metadata
import json
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from performance import memory
from performance.cases import Case
from performance.contenders import RIVALS, Call, ours, prove
from performance.sampling import interleave
from performance.workloads import Workload, build, weights

DISTRIBUTIONS = ("torch", "torchvision", "open_clip_torch", "timm", "legrad_torch", "torchcam", "grad-cam")


def measure_time(case: Case, device: torch.device, repeats: int | None, budget: float) -> dict[str, Any]:
    """Seconds of the bare forward and the contender, interleaved."""
    workload = build(case, device)
    calls: dict[str, Call] = {"bare": workload.bare}
    if case.contender == "ours":
        calls["warm"], cold = ours(workload, case)
        # the truth check runs on one image, whatever batch and prompts are: it is interleaved where it matters and is
        # fast; elsewhere the first use is measured once, as the warm-up
        if case.prompts == 1 and case.batch <= 2 and case.size <= 224:
            calls["cold"] = cold
    else:
        calls["warm"] = RIVALS[case.contender].start(workload.copy(), case)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    samples, first = interleave(calls, repeats, budget, synchronise)
    return {"seconds": samples, "first": first}


def measure_memory(case: Case, device: torch.device) -> dict[str, Any]:
    """Bytes before and at the peak of one first call, after a bare forward at batch 1."""
    empty = memory.resident(device)
    workload = build(case, device)
    (_at_trained_size(case, device, workload) if case.resized else workload.single()).bare()
    call = _contender(case, workload)
    gc.collect()
    before = memory.resident(device)
    start = time.perf_counter()
    highest, how = memory.peak(call, device)
    seconds = time.perf_counter() - start
    return {
        "empty": empty,
        "before": before,
        "peak": highest,
        "weights": weights(workload),
        "how": how,
        "seconds": seconds,
    }


def _at_trained_size(case: Case, device: torch.device, workload: Workload) -> Workload:
    """The workload with an image of the size that the model was built for."""
    return replace(workload, images=torch.randn(1, 3, 224, 224, dtype=workload.images.dtype, device=device))


def _contender(case: Case, workload: Workload) -> Call:
    if case.contender == "bare":
        return workload.bare
    if case.contender == "ours":
        return ours(workload, case)[0]
    return RIVALS[case.contender].start(workload, case)


def versions() -> dict[str, str]:
    """Versions of what is installed here; not by ``legrad.versions``, which environments of rivals lack."""
    installed = {}
    for name in DISTRIBUTIONS:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def main() -> None:
    """Measure the case on stdin and write its file."""
    order = json.load(sys.stdin)
    case, device = Case(**order["case"]), torch.device(order["device"])
    torch.set_num_threads(order["threads"])
    # expected warnings: random models have flat and similar maps, and two packages are named legrad
    warnings.simplefilter("ignore")
    if order["environment"]:
        prove(RIVALS[case.contender], Path(order["environment"]))
    if device.type == "cpu" and memory.available() < case.needs:
        raise MemoryError(f"{case.needs:g} GB of free memory are needed, {memory.available():.1f} GB are free")
    load = os.getloadavg()[0]
    if case.measure == "memory":
        result = measure_memory(case, device)
    else:
        result = measure_time(case, device, order["repeats"], order["budget"])
    result |= {"versions": versions(), "load": load}
    Path(order["answer"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
