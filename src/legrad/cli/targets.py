"""The options of ``legrad explain`` that say what to look for."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import legrad
from legrad.checks import check_texts
from legrad.errors import InputError

if TYPE_CHECKING:
    from legrad.explainer import Explainer

HELP = (
    "say what to look for: -t 'a photo of a dog' (repeat it), --class, --predicted, --zeroshot, --similar, --audio or "
    "--contrast"
)


@dataclass(frozen=True)
class TargetOptions:
    """What to look for, as the user typed it; names as of the options."""

    text: Sequence[str] = ()
    label: Sequence[str] = ()
    similar: Sequence[str] = ()
    audio: Sequence[str] = ()
    contrast: Sequence[str] = ()
    zeroshot: Sequence[str] = ()
    predicted: bool = False

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def check(self) -> None:
        """Raise ``InputError`` for empty texts, files that are not there, and a list in the place of a name."""
        for option, texts in {
            "--text": self.text,
            "--class": self.label,
            "--zeroshot": self.zeroshot,
            "--contrast": self.contrast,
        }.items():
            if texts:
                check_texts(option, texts)
        if len(self.zeroshot) == 1 and "," in self.zeroshot[0]:
            names = " ".join(
                f"--zeroshot {_quoted(name.strip())}" for name in self.zeroshot[0].split(",") if name.strip()
            )
            raise InputError(
                f"--zeroshot takes one name each, got {self.zeroshot[0]!r}: was a list meant? Then write {names}"
            )
        from legrad.inputs import urls

        images = [text for text in self.contrast if _is_image(text)]
        for option, what, paths in (
            ("--similar", "image", self.similar),
            ("--contrast", "image", images),
            ("--audio", "sound", self.audio),
        ):
            for path in paths:
                if not urls.is_url(path) and not Path(path).is_file():
                    raise InputError(f"{option}: no such {what}: {path}")

    def check_model(self, explainer: "Explainer", model: str) -> None:
        """Raise ``InputError`` for a model that does not know such targets."""
        if self.audio and explainer.adapter.audio_encoder is None:
            raise InputError(
                "--audio is for models that embed sounds in the space of their images, such as embedded:speech; "
                f"{model} does not"
            )
        if self.label and explainer.anatomy.output != "logits":
            other = "use -t" if explainer.anatomy.output == "embedding" else "it has no head: use --similar"
            raise InputError(f"--class needs a classifier, which {model} is not; {other}")

    def targets(self, output: str) -> list[Any]:
        """For ``Explainer.explain``; ``output`` is the model's, see ``ViTAnatomy``."""
        targets: list[Any] = [*self.text, *map(_class, self.label), *map(legrad.Similar, self.similar)]
        targets += map(legrad.Audio, self.audio)
        if self.predicted:
            targets.append(legrad.PREDICTED)
        if self.zeroshot:
            targets.append(legrad.ZeroShot(list(self.zeroshot)))
        if self.contrast:
            targets.append(legrad.Contrast(*(_side(text, output) for text in self.contrast)))
        return targets

    def record(self) -> dict[str, Any]:
        """The options that were given, for a manifest."""
        return {name: value if value is True else list(value) for name, value in asdict(self).items() if value}


def _side(text: str, output: str) -> Any:
    """Of a contrast: an image or a text; numbers are classes of a classifier, and texts for other models."""
    if _is_image(text):
        return legrad.Similar(text)
    return _class(text) if output == "logits" else text


def _is_image(text: str) -> bool:
    """A URL, or the name of an image file: of one that is there, or of nothing that could be a text."""
    from legrad.inputs import images, urls

    looks_so = Path(text).suffix.lower() in images.SUFFIXES
    return urls.is_url(text) or (looks_so and (" " not in text or os.path.isfile(text)))


def _class(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w-]+", text) else f"'{text}'"
