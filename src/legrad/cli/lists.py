"""Lists of images from a file or the standard input: lines, or tables of images and their own texts."""

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legrad.atomic import parse_json
from legrad.checks import first_line
from legrad.errors import InputError

_IMAGES = ("image", "path", "file", "filename", "file_name", "url")  # names of columns, lower case
_TEXTS = ("text", "texts", "prompt", "prompts", "caption", "label", "target", "targets")


@dataclass(frozen=True)
class Row:
    """One line: an image (a path or URL; a folder or glob too), and what to look for in it alone."""

    image: str
    texts: tuple[str, ...] = ()


def read(name: str) -> list[Row]:
    """The rows of a list.

    Args:
        name: a file, or "-" for the standard input. What it holds is told by its content: lines that begin with "{" are
            JSON; with a header such as "image,text", or the suffix .csv or .tsv, it is a table; all else has one image
            a line (or a NUL byte after each, as of ``find -print0``). Several rows of one image are joined. A path that
            is not there is looked for beside the list too.

    Raises:
        InputError: no such file, no text, nothing in it, or a row that cannot be read.
    """
    what = "the standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\0" not in data:
            raise InputError(f"--from: {what} is no text in UTF-8: {error.reason} at byte {error.start}") from error
        text = os.fsdecode(data)
    except (OSError, ValueError) as error:
        raise InputError(f"--from: cannot read {what}: {first_line(error)}") from error
    rows = list(_rows(text, what, Path(name).suffix.lower() if name != "-" else ""))
    if not rows:
        raise InputError(f"--from: there is no image in {what}")
    beside = Path() if name == "-" else Path(name).parent
    texts: dict[str, dict[str, None]] = {}
    for row in rows:
        texts.setdefault(_located(row.image, beside), {}).update(dict.fromkeys(row.texts))
    return [Row(image, tuple(own)) for image, own in texts.items()]


def _rows(text: str, what: str, suffix: str) -> Iterator[Row]:
    if "\0" in text:
        yield from (Row(line) for line in text.split("\0") if line)
        return
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return
    if suffix in (".jsonl", ".json", ".ndjson") or lines[0].lstrip().startswith("{"):
        for number, line in enumerate(lines, 1):
            yield _of_json(line, f"{what}, line {number}")
        return
    delimiter = "\t" if suffix == ".tsv" or ("\t" in lines[0] and "," not in lines[0]) else ","
    header = [cell.strip().lower() for cell in next(csv.reader(lines[:1], delimiter=delimiter))]
    if suffix in (".csv", ".tsv") or (set(header) & set(_IMAGES) and set(header) & set(_TEXTS)):
        yield from _of_table(text, header, delimiter, what)
    else:
        yield from (Row(line.strip("\r\n")) for line in lines)


def _of_table(text: str, header: Sequence[str], delimiter: str, what: str) -> Iterator[Row]:
    """Without a header the first column is the image and the others are texts; "|" separates texts in a cell."""
    has_header = bool(set(header) & set(_IMAGES))
    image = next(place for place, cell in enumerate(header) if cell in _IMAGES) if has_header else 0
    columns = [place for place, cell in enumerate(header) if cell.rstrip("0123456789_ ") in _TEXTS]
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)):
            if (has_header and number == 0) or not any(cell.strip() for cell in cells):
                continue
            if len(cells) <= image or not cells[image].strip():
                raise InputError(f"--from: row {number + 1} of {what} names no image: {cells}")
            places = columns if has_header else range(1, len(cells))
            texts = [part.strip() for place in places if place < len(cells) for part in cells[place].split("|")]
            yield Row(cells[image].strip(), tuple(filter(None, texts)))
    except csv.Error as error:
        raise InputError(f"--from: {what} is no table: {error}") from error


def _of_json(line: str, where: str) -> Row:
    expected = 'expected {"image": "a.jpg", "texts": ["a dog", "a cat"]}'
    try:
        value: Any = parse_json(line)
    except ValueError as error:
        raise InputError(f"--from: {where} is no JSON ({error}); {expected}") from error
    record = {str(key).lower(): part for key, part in value.items()} if isinstance(value, dict) else {}
    image = next((record[name] for name in _IMAGES if name in record), None)
    parts = [part for name in _TEXTS if name in record for part in _as_list(record[name])]
    if not isinstance(image, str) or not image or not all(isinstance(part, str) and part.strip() for part in parts):
        raise InputError(f"--from: {where}: {expected}")
    return Row(image, tuple(parts))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _located(image: str, beside: Path) -> str:
    """A path from here, or else from the folder of the list."""
    inside = os.path.join(beside, image)
    return inside if not os.path.exists(image) and os.path.exists(inside) else image
