"""A page record -> the text of one HTML file, whose policy allows its own script and style, and nothing else."""

import base64
import functools
import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legrad.atomic import write_atomically
from legrad.errors import InputError
from legrad.report.record import PageRecord

if TYPE_CHECKING:
    import jinja2


def html(page: PageRecord) -> str:
    """The page as a text; names and prompts are shown as they are, never read as HTML."""
    script, style = _asset("page.js"), _asset("page.css")
    text = _template().render(
        page=page,
        data=page.as_json(),
        script=_markup(script),
        style=_markup(style),
        policy=f"default-src 'none'; img-src data:; script-src {_digest(script)}; style-src {_digest(style)}",
    )
    return f"{text}\n{_stamp(text)}\n"


def write_page(path: Path, text: str) -> None:
    """Write what ``html`` gave, atomically; a page that we wrote earlier is replaced.

    Raises:
        InputError: another file is there, or it cannot be written.
    """
    if os.path.lexists(path) and (path.is_symlink() or not _is_page(path)):
        raise InputError(f"{path} is there already, and no page of legrad: choose another name, or remove it")
    write_atomically(path, text.encode())


def _is_page(path: Path) -> bool:
    """Whether ``html`` made this file, and nobody has changed it."""
    try:
        text, _, stamp = path.read_text("utf-8").rstrip("\n").rpartition("\n")
    except (OSError, ValueError):
        return False
    return stamp == _stamp(text)


def _stamp(text: str) -> str:
    return f"<!-- legrad {hashlib.sha256(text.encode()).hexdigest()} -->"


@functools.cache
def _asset(name: str) -> str:
    return resources.files("legrad.report").joinpath("templates", name).read_text("utf-8")


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("page.html"))


def _markup(text: str) -> Any:
    """Of our own files: the browser compares it, byte by byte, with the policy's digest."""
    import markupsafe

    return markupsafe.Markup(text)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
