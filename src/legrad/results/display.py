"""A figure in front of the user's eyes: in a notebook, or in the system's viewer of images."""

import importlib
import io
import os
import sys
from typing import Any

from PIL import Image

from legrad.errors import warn


def show(png: bytes) -> None:
    """Show an image.

    Warns:
        UserWarning: there is no screen, and no notebook.
    """
    notebook = _notebook()
    if notebook is not None:
        notebook.display(notebook.Image(data=png, format="png"))
        return
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        warn("there is no screen to show a figure on; save it: explanation.figure().savefig('figure.png')")
        return
    with Image.open(io.BytesIO(png)) as image:
        image.show(title="legrad")


def _notebook() -> Any:
    """``IPython.display`` if this process is a notebook's kernel, else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return importlib.import_module("IPython.display")
