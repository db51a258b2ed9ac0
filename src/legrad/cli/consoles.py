"""Where the command line prints: results to ``console``, problems to ``stderr``, one line each."""

import contextlib
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from legrad.names import printable

# ":cat:" in a file name or a prompt is no emoji
console = Console(emoji=False)
stderr = Console(stderr=True, emoji=False)


def plain(text: str) -> str:
    """A text of the user or of a file for rich: no markup, and nothing that steers the terminal."""
    return escape(printable(text))


def print_error(problem: str, kind: str = "[red]error:[/red]") -> None:
    """One line, however the message was laid out."""
    with contextlib.suppress(OSError):  # nobody reads it
        stderr.print(f"{kind} {plain(' '.join(problem.split()))}", soft_wrap=True, highlight=False)


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Stands in for ``warnings.showwarning``, which would print a line of our source too."""
    print_error(str(message), "[yellow]warning:[/yellow]")


def drop_output() -> None:
    """What is still to be written to a stream that takes no more is forgotten, without a word at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
