"""What a shell completes after an option. No model library is loaded: names come from a file in this package.

``python -m tools.completion_names`` writes the file.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ARRAYS = ("yes", "no", "only")
NORMALIZATIONS = ("map", "shared", "half")
EXPORTS = ("coco", "fiftyone", "sam", "label-studio")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16", "float64")
NAMES = Path(__file__).with_name("names.json")
_SWITCH = "_LEGRAD_COMPLETE"  # typer's, by which the shell asks


def of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Completes one of some words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete.lower())]

    return complete


def models(incomplete: str) -> list[str]:
    """Names for ``legrad.load``; before the first colon the libraries only."""
    names = _names("models")
    if ":" in incomplete:
        return [name for name in names if name.startswith(incomplete)]
    libraries = dict.fromkeys(name if name.startswith("embedded") else f"{name.partition(':')[0]}:" for name in names)
    return [library for library in [*libraries, "hf:"] if library.startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """Names of methods."""
    return [name for name in _names("methods") if name.startswith(incomplete)]


def _names(kind: str) -> list[str]:
    try:
        names: list[str] = json.loads(NAMES.read_text(encoding="utf-8"))[kind]
    except (OSError, ValueError, KeyError):  # a completion never prints an error into the user's line
        return []
    return names


@contextlib.contextmanager
def colons_of_bash() -> Iterator[None]:
    """Completion of words with a colon or "=" in bash, which takes these for the end of a word.

    It hands over the parts one by one, and puts an answer in the place of the last part only.
    """
    if os.environ.get(_SWITCH) != "complete_bash":
        yield
        return
    words, place = _joined(os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0)))
    os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(place))
    current = words[place] if place < len(words) else ""
    start = current.rpartition(":")
    before, output = len(start[0]) + len(start[1]), io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield
    finally:
        print("\n".join(line[before:] for line in output.getvalue().splitlines()))


def _joined(words: Sequence[str], place: int) -> tuple[list[str], int]:
    """Words whose parts around colons are one again, and which of them is number ``place`` of the parts."""
    result: list[str] = []
    at, glue = 0, False
    for number, word in enumerate(words):
        if word == "=":  # between an option and its value
            result += [""] * (number == place)
        elif result and number > 1 and (glue or word.startswith(":")):
            result[-1] += word
        else:
            result.append(word)
        glue = word.endswith(":")
        if number == place:
            at = len(result) - 1
    return result, at if place < len(words) else len(result)
