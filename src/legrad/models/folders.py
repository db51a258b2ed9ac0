"""Which library a folder of weights is of, for messages that suggest the right name."""

import os
from pathlib import Path

from legrad.errors import InputError
from legrad.models.files import read_json


def hint(folder: str) -> str:
    """``"; did you mean 'hf:FOLDER'?"`` with the right prefix, or "" if the folder holds no model."""
    path = Path(os.path.expanduser(folder))  # which raises nothing for a user that is not there
    name = _model_name(path, folder)
    return f"; did you mean {name!r}?" if name else ""


def _model_name(path: Path, folder: str) -> str:
    """The name that ``legrad.load`` takes for a folder, by the files of its library; "" if they are of none."""
    if os.path.isfile(path / "open_clip_config.json"):  # False for names that cannot be
        return f"open_clip:local-dir:{folder}"
    try:
        config = read_json(path / "config.json")
    except InputError:
        return ""
    if isinstance(config.get("architecture"), str):
        return f"timm:local-dir:{folder}"
    return f"hf:{folder}" if {"model_type", "architectures"} & config.keys() else ""
