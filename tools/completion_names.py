"""Writes the names that shells complete: ``python -m tools.completion_names``."""

import json

from legrad.cli.completion import NAMES
from legrad.methods import METHODS
from legrad.models.registry import available
from legrad.versions import versions

LIBRARIES = ("open_clip_torch", "timm", "torchvision")


def names() -> dict[str, object]:
    """The content of the file: all methods, and the models that can be explained."""
    models = [name for name, reason in available() if not reason and not name.startswith("hf:")]
    return {"versions": versions(*LIBRARIES), "methods": list(METHODS), "models": models}


def main() -> None:
    """Write the file."""
    NAMES.write_text(json.dumps(names(), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
