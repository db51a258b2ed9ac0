"""Which library a folder of weights is of, for messages that suggest the right name."""

import json
from pathlib import Path


def hint(folder: str) -> str:
    """``"; did you mean 'hf:FOLDER'?"`` with the right prefix, or "" if the folder holds no model."""
    path = Path(folder).expanduser()
    name = _model_name(path, folder)
    return f"; did you mean {name!r}?" if name else ""


def _model_name(path: Path, folder: str) -> str:
    """The name that ``legrad.load`` takes for a folder, by the files of its library; "" if they are of none."""
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
