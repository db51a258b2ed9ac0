"""Where ``legrad explain`` writes: nothing that is there goes unless the user says so."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legrad.cli.consoles import print_error
from legrad.errors import InputError

if TYPE_CHECKING:
    from legrad.cli.sources import Source
    from legrad.results.folder import Folder


@dataclass
class Destination:
    """The folder of a run.

    Attributes:
        root: the folder.
        overwrite: earlier results are replaced.
        resume: results are added to earlier ones.
        note: to be told when the first result is written; "" for nothing.
        finished: of the earlier results: (image, its own texts, stamp of its file).
    """

    root: Path
    overwrite: bool = False
    resume: bool = False
    note: str = ""
    finished: set[Any] = field(default_factory=set)

    def tell(self) -> None:
        """Print the note, once."""
        if self.note:
            print_error(self.note, "[yellow]note:[/yellow]")
            self.note = ""

    def folder(self) -> "Folder":
        """To be written into."""
        from legrad.results.folder import Folder

        return Folder(self.root, clear=self.overwrite, resume=self.resume)

    def unfinished(self, sources: "Iterable[Source]") -> "list[Source]":
        """What is still to be explained."""
        return [source for source in sources if _key(*_facts(source)) not in self.finished]


def note_of(source: "Source") -> dict[str, Any]:
    """What an image's entry says of where it came from, by which ``--resume`` knows it again."""
    _, texts, stamp = _facts(source)
    return {**({"texts": list(texts)} if texts else {}), **({} if stamp is None else {"stamp": stamp})}


def _facts(source: "Source") -> tuple[str, Sequence[str], Any]:
    from legrad.inputs import urls

    return urls.safe_url(source.path), source.texts, source.stamp()


def _key(image: str, texts: Sequence[str], stamp: Any) -> Any:
    return os.path.normpath(image), tuple(texts), tuple(stamp) if isinstance(stamp, list) else stamp


def choose(out: str, overwrite: bool, resume: bool, options: Mapping[str, Any]) -> Destination:
    """The folder for a run: ``out``, or a numbered one beside it if earlier results are there.

    Args:
        out: what the user named.
        overwrite, resume: as the options say.
        options: those on which results depend, ready for JSON.

    Raises:
        InputError: both at once, results of other options are to be resumed, or there is no place beside ``out``.
    """
    from legrad.results.journal import mended
    from legrad.results.manifest import folder_path

    root = folder_path(out)
    if overwrite and resume:
        raise InputError("--overwrite and --resume exclude each other: replace the earlier results, or go on with them")
    manifest = mended(root) if root.is_dir() else None
    if manifest is None or not manifest.entries:
        return Destination(root, overwrite, resume)
    if overwrite:
        return Destination(root, overwrite=True)
    if not resume:
        sibling = _sibling(root)
        return Destination(
            sibling,
            note=f"{root} holds results of an earlier run, which stay: these go to {sibling} (--overwrite replaces, "
            "--resume goes on with them)",
        )
    finished = set()
    for entry in manifest.entries:
        _check_same(root, entry.get("options", manifest.facts.get("options")), options)
        finished.add(_key(str(entry.get("image")), entry.get("texts", ()), entry.get("stamp")))
    return Destination(root, resume=True, finished=finished)


def _sibling(root: Path) -> Path:
    from legrad.results.manifest import numbered

    here = Path.cwd()
    if root.name in ("", "..") or root.resolve() in (here, *here.parents):
        raise InputError(
            f"the folder {root} holds results of an earlier run: --overwrite replaces them, --resume goes on with "
            "them, or name another --out"
        )
    return next(root.with_name(name) for name in numbered(root.name) if not os.path.lexists(root.with_name(name)))


def _check_same(root: Path, before: Any, options: Mapping[str, Any]) -> None:
    """Raise ``InputError`` unless earlier results were made with the same options."""
    if before == options:
        return
    if not isinstance(before, dict):
        raise InputError(
            f"{root} holds results of another command, which --resume cannot go on with; name another --out"
        )
    name = next(name for name in (*options, *before) if options.get(name) != before.get(name))
    raise InputError(
        f"--resume goes on with the same options: {name} was {_shown(before.get(name))} in {root}, and is "
        f"{_shown(options.get(name))} now; --overwrite replaces the results, another --out leaves them"
    )


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)
