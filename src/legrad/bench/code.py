"""A digest of the code that makes scores, so that those of other code are not taken for its own."""

import functools
import hashlib
from pathlib import Path

import legrad

# what only shows results, or is not asked for them
_LEFT_OUT = (
    *("cli/", "bench/report/", "results/", "compat.py", "deprecation.py", "doctor.py"),
    *("figures.py", "fonts.py", "panels.py", "viz.py"),
)


@functools.cache
def code_digest() -> str:
    """Of all sources of this package that can have a part in a score; "" where they are not at hand."""
    root, digest = Path(legrad.__file__).parent, hashlib.sha256()
    sources = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for name in sorted(sources):
        if not name.startswith(_LEFT_OUT):
            digest.update(f"{name}\0".encode() + sources[name].read_bytes() + b"\0")
    return digest.hexdigest()[:16] if sources else ""
