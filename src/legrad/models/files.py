"""Files of weights and configurations: which one is damaged, and how large a model one asks for."""

import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import psutil
import torch

from legrad.checks import first_line
from legrad.errors import InputError

_CHECKPOINTS = (".bin", ".pt", ".pth", ".ckpt")
_OBJECTS = ("config", "tokenizer", "index", "map", "vocab")  # in names of files that hold JSON objects
# numbers of a configuration by what they count; a nested part has its own
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth", "layers", "encoder_layers")
_WIDTHS = ("hidden_size", "d_model", "width", "embed_dim", "dim")
_TABLES = ("vocab_size", "max_position_embeddings", "num_labels", "num_classes", "context_length", "num_patches")
_MOST_LAYERS = 10_000
# bytes: of a parameter in half precision, of what Python keeps for a layer, and for an entry of a table
_PARAMETER, _LAYER, _ENTRY = 2, 100_000, 100


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: no such file, no JSON, nested too deeply, or something else than an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, expected a JSON object")
    return content


def damage(path: Path) -> str:
    """Name and fault of the first damaged file of a folder, or of a single file; "" if there is none."""
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    except OSError as error:
        return f"{path.name}: {first_line(error)}"
    for file in files:
        if fault := _fault(file, file.suffix.lower() in _CHECKPOINTS or not path.is_dir()):
            return f"{file.name}: {fault}"
    return ""


def _fault(file: Path, is_checkpoint: bool) -> str:
    try:
        if file.suffix.lower() == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict) and any(word in file.name for word in _OBJECTS):
                return f"it holds {type(content).__name__}, expected a JSON object"
        elif file.suffix.lower() == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as tensors:
                tensors.keys()
        elif is_checkpoint:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that are refused anyway
                torch.load(file, map_location="meta", weights_only=True)
    except EOFError:
        return "it is empty or cut short"
    except pickle.UnpicklingError:
        return "it is damaged, or a pickle that is more than tensors, which is not loaded because it could run any code"
    except Exception as error:  # readers of broken files raise whatever they meet
        return first_line(error).partition(". ")[0]
    return ""


def contents(folder: Path) -> str:
    """Names of a folder's configurations and weights, for a message."""
    suffixes = (".json", ".safetensors", *_CHECKPOINTS)
    names = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in suffixes)
    return ", ".join(name for name in names if "config" in name or not name.endswith(".json")) or "no files"


def check_shards(folder: Path) -> None:
    """Raise ``InputError`` if an index of weights names a file outside its folder."""
    for index in sorted(folder.glob("*.index.json")):
        shards = read_json(index).get("weight_map")
        for shard in shards.values() if isinstance(shards, dict) else [shards]:
            if not isinstance(shard, str) or not _stays_inside(shard):
                raise InputError(f"{index} names {shard!r} as a file of weights, expected one in its own folder")


def _stays_inside(name: str) -> bool:
    paths = PurePosixPath(name), PureWindowsPath(name)
    return all(not path.is_absolute() and ".." not in path.parts for path in paths)


def check_size(config: dict[str, Any], file: str) -> None:
    """Refuse a configuration of a model that no memory here could hold, before it is built.

    Args:
        config: as read from a file of any of the libraries; its parts may be nested.
        file: its name, for the message.

    Raises:
        InputError: more than ``_MOST_LAYERS`` layers, or more bytes than the machine has.
    """
    total = 0
    for part in _parts(config):
        layers = _largest(part, _LAYERS)
        if layers > _MOST_LAYERS:
            raise InputError(f"{file} asks for {layers} layers, more than {_MOST_LAYERS}: no model has so many")
        total += _bytes(part, layers)
    available = psutil.virtual_memory().total
    if total > available:
        raise InputError(
            f"{file} asks for a model of at least {total / 1e9:.0f} GB, and this machine has {available / 1e9:.0f} GB "
            "of memory: check its numbers of layers, sizes and classes"
        )


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _bytes(part: dict[str, Any], layers: int) -> int:
    width = _largest(part, _WIDTHS)
    inner = _largest(part, ("intermediate_size", "mlp_dim", "ffn_dim")) or 4 * width
    image, patch = _largest(part, ("image_size", "img_size")), _largest(part, ("patch_size",))
    entries = sum(_largest(part, (name,)) for name in _TABLES) + (image // max(patch, 1)) ** 2
    parameters = layers * width * (4 * width + 2 * inner) + width * entries
    return _PARAMETER * parameters + _LAYER * layers + _ENTRY * entries


def _largest(part: dict[str, Any], names: tuple[str, ...]) -> int:
    """The largest whole number under some names, alone or in lists; 0 without one."""
    values: list[Any] = []
    for name in names:
        value = part.get(name)
        values += value if isinstance(value, list) else [value]
    return max((value for value in values if isinstance(value, int) and value > 0), default=0)
