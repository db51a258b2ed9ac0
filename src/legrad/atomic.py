"""Files that appear whole: written under a temporary name on the same disk, then renamed into their place."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from legrad.errors import InputError


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where the block writes the file; it takes the place of ``path`` when the block ends, and is removed if it fails.

    Yields:
        A path that does not exist yet, for whatever writes to paths (``torch.save``, ``safetensors``).

    Raises:
        InputError: the draft or ``path`` cannot be written; a file that was at ``path`` is still there.
    """
    try:
        # a directory of its own, not mkstemp: the file keeps the usual permissions, where mkstemp's is its owner's only
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=path.parent, ignore_cleanup_errors=True) as directory:
            draft = Path(directory, "draft.tmp")
            yield draft
            draft.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader never sees half of it; errors as of ``draft_of``."""
    with draft_of(path) as draft:
        draft.write_bytes(data)
