"""Finished items on disk, one JSON object per line, so that a run that is killed goes on where it was."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from legrad.atomic import WriteError, lock, parse_json
from legrad.errors import InputError

_BEGINNING = b'{"key": "'  # of every line


class Key(NamedTuple):
    """What makes an item the same item."""

    sample: str
    method: str
    settings: str


class Journal:
    """Append-only records of one benchmark, keyed by sample, method and settings; the last record of a key counts.

    A batch is on the disk when ``append`` returns. A line that a killed run left unfinished is cut off at the next
    opening: its item is measured again. Use it in a ``with`` block, which also locks the file.

    Args:
        path: made if missing, with its folder.

    Raises:
        InputError: the file cannot be written, another run holds it, or a line is damaged, or is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[Key, dict[str, Any]] = {}
        self._lines: dict[Key, int] = {}
        self._count = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise WriteError.of(self.path, error) from error
        try:
            if not lock(self._file):
                raise WriteError(f"another run writes {self.path}; wait for it, or choose another --out")
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                self._keep(_checked(parse_json(line)))
            except ValueError as error:
                raise self._damaged(number, str(error)) from error
        if rest and not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
            raise self._damaged(len(lines) + 1, "no record of a benchmark")
        if rest:
            self._file.truncate(sum(len(line) + 1 for line in lines))

    def _damaged(self, number: int, why: str) -> InputError:
        return InputError(f"{self.path}, line {number}, is damaged ({why}); delete that line")

    def damaged(self, record: dict[str, Any], why: str) -> InputError:
        """The error for a record that turns out to be wrong; it names the line."""
        return self._damaged(self._lines[Key(record["key"], record["method"], record["settings"])], why)

    def _keep(self, record: dict[str, Any]) -> None:
        key = Key(record["key"], record["method"], record["settings"])
        self._count += 1
        self._records[key], self._lines[key] = record, self._count

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records, each with "key", "method" and "settings", in one go and wait until the disk has them.

        Raises:
            InputError: the disk is full, or does not take them for another reason.
        """
        assert self._file is not None
        batch = list(records)
        lines = "".join(json.dumps(_key_first(record), allow_nan=False) + "\n" for record in batch)
        try:
            self._file.write(lines.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError.of(self.path, error) from error
        for record in batch:
            self._keep(record)

    def done(self, key: Key, content: str = "") -> bool:
        """Whether the item was measured with this content; one that failed is not done, it is tried again."""
        record = self._records.get(key, {})
        return "scores" in record and record.get("content", "") == content

    def has(self, key: Key) -> bool:
        """Whether there is any record of the item."""
        return key in self._records

    def of(self, settings: str) -> Iterator[dict[str, Any]]:
        """All records of these settings."""
        return (record for key, record in self._records.items() if key.settings == settings)


def _key_first(record: dict[str, Any]) -> dict[str, Any]:
    return {"key": record["key"], **record}


def _checked(record: Any) -> dict[str, Any]:
    """A record as ``append`` writes it; ``ValueError`` for anything else."""
    if not isinstance(record, dict):
        raise ValueError("no record of a benchmark")
    for name in ("key", "method", "settings"):
        if not isinstance(record.get(name), str):
            raise ValueError(f"{name!r} is no text" if name in record else f"no {name!r}")
    if not isinstance(record.get("content", ""), str):
        raise ValueError("'content' is no text")
    if "scores" in record:
        seconds = record.get("seconds", 0)
        if not isinstance(record["scores"], dict) or not record["scores"]:
            raise ValueError("'scores' holds no scores")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError("'seconds' is no time")
    elif not isinstance(record.get("problem"), str):
        raise ValueError("neither 'scores' nor a 'problem'")
    return record
