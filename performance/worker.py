"""One case in this process: the case comes as JSON on stdin, its samples go as JSON to the file named there.

Runs in our environment and in the rivals', where ``legrad`` is the authors' package.
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
from performance.subjects import Subject, build, weights

DISTRIBUTIONS = ("torch", "torchvision", "open_clip_torch", "timm", "legrad_torch", "torchcam", "grad-cam")


def measure_time(case: Case, device: torch.device, repeats: int | None, budget: float) -> dict[str, Any]:
    """Seconds of the bare forward and the contender, interleaved."""
    subject = build(case, device)
    calls: dict[str, Call] = {"bare": subject.bare}
    if case.contender == "ours":
        calls["warm"], cold = ours(subject, case)
        # the check takes one image whatever batch and prompts are: in turns where that shows and is quick; elsewhere
        # the first use is read once, as the warm-up
        if case.prompts == 1 and case.batch <= 2 and case.size <= 224:
            calls["cold"] = cold
    else:
        calls["warm"] = RIVALS[case.contender].start(subject.copied(), case)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    samples, first = interleave(calls, repeats, budget, synchronise)
    return {"seconds": samples, "first": first}


def measure_memory(case: Case, device: torch.device) -> dict[str, Any]:
    """Bytes before and at the peak of one first call, after a bare forward at batch 1."""
    empty = memory.resident(device)
    subject = build(case, device)
    (_own_size(case, device, subject) if case.resized else subject.small()).bare()
    call = _contender(case, subject)
    gc.collect()
    before = memory.resident(device)
    start = time.perf_counter()
    highest, how = memory.peak(call, device)
    seconds = time.perf_counter() - start
    return {
        "empty": empty,
        "before": before,
        "peak": highest,
        "weights": weights(subject),
        "how": how,
        "seconds": seconds,
    }


def _own_size(case: Case, device: torch.device, subject: Subject) -> Subject:
    """The subject with an image of the size that the model was made for."""
    return replace(subject, images=torch.randn(1, 3, 224, 224, dtype=subject.images.dtype, device=device))


def _contender(case: Case, subject: Subject) -> Call:
    if case.contender == "bare":
        return subject.bare
    if case.contender == "ours":
        return ours(subject, case)[0]
    return RIVALS[case.contender].start(subject, case)


def versions() -> dict[str, str]:
    """Of the libraries that this environment has."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure the one case and write its file."""
    order = json.load(sys.stdin)
    case, device = Case(**order["case"]), torch.device(order["device"])
    torch.set_num_threads(order["threads"])
    # random models have flat and look-alike maps, and the authors' name is taken: all of it is on purpose
    warnings.simplefilter("ignore")
    if order["environment"]:
        prove(RIVALS[case.contender], Path(order["environment"]))
    if device.type == "cpu" and memory.available() < case.needs:
        raise MemoryError(f"{case.needs:g} GB of free memory are needed, {memory.available():.1f} GB are there")
    load = os.getloadavg()[0]
    if case.measure == "memory":
        result = measure_memory(case, device)
    else:
        result = measure_time(case, device, order["repeats"], order["budget"])
    result |= {"versions": versions(), "load": load}
    Path(order["answer"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
