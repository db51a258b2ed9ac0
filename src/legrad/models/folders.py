"""Which library a folder of weights is of, for messages that say what to write instead."""

import json
from pathlib import Path


def hint(folder: str) -> str:
    """``"; did you mean 'hf:FOLDER'?"`` with the right prefix, or "" for what is no folder with a model."""
    path = Path(folder).expanduser()
    name = _name(path, folder)
    return f"; did you mean {name!r}?" if name else ""


def _name(path: Path, folder: str) -> str:
    if (path / "open_clip_config.json").is_file():
        return f"open_clip:local-dir:{folder}"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if not isinstance(config, dict):
        return ""
    if "architecture" in config:
        return f"timm:local-dir:{folder}"
    return f"hf:{folder}" if {"model_type", "architectures"} & config.keys() else ""
