"""ADE20K Sound-Prompted and Speech-Prompted (DenseAV, Hamilton et al., CVPR 2024): masks of what a clip names.

``prompted_segmentation.csv`` has a row per prompt: ``image_location``, ``ade_class_id`` and ``vggsound_file``, or
``speech_prompt_file`` with ``timing``. Images are in ``frames/``, masks in ``annotations/`` (``_seg.png``, ADE20K's
full colour code: class = floor(R / 10) * 256 + G), clips in ``audio/`` by their base name.
"""

import json
import math
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from legrad.datasets.files import PathLike, Problems, check_size, file, folder, inside, refuse_empty, rgb_codes, rows
from legrad.datasets.sample import Sample
from legrad.errors import InputError
from legrad.inputs import images

_COLUMNS = {"sound": "vggsound_file", "speech": "speech_prompt_file"}
# spellings of "no value" in a table, those of DenseAV's reader (pandas)
_MISSING = {"", "nan", "na", "n/a", "null", "none", "<na>", "#n/a", "#na", "-nan", "1.#ind", "1.#qnan", "-1.#ind"}


class ADE20KPrompted:
    """One sample per row: an image, a class in it, and a clip of its name or its sound.

    ``label`` is the class (its id, or what ``names`` calls it), ``masks`` has that one key. ``extra``: ``class_id``,
    ``audio`` (path of the clip) and ``timing``, the (start, end) of the spoken word in seconds, or None.

    Args:
        root: ``ADE20KSoundPrompted`` or ``ADE20KSpeechPrompted``.
        prompt: "sound", "speech", or None to decide by the table's columns.
        names: ADE20K class id -> name.

    Raises:
        InputError: a file or column is missing, or there is no row with a clip and a class.
    """

    name = "ade20k-prompted"

    def __init__(
        self,
        root: PathLike,
        prompt: Literal["sound", "speech"] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._root = folder(root, "ADE20K Sound- or Speech-Prompted")
        self._names = names or {}
        path, problems = file(self._root / "prompted_segmentation.csv", "its table of prompts"), Problems()
        table = list(rows(path, ("image_location", "ade_class_id")))
        if prompt is None:
            kinds = [kind for kind, column in _COLUMNS.items() if any(column in row for _, row in table[:1])]
            if len(kinds) != 1:
                raise InputError(f"{path} must have one of the columns {' and '.join(_COLUMNS.values())}; has {kinds}")
            prompt = kinds[0]  # type: ignore[assignment]
        if prompt not in _COLUMNS:
            raise InputError(f"prompt is 'sound' or 'speech', got {prompt!r}")
        column = _COLUMNS[prompt]
        if any(column not in row for _, row in table):
            raise InputError(f"{path} has no column {column!r}; is it the set for {prompt}?")
        # (key, place of the image, class, clip, timing as text)
        self._items: list[tuple[str, str, int, str, str]] = []
        for line, row in table:
            clip, location = row[column].strip(), row["image_location"].strip()
            class_id = _whole_number(row["ade_class_id"])
            if clip.lower() in _MISSING or class_id == 0:
                problems.add("a row without clip or class, left out as published", f"line {line}")
            elif class_id is None or class_id < 0:
                problems.add("a row whose class is not a number", f"{row['ade_class_id']!r} in line {line}")
            else:
                key = f"{line}:{location}"
                self._items.append((key, location, class_id, clip, row.get("timing", "") if prompt == "speech" else ""))
        refuse_empty(self._items, path, "rows with a clip and a class", problems)
        self.name = f"ade20k-{prompt}"
        self.facts: Mapping[str, Any] = {
            "path": str(self._root),
            "items": len(self._items),
            "prompt": prompt,
            "classes": len({item[2] for item in self._items}),
            "problems": problems.lines(),
        }

    def __len__(self) -> int:
        return len(self._items)

    def keys(self) -> list[str]:
        """``line:image_location``: an image may have several rows."""
        return [item[0] for item in self._items]

    def files(self, index: int) -> list[Path]:
        """The files that decide about item ``index``."""
        _, location, _, clip, _ = self._items[index]
        audio = posixpath.basename(clip.replace("\\", "/"))
        names = (("frames", location), ("annotations", location.replace(".jpg", "_seg.png")), ("audio", audio))
        return [self._root / "prompted_segmentation.csv", *(inside(self._root / part, name) for part, name in names)]

    def __getitem__(self, index: int) -> Sample:
        """Item ``index``; a missing image, mask or clip, and an unreadable timing, are an ``InputError``."""
        key, location, class_id, clip, timing = self._items[index]
        if not location.endswith(".jpg"):
            raise InputError(f"{key}: image_location ends with .jpg, which is where the mask's name comes from")
        image = images.read(inside(self._root / "frames", location))
        path = inside(self._root / "annotations", location.replace(".jpg", "_seg.png"))
        codes = rgb_codes(path)
        check_size(codes, image, path)
        mask = codes[..., 0] // 10 * 256 + codes[..., 1] == class_id
        audio = inside(self._root / "audio", posixpath.basename(clip.replace("\\", "/")))
        if not audio.is_file():
            raise InputError(f"{key}: no such clip: {audio}")
        label = self._names.get(class_id, str(class_id))
        extra = {"class_id": class_id, "audio": str(audio), "timing": _seconds(timing, key) if timing else None}
        return Sample(key, image, label, {label: mask}, extra=extra)


def _whole_number(text: str) -> int | None:
    """An id as tables write it, also "13.0"; 0 for no value, None for anything else."""
    if text.strip().lower() in _MISSING:
        return 0
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


def _seconds(text: str, key: str) -> tuple[float, float]:
    try:
        start, end = (float(value) for value in json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}: timing is a JSON list [start, end] in seconds, this one {text!r}") from error
    if not 0 <= start <= end < math.inf:
        raise InputError(f"{key}: timing {text!r} does not go forward in time")
    return start, end
