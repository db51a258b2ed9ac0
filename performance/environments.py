"""A throw-away environment per rival: its own pins laid over the libraries of the running one."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from performance.contenders import Rival

DEFAULT = Path("~/.cache/legrad-benchmarks")
_DONE = "installed.txt"


def python_of(name: str, rival: Rival, folder: Path) -> Path:
    """The interpreter of a rival's environment, which is made if it is missing or has other pins.

    PyTorch alone is gigabytes: the running environment's site-packages are appended through a ``.pth`` file, so that
    only what the rival pins is downloaded, and both run on the same PyTorch.
    """
    home = folder.expanduser() / name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = "\n".join([sys.version, sys.prefix, *rival.pins, *rival.needs])
    done = home / _DONE
    if done.exists() and done.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)})
    shared = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    # appended behind its own folder: what it installs itself comes first
    Path(site, "zz-shared.pth").write_text("\n".join(sorted(shared)) + "\n")
    # the same version may be in the shared folder already: the pins have to lie in this one all the same
    _install(python, "--no-deps", "--ignore-installed", *rival.pins)
    if rival.needs:
        _install(python, *rival.needs)
    done.write_text(wanted)
    return python


def _install(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=clean())
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)}: {finished.stderr.strip()[-2000:]}")


def clean() -> dict[str, str]:
    """Our environment variables without the one that would put our ``legrad`` in front."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
