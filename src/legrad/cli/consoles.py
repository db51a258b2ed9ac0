"""Where the command line prints: results to ``console``, problems to ``stderr``, one line each."""

from typing import Any

from rich.console import Console
from rich.markup import escape

# ":cat:" in a file name or a prompt is no emoji
console = Console(emoji=False)
stderr = Console(stderr=True, emoji=False)


def print_error(problem: str, kind: str = "[red]error:[/red]") -> None:
    """One line, however the message was laid out."""
    stderr.print(f"{kind} {escape(' '.join(problem.split()))}", soft_wrap=True, highlight=False)


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Stands in for ``warnings.showwarning``, which would print a line of our source too."""
    print_error(str(message), "[yellow]warning:[/yellow]")
