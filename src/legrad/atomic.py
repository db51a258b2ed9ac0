"""Files that appear whole, never in the place of a stranger's, and never by two writers at once."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from legrad.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Fingerprint = dict[str, Any]  # of a file's content: {"bytes": size, "sha256": digest}


class WriteError(InputError):
    """A file or folder cannot be written: what was to be saved is not to blame, and the next one would fail too."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> "WriteError":
        """Of an error of the system, which names temporary files that nobody knows."""
        return cls(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where the block writes the file; it takes the place of ``path`` when the block ends, and is removed if it fails.

    Drafts are unique: threads and processes may write the same ``path``, and the last one stays.

    Yields:
        A path that does not exist yet, for whatever writes to paths (``torch.save``, ``safetensors``).

    Raises:
        WriteError: the draft or ``path`` cannot be written; a file that was at ``path`` is still there.
    """
    try:
        # a directory of its own, not mkstemp: the file keeps the usual permissions, where mkstemp's is its owner's only
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=path.parent, ignore_cleanup_errors=True) as directory:
            draft = Path(directory, "draft.tmp")
            yield draft
            draft.replace(path)
    except OSError as error:
        raise WriteError.of(path, error) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader never sees half of it; errors as of ``draft_of``."""
    with draft_of(path) as draft:
        draft.write_bytes(data)


def fingerprint(data: bytes) -> Fingerprint:
    """By which a file is recognised as the one that was written."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def is_fingerprint(value: Any) -> bool:
    """Whether a value out of a file can be one."""
    return isinstance(value, dict) and isinstance(value.get("bytes"), int) and isinstance(value.get("sha256"), str)


def fits(path: Path, known: Fingerprint | None) -> bool:
    """Whether a plain file with this content is there; a link is somebody else's."""
    try:
        if known is None or path.is_symlink() or not path.is_file() or path.stat().st_size != known["bytes"]:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == known["sha256"]
    except (OSError, ValueError):
        return False


def publish(draft: Path, path: Path) -> None:
    """Move a finished file to where nothing is.

    Raises:
        FileExistsError: something is there, and stays.
        OSError: the file system refuses.
    """
    try:
        os.link(draft, path)  # fails where a file is, which a rename would replace
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        draft.rename(path)
    else:
        draft.unlink()


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other block, of any process, holds this file; it is made for that, and removed.

    Raises:
        WriteError: it cannot be made.
    """
    file = _lock_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
        file.close()


def _lock_file(path: Path) -> BinaryIO:
    """This path's file, open and locked: the one that is there, not one that another block has removed meanwhile."""
    while True:
        try:
            file = path.open("a+b")
            try:
                lock(file, wait=True)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        return file
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise WriteError.of(path, error) from error
        file.close()


def lock(file: BinaryIO, wait: bool = False) -> bool:
    """Take an open file for this writer until it is closed or the process ends; False if another one has it."""
    if fcntl is None:
        import msvcrt

        windows: Any = msvcrt
        file.seek(1 << 30)  # a byte that nobody reads: locks keep readers out there
        try:
            windows.locking(file.fileno(), windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def parse_json(data: bytes | str) -> Any:
    """``json.loads``; everything that is wrong with the text is a ``ValueError``, nesting without end too."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
