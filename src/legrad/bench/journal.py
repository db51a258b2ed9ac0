"""Finished items on disk, one JSON object per line, so that a run that is killed goes on where it was."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from legrad.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


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
        InputError: the file cannot be written, another run holds it, or a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[Key, dict[str, Any]] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error}") from error
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise InputError(f"another run writes {self.path}; wait for it, or choose another --out") from None
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
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                self._keep(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}, line {number}, is damaged ({error}); delete that line") from error

    def _keep(self, record: dict[str, Any]) -> None:
        self._records[Key(record["key"], record["method"], record["settings"])] = record

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records, each with "key", "method" and "settings", in one go and wait until the disk has them."""
        assert self._file is not None
        batch = list(records)
        lines = "".join(json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n" for record in batch)
        self._file.write(lines.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        for record in batch:
            self._keep(record)

    def done(self, key: Key) -> bool:
        """Whether the item was measured; one that failed is not done, it is tried again."""
        return "scores" in self._records.get(key, {})

    def of(self, settings: str) -> Iterator[dict[str, Any]]:
        """All records of these settings."""
        return (record for key, record in self._records.items() if key.settings == settings)
