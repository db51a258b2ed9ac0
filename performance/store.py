"""One JSON file per run: every sample, with the settings and the machine; complete after each case."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from performance.cases import Case

ROOT = Path(__file__).parent.parent
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "legrad")


class Store:
    """The samples of a run, on disk after every case.

    Args:
        path: the JSON file.
        settings: of all cases; samples of other settings are dropped.
        machine: facts; samples of another machine are dropped.
    """

    def __init__(self, path: Path, settings: dict[str, Any], machine: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": settings, "machine": machine, "complete": False, "cases": {}}
        self.dropped = 0
        if path.exists():
            content = json.loads(path.read_text())
            if (content["settings"], content["machine"]) == (settings, machine):
                self.content = content
            else:
                self.dropped = len(content["cases"])

    @property
    def complete(self) -> bool:
        """Whether the last full run ended without a failure."""
        return bool(self.content["complete"])

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Case key -> its samples, or ``{"error": ...}``."""
        return self.content["cases"]

    def begin(self, cases: Iterable[Case], full: bool) -> list[Case]:
        """The cases that are still to be measured.

        A full run goes on where an unfinished one stopped, failures again included, and starts anew after a complete
        one. A run of some cases (``full=False``) measures those again and keeps the others.
        """
        cases = list(cases)
        if full and self.complete:
            self.content["cases"] = {}
            self.content["complete"] = False
        if not full:
            return cases
        return [case for case in cases if self.entries.get(case.key, {"error": ""}).get("error") is not None]

    def add(self, case: Case, entry: dict[str, Any]) -> None:
        """Store the samples of a case, and write the file."""
        self.entries[case.key] = {"case": case.as_dict(), **entry}
        self.save()

    def finish(self, cases: Iterable[Case]) -> None:
        """After the last case of a full run."""
        self.content["complete"] = all("error" not in self.entries.get(case.key, {"error": ""}) for case in cases)
        self.save()

    def save(self) -> None:
        """Write a new file beside the old one and put it in its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(self.content, indent=1))
        draft.replace(self.path)


def machine(device: str) -> dict[str, Any]:
    """Facts of the machine and the libraries on which the numbers depend."""
    import torch

    facts: dict[str, Any] = {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gb": round(int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 1e6, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def revision() -> str:
    """The commit that is measured, with "+changes" if the package differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _field(path: str, name: str) -> str | None:
    try:
        rows = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((row.partition(":")[2].strip() for row in rows if row.partition(":")[0].strip() == name), None)
