"""Peak memory of a call, and the memory in use before it."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
BY_MARK = "VmHWM, reset through /proc/self/clear_refs"
BY_USAGE = "ru_maxrss, which also counts what came before the call"
BY_DEVICE = "torch.cuda.max_memory_allocated"


def _status(field: str) -> int:
    for row in _STATUS.read_text().splitlines():
        if row.startswith(f"{field}:"):
            return int(row.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def resident(device: torch.device) -> int:
    """Bytes in use now: resident set of this process, or allocated on the GPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def peak(call: Callable[[], Any], device: torch.device) -> tuple[int, str]:
    """(bytes in use at the call's peak, how that was measured)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device), BY_DEVICE
    how = BY_MARK
    try:
        _RESET.write_text("5")  # "peak resident set size := current", proc_pid_clear_refs(5)
    except OSError:
        how = BY_USAGE
    call()
    if how == BY_MARK:
        return _status("VmHWM"), how
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, how


def available() -> float:
    """Free memory of the machine in GB, as the kernel counts it."""
    for row in Path("/proc/meminfo").read_text().splitlines():
        if row.startswith("MemAvailable:"):
            return int(row.split()[1]) / 1e6
    raise RuntimeError("/proc/meminfo has no MemAvailable")
