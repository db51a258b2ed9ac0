"""``legrad explain --masks --boxes --export``: what was found, beside the maps, and in other tools' formats."""

import io
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from legrad.cli.completion import EXPORTS
from legrad.cli.options import choice
from legrad.errors import InputError
from legrad.names import slug

if TYPE_CHECKING:
    from legrad.results.explanation import Explanation
    from legrad.results.folder import Folder


class Exports:
    """What is asked for beside the maps, collected image by image.

    Args:
        masks: a PNG with the masks of every image.
        boxes: boxes in the manifest.
        formats: names of ``EXPORTS`` with commas between them; None for none.
        threshold: of masks, a word or a number.
        resume: the run adds to an earlier one, whose images these files would lack.

    Raises:
        InputError: an unknown format or threshold, a library that is not installed, or a format with ``resume``.
    """

    def __init__(self, masks: bool, boxes: bool, formats: str | None, threshold: str, resume: bool) -> None:
        self._masks, self._boxes = masks, boxes
        self._formats = [
            choice("export", name.strip(), EXPORTS) for name in (formats.split(",") if formats is not None else ())
        ]
        if not self:
            return
        if self._formats and resume:
            raise InputError("--export holds all images of one run: leave out --resume, or export the folder's results")
        from legrad.results.regions import check_threshold

        self._threshold = _number(threshold)
        check_threshold(self._threshold)
        from legrad import export

        self._coco = export.CocoFile(self._threshold) if "coco" in self._formats else None
        self._lists: dict[str, list[Any]] = {"sam": [], "label-studio": [], "fiftyone": []}

    def __bool__(self) -> bool:
        return self._masks or self._boxes or bool(self._formats)

    def check(self, kind: str) -> None:
        """Raise ``InputError`` for a model of videos or sounds, whose results these files cannot hold."""
        if kind != "rows" and (self._masks or self._formats):
            option = "--masks" if self._masks else "--export"
            raise InputError(f"{option} is for images; of videos and sounds there is --boxes, and explanation.masks()")

    def of_image(self, explanation: "Explanation", folder: "Folder", sub_folder: str) -> dict[str, Any]:
        """Write and collect what is asked for of an explanation of one image; further keys of its entry."""
        note: dict[str, Any] = {}
        if not self:
            return note
        from legrad import export

        if self._masks:
            buffer = io.BytesIO()
            export.palette(explanation, 0, self._threshold).save(buffer, "PNG")
            stem = f"{folder.sub_folder(sub_folder)}{slug(Path(explanation.names[0]).stem)}--masks"
            note["masks"] = folder.write(folder.name(stem, ".png"), buffer.getvalue())
        if self._boxes:
            note["boxes"] = _records(explanation, self._threshold)
        if self._coco is not None:
            self._coco.add(explanation)
        ways: dict[str, Callable[..., list[Any]]] = {"sam": export.sam, "label-studio": export.label_studio}
        for name in self._formats:
            if name in ways:
                self._lists[name] += ways[name](explanation, threshold=self._threshold)
        if "fiftyone" in self._formats:
            self._lists["fiftyone"].append((explanation.names[0], _relative_boxes(explanation, self._threshold)))
        return note

    def finish(self, folder: "Folder") -> list[Path]:
        """Write the files that hold all images; they stand in the last image's entry."""
        files: dict[str, Any] = {}
        if not folder.entries:
            return []
        for name in self._formats:
            if name == "coco" and self._coco is not None:
                files["coco"] = self._coco.content
            elif name == "fiftyone":
                files |= _fiftyone(self._lists[name])
            else:
                files[name] = self._lists[name]
        # together in one folder, where FiftyOne looks for them by name
        place = folder.sub_folder("fiftyone") if "fiftyone" in self._formats else ""
        for name, content in files.items():
            stem = name if not name.startswith("fiftyone ") else place + name.removeprefix("fiftyone ")
            data = json.dumps(content, indent=1).encode("utf-8", "backslashreplace")
            folder.entries[-1].setdefault("exports", []).append(folder.write(folder.name(stem, ".json"), data))
        names = folder.entries[-1].get("exports", [])
        return [folder.root / PurePosixPath(name) for name in names]


def _number(text: str) -> Any:
    """A threshold as it was typed: a word, or a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _records(explanation: "Explanation", threshold: Any) -> list[dict[str, Any]]:
    """Boxes of one image, ready for JSON."""
    (of_targets,) = explanation.boxes(threshold)
    return [
        {
            "target": explanation.labels[0][target],
            "units": list(of_targets[target].units),
            "boxes": [[round(edge, 3) for edge in edges] for edges in of_targets[target].xyxy.tolist()],
            "scores": [round(score, 4) for score in of_targets[target].scores.tolist()],
        }
        for target in explanation.targets_of(0)
    ]


def _relative_boxes(explanation: "Explanation", threshold: Any) -> list[dict[str, Any]]:
    """Boxes of one image as FiftyOne has them: left, top, width and height as shares of the image's sides."""
    height, width = explanation.placements[0].original
    return [
        {
            "label": explanation.labels[0][target],
            "bounding_box": [left / width, top / height, (right - left) / width, (bottom - top) / height],
            "confidence": score,
        }
        for target, boxes in zip(explanation.targets_of(0), explanation.boxes(threshold)[0], strict=False)
        for (left, top, right, bottom), score in zip(boxes.xyxy.tolist(), boxes.scores.tolist(), strict=True)
    ]


def _fiftyone(images: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """The two files of a FiftyOneImageDetectionDataset: where the images are, and what is on them."""
    keys = [f"{number:06d}" for number in range(len(images))]
    classes = sorted({box["label"] for _, boxes in images for box in boxes})
    return {
        "fiftyone data": {key: str(Path(name).absolute()) for key, (name, _) in zip(keys, images, strict=True)},
        "fiftyone labels": {
            "classes": classes,
            "labels": {key: boxes or None for key, (_, boxes) in zip(keys, images, strict=True)},
        },
    }
