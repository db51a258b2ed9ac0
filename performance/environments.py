"""A disposable environment per rival: its pins on top of the libraries of the running environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from performance.contenders import Rival

DEFAULT = Path("~/.cache/legrad-benchmarks")
_RECORD = "installed.txt"


def python_of(name: str, rival: Rival, folder: Path) -> Path:
    """The interpreter of a rival's environment, which is created if it is missing or has other pins.

    PyTorch alone is gigabytes: the running environment's site-packages are appended through a ``.pth`` file, so that
    only what the rival pins is downloaded, and both run on the same PyTorch.
    """
    home = folder.expanduser() / name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    contents = "\n".join([sys.version, sys.prefix, *rival.pins, *rival.needs])
    record = home / _RECORD
    if record.exists() and record.read_text() == contents:
        return python
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)})
    shared = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    # appended after its own folder, so that its own packages take precedence
    Path(site, "zz-shared.pth").write_text("\n".join(sorted(shared)) + "\n")
    # the pins have to be installed here even if the shared folder has the same version
    _install(python, "--no-deps", "--ignore-installed", *rival.pins)
    if rival.needs:
        _install(python, *rival.needs)
    record.write_text(contents)
    return python


def _install(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=clean())
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {process.stderr.strip()[-2000:]}")


def clean() -> dict[str, str]:
    """The environment variables without PYTHONPATH, which would put this project's ``legrad`` first."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
