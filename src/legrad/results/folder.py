"""A folder of results: images, raw arrays and a manifest that says what made them. Every file appears whole."""

import contextlib
import io
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from legrad.atomic import write_atomically
from legrad.errors import InputError
from legrad.viz import gif, png

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation


# keys of the manifest that hold file names
_FILES = ("figure", "arrays", "overlay", "animation", "layers_figure")


class Folder:
    """Collects explanations of many images, one after the other; the manifest is up to date after each.

    Args:
        folder: made if missing; files of the same names are replaced.
        per_layer: add a figure per target with all layers; needs explanations with ``keep_layers=True``.
        cmap: matplotlib colour map.
        alpha: opacity of the overlays, in [0, 1].
        clear: when the first explanation comes, remove the files that an earlier manifest in the folder names, and
            nothing else.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        per_layer: bool = False,
        cmap: str = "inferno",
        alpha: float = 0.65,
        clear: bool = False,
    ) -> None:
        self.root = Path(folder)
        self.per_layer, self.cmap, self.alpha = per_layer, cmap, alpha
        self.files: list[Path] = []
        self.entries: list[dict[str, Any]] = []
        self._stems: set[str] = set()
        self._clear = clear
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write into {self.root}: {error}") from error

    @property
    def manifest(self) -> Path:
        """Model, versions, settings, scores, shapes and files of everything added so far."""
        return self.root / "manifest.json"

    def add(self, explanation: "Explanation") -> list[dict[str, Any]]:
        """Write one explanation; returns its manifest entries, one per image, with file names."""
        if self.per_layer and explanation.layer_relevance is None:
            raise InputError("per-layer maps were not kept; call explain(..., keep_layers=True)")
        if self._clear:
            self._remove_earlier()
            self._clear = False
        new = [self._write_image(explanation, image) for image in range(len(explanation.names))]
        self.entries.extend(new)
        content = {
            "settings": explanation.settings,
            "axes": ["targets", *explanation.axes],
            "layer_axes": ["targets", "layers", *explanation.axes],
            "images": self.entries,
        }
        # file names may hold bytes that are no UTF-8: Python's escape for those is JSON's too
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_atomically(self.manifest, text.encode("utf-8", "backslashreplace"))
        return new

    def _remove_earlier(self) -> None:
        """Files of the run that wrote the manifest here before; names with path parts in them are not ours."""
        try:
            content = json.loads(self.manifest.read_bytes())
            entries = content["images"]
            records = [*entries, *(record for entry in entries for record in entry["targets"])]
            names = [record[key] for record in records for key in _FILES if key in record]
        except (OSError, ValueError, KeyError, TypeError):
            return  # no manifest, or none of ours
        for name in names:
            if isinstance(name, str) and name == Path(name).name:
                with contextlib.suppress(OSError, ValueError):
                    (self.root / name).unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> str:
        write_atomically(self.root / name, data)
        self.files.append(self.root / name)
        return name

    def _write_image(self, explanation: "Explanation", image: int) -> dict[str, Any]:
        stem = _unused(slug(Path(explanation.names[image]).stem), self._stems)
        wanted = [t for t in range(explanation.relevance.shape[1]) if explanation.valid[image, t]]
        arrays = {"relevance": explanation.relevance[image, wanted], "scores": explanation.scores[image, wanted]}
        if explanation.layer_relevance is not None:
            arrays["layer_relevance"] = explanation.layer_relevance[image, wanted]
        buffer = io.BytesIO()
        numbers: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
        np.savez_compressed(buffer, **numbers)
        entry: dict[str, Any] = {
            "image": explanation.names[image],
            "size": list(explanation.placements[image].original),
            "figure": self._write(f"{stem}.png", png(explanation.figure(image, self.cmap, self.alpha))),
            "arrays": self._write(f"{stem}.npz", buffer.getvalue()),
            "shapes": {name: list(value.shape) for name, value in arrays.items()},
            "targets": [],
        }
        timing = explanation.timing(image)
        if timing.frames:
            entry["frames"], entry["seconds"] = list(timing.frames), list(timing.seconds)
        if timing.duration is not None:
            entry["duration"] = timing.duration
        used: set[str] = set()
        for target in wanted:
            label = explanation.labels[image][target]
            name = f"{stem}--{_unused(slug(label), used)}"
            overlay = explanation.overlay(image, target, self.alpha, self.cmap)
            record = {
                "target": label,
                "score": float(explanation.scores[image, target]),
                "predicted": explanation.predicted is not None and bool(explanation.predicted[image, target]),
                "prompt_independent": bool(explanation.prompt_independent[image, target]),
                "overlay": self._write(f"{name}.png", png(overlay)),
            }
            if explanation.axes[0] == "frames":
                frames = explanation.animation(image, target, self.alpha, self.cmap)
                seconds = 0.2 if timing.duration is None else min(max(timing.duration / len(frames), 0.02), 2)
                record["animation"] = self._write(f"{name}.gif", gif(frames, seconds))
            if self.per_layer:
                layers = explanation.layer_figure(image, target, self.cmap, self.alpha)
                record["layers_figure"] = self._write(f"{name}--layers.png", png(layers))
            entry["targets"].append(record)
        return entry


def slug(text: str, longest: int = 60) -> str:
    """A name that is safe as a part of a file name: lower-case letters, digits and dashes, never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:longest].strip("-") or "x"


def _unused(name: str, used: set[str]) -> str:
    """The name, numbered if taken; it is taken afterwards."""
    candidate, number = name, 2
    while candidate in used:
        candidate, number = f"{name}-{number}", number + 1
    used.add(candidate)
    return candidate
