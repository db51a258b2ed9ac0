"""The manifest of a folder of results: which files are ours, and by what they are recognised."""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from legrad.atomic import Fingerprint, WriteError, is_fingerprint, parse_json
from legrad.checks import brief
from legrad.errors import InputError

FORMAT = "legrad results 1"
_FILE_KEYS = ("figure", "arrays", "overlay", "animation", "layers_figure", "masks")  # their values are files
_OWN_KEYS = ("format", "images", "failures", "table", "files")  # all others are facts


@dataclass
class Manifest:
    """What a manifest says.

    Attributes:
        entries: one per image: names of its files and what is in them, its ``targets`` a list of such records.
        files: name -> fingerprint.
        facts: of the run, above all entries; what is different for an entry stands in the entry itself.
        failures: images without a result, each with its error.
        table: the file with a table of all entries; "" if there is none.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Fingerprint] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    table: str = ""

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """None if there is none, or none of ours."""
        try:
            content = parse_json(path.read_bytes())
            return cls.of(content) if content["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Manifest":
        """Out of the parsed JSON; anything that is not as we write it raises."""
        entries, files = list(content["images"]), dict(content["files"])
        for entry in entries:
            files_of(entry)
        our_files = {name: known for name, known in files.items() if is_file_name(name) and is_fingerprint(known)}
        facts = {key: content[key] for key in content if key not in _OWN_KEYS}
        return cls(entries, our_files, facts, list(content.get("failures", [])), str(content.get("table", "")))

    def content(self) -> dict[str, Any]:
        """Ready for JSON."""
        failures = {"failures": self.failures} if self.failures else {}
        table = {"table": self.table} if self.table else {}
        return {"format": FORMAT, **self.facts, "images": self.entries, **failures, **table, "files": self.files}

    def write(self, path: Path, staging: Path) -> None:
        """Whole or not at all; ``staging`` is a folder for the draft.

        Raises:
            WriteError: it cannot be written.
        """
        # file names may hold bytes that are no UTF-8: Python's escape for those is JSON's too
        text = json.dumps(self.content(), indent=2, ensure_ascii=False)
        draft = staging / path.name
        try:
            staging.mkdir(exist_ok=True)
            draft.write_bytes(text.encode("utf-8", "backslashreplace"))
            draft.replace(path)
        except OSError as error:
            raise WriteError.of(path, error) from error

    def own_files(self, entries: Sequence[dict[str, Any]]) -> dict[str, Fingerprint]:
        """The files of some entries with their fingerprints."""
        return {name: self.files[name] for entry in entries for name in files_of(entry) if name in self.files}

    def extended(
        self, entries: Sequence[dict[str, Any]], facts: Sequence[Mapping[str, Any]], files: Mapping[str, Fingerprint]
    ) -> "Manifest":
        """With more entries behind its own, each with its facts; files that no entry names are left out."""
        above = dict(facts[-1]) if facts else self.facts
        own = [self.with_own_facts(entry, above) for entry in self.entries]
        new = [
            Manifest(facts=dict(fact)).with_own_facts(entry, above) for entry, fact in zip(entries, facts, strict=True)
        ]
        named = {name for entry in (*own, *new) for name in files_of(entry)} | {self.table}
        every_file = {**self.files, **files}
        return Manifest(
            [*own, *new],
            {name: known for name, known in every_file.items() if name in named},
            above,
            self.failures,
            self.table,
        )

    def with_own_facts(self, entry: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """One of our entries as it stands below other facts."""
        return {**{key: value for key, value in self.facts.items() if facts.get(key) != value}, **entry}


def files_of(entry: Mapping[str, Any]) -> list[str]:
    """The names of all files of an entry."""
    named = [record[key] for record in (entry, *entry["targets"]) for key in _FILE_KEYS if key in record]
    return [*named, *entry.get("exports", ())]  # of a whole run, in its last entry


def is_file_name(name: str) -> bool:
    """Whether a name is a file's inside the folder, perhaps in a sub-folder, with "/" on every system."""
    return all(part not in ("", ".", "..") and part == Path(part).name for part in name.split("/"))


def manifest_path(root: Path) -> Path:
    """The manifest of ours in a folder, or where to write one."""
    if (root / "manifest.json").is_dir():
        raise WriteError(f"cannot write {root / 'manifest.json'}: it is a folder")
    try:
        names = [name for name in os.listdir(root) if re.fullmatch(r"manifest(-\d+)?\.json", name)]
    except OSError as error:
        raise WriteError(f"cannot write into {root}: {error.strerror or error}") from error
    for name in sorted(names, key=lambda name: (len(name), name)):
        if not (root / name).is_symlink() and Manifest.read(root / name) is not None:
            return root / name
    return next(root / f"{stem}.json" for stem in numbered("manifest") if not os.path.lexists(root / f"{stem}.json"))


def folder_path(root: Any) -> Path:
    """A path that can be a folder's; ``InputError`` for anything else."""
    try:
        text = os.fsdecode(root)
    except TypeError:
        raise InputError(f"the folder is a path, got {type(root).__name__}") from None
    if not text or "\0" in text:
        raise InputError(f"the folder is a path, got {brief(text)}")
    return Path(text)


def numbered(stem: str) -> Iterator[str]:
    """STEM, STEM-2, STEM-3 and so on without end."""
    return itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))


def stem_of(entry: Mapping[str, Any]) -> str:
    """The stem that an entry's files have, with its sub-folder."""
    name = str(entry.get("figure") or entry.get("arrays") or "")
    return str(PurePosixPath(name).with_suffix("")).removesuffix("--figure") if name else ""
