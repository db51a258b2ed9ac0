"""What ``legrad explain`` explains: the files behind its arguments and lists."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import legrad
from legrad.cli.consoles import print_error, print_warning
from legrad.cli.lists import Row, read
from legrad.errors import InputError

if TYPE_CHECKING:
    from legrad.explainer import Explainer


@dataclass(frozen=True)
class Source:
    """One file or URL.

    Attributes:
        path: as a message names it.
        argument: the folder, glob or file that the user named.
        texts: what to look for in this one only.
        problem: why it cannot be explained; "" as far as is known.
    """

    path: str
    argument: str
    texts: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_named(self) -> bool:
        """Whether the user named this very file, rather than a folder or glob."""
        return self.path == self.argument

    @property
    def sub_folder(self) -> str:
        """Where it is in the folder that the user named, with "/" between the parts."""
        if self.is_named or not os.path.isdir(self.argument):
            return ""
        relative = os.path.relpath(os.path.dirname(self.path) or ".", self.argument)
        return "" if relative == "." else Path(relative).as_posix()

    def stamp(self) -> list[int] | str | None:
        """What changes with the file: its time of change and size; of a URL its hash, for names hold no secret part."""
        from legrad.inputs import originals, urls

        if urls.is_url(self.path):
            import hashlib

            return hashlib.sha256(self.path.encode("utf-8", "surrogateescape")).hexdigest()
        try:
            return list(originals.stamp_of(self.path))
        except (OSError, ValueError):
            return None


def suffixes() -> dict[str, frozenset[str]]:
    """First axis of the grid -> which files count in a folder."""
    from legrad.inputs import images, sounds, videos

    return {"rows": images.SUFFIXES, "frames": videos.SUFFIXES, "frequency": sounds.SUFFIXES}


def sources(arguments: Sequence[str], lists: Sequence[str]) -> list[Source]:
    """All files of all kinds.

    Args:
        arguments: files, folders, globs, URLs; "-" is a list on the standard input.
        lists: files with lists, see ``lists.read``. What is missing there is a problem of its own.

    Raises:
        InputError: an argument that is not there, or a list that cannot be read.
    """
    from legrad.inputs import images

    every_suffix = frozenset().union(*suffixes().values())
    result = [
        Source(path, argument)
        for argument in arguments
        if argument != "-"
        for path in images.expand([argument], every_suffix)
    ]
    for name in dict.fromkeys([*("-" for argument in arguments if argument == "-"), *lists]):
        for row in read(name):
            result += _of_row(row, every_suffix)
    return result


def _of_row(row: Row, every_suffix: frozenset[str]) -> list[Source]:
    from legrad.inputs import images

    try:
        return [Source(path, row.image, row.texts) for path in images.expand([row.image], every_suffix)]
    except InputError as error:
        return [Source(row.image, row.image, row.texts, str(error))]


def for_model(
    explainer: "Explainer", model: str, files: list[Source], results: dict[Path, Any]
) -> "tuple[Explainer, list[Source]]":
    """What to explain, and who does: of a model of images and sounds, sounds go to its audio tower.

    Raises:
        InputError: sounds for a model of images, or a folder without files of the model's kind.
    """
    kind = explainer.anatomy.axes[0]
    if not files:
        if kind == "frequency":
            raise InputError(f"{model} listens, and the sample scene is an image: say which sounds to explain")
        return explainer, [Source(str(legrad.embedded.SAMPLE), str(legrad.embedded.SAMPLE))]
    kinds = suffixes()
    inputs = [file for file in files if file.is_named or Path(file.path).resolve() not in results]
    either = [file for file in inputs if _suffix(file) in kinds["rows"] | kinds["frequency"] or file.is_named]
    if kind == "rows" and either and all(_suffix(file) in kinds["frequency"] for file in either):
        if explainer.audio_explainer is None:
            raise InputError(
                f"{files[0].argument}: {model} explains images, not sounds; take --model embedded:speech, or a model "
                "of sounds such as hf:FOLDER (an Audio Spectrogram Transformer)"
            )
        explainer = explainer.audio_explainer
    fitting = kinds[explainer.anatomy.axes[0]]
    matches = [file for file in files if file.is_named or not os.path.isdir(file.argument) or _suffix(file) in fitting]
    for argument in dict.fromkeys(file.argument for file in files):
        if not any(file.argument == argument for file in matches):
            what = "images" if explainer.anatomy.axes[0] == "rows" else "matching files"
            raise InputError(f"no {what} in the folder {argument}")
    return explainer, matches


def _suffix(file: Source) -> str:
    return Path(file.path).suffix.lower()


def earlier_results(files: Iterable[Source], root: Path) -> dict[Path, Any]:
    """Files that earlier runs wrote into the folders that are read, or into ``root``: path -> fingerprint."""
    folders = {root.resolve()} if root.is_dir() else set()
    for file in files:
        if not file.is_named:
            top, folder = Path(file.argument).resolve(), Path(file.path).resolve().parent
            while folder not in folders:
                folders.add(folder)
                if folder == top or folder == folder.parent or not os.path.isdir(file.argument):
                    break
                folder = folder.parent
    return {path: known for folder in folders for path, known in _results_in(folder)}


def _results_in(folder: Path) -> list[tuple[Path, Any]]:
    from legrad.results.manifest import Manifest

    results: list[tuple[Path, Any]] = []
    for path in folder.glob("manifest*.json"):
        manifest = Manifest.read(path)
        if manifest is not None:
            results += [(path, None), *((folder / name, known) for name, known in manifest.files.items())]
    return results


def without_results(files: list[Source], results: dict[Path, Any]) -> list[Source]:
    """What an earlier run wrote is not explained with the images in its folder, unless it is named itself.

    Raises:
        InputError: nothing else is there.
    """
    from legrad.atomic import fits

    named = {file.path for file in files if file.is_named}
    remaining = [
        file
        for file in files
        if file.path in named or not fits(Path(file.path), results.get(Path(file.path).resolve()))
    ]
    if not remaining:
        raise InputError(
            f"these images are results of an earlier run, such as {files[0].path}; name those to be explained"
        )
    if len(remaining) < len(files):
        print_warning(f"{len(files) - len(remaining)} images are results of an earlier run and left out")
    return remaining


def print_left_out(folders: Sequence[str], kind: str, results: dict[Path, Any]) -> None:
    """What else is in folders than what is explained; results of an earlier run are clear."""
    from legrad.inputs import images

    for folder in folders:
        note = images.left_out(folder, suffixes()[kind], results)
        if note is not None:
            print_error(note, "[yellow]note:[/yellow]")
