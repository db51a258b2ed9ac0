"""What ``legrad explain`` tells in the end: a short table, the whole one as a file, or JSON."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from legrad.cli.consoles import console, plain

if TYPE_CHECKING:
    from legrad.results.folder import Folder

_ROWS = 20  # of the table in the terminal
_FIGURES = 5
_COLUMNS = ("image", "target", "score", "predicted", "figure", "overlay", "arrays", "error")


def table(entries: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]]) -> bytes:
    """All results and failures as CSV, a row for each image and target."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        files = {name: entry.get(name, "") for name in ("image", "figure", "arrays")}
        for record in entry["targets"]:
            writer.writerow({**files, **record})
    writer.writerows(failures)
    return text.getvalue().encode("utf-8", "backslashreplace")


def print_json(content: Any) -> None:
    """JSON for another program."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def as_json(folder: "Folder") -> dict[str, Any]:
    """The new results and the failures."""
    return {
        "folder": str(folder.root),
        "manifest": str(folder.manifest) if folder.manifest.exists() else None,
        "images": folder.entries,
        "failures": folder.failures,
    }


def print_exports(folder: "Folder", files: Sequence[Path]) -> None:
    """Boxes and masks of the first images, and the files for other tools."""
    for entry in folder.entries[:_FIGURES]:
        for record in entry.get("boxes", ()):
            text = ", ".join(
                f"({', '.join(f'{edge:g}' for edge in box)}) {score:.2f}"
                for box, score in zip(record["boxes"], record["scores"], strict=True)
            )
            console.print(f"box: {plain(record['target'])}: {text or 'none'}", soft_wrap=True, highlight=False)
        if "masks" in entry:
            console.print(f"masks: {plain(str(folder.root / entry['masks']))}", soft_wrap=True, highlight=False)
    for file in files:
        console.print(f"export: {plain(str(file))}", soft_wrap=True, highlight=False)


def print_results(folder: "Folder", before: int) -> None:
    """The first rows of the table, the first figures, and where the rest is.

    Args:
        folder: with the new entries.
        before: how many images an earlier run had finished.
    """
    if before:
        console.print(f"{before} images were finished before, {len(folder.entries)} are new")
    if not folder.entries:
        return
    names = Counter(Path(entry["image"]).name for entry in folder.entries)
    column = "overlay" if any("overlay" in record for record in folder.entries[0]["targets"]) else "arrays"
    # a name that is cut could not be copied
    rows = Table(*[Column(name, overflow="fold") for name in ("image", "target", "score", column)])
    pairs = [(entry, record) for entry in folder.entries for record in entry["targets"]]
    for entry, record in pairs[:_ROWS]:
        name = Path(entry["image"]).name
        title = name if names[name] == 1 else entry["image"]
        file = record.get(column, entry.get(column, ""))
        rows.add_row(plain(title), plain(record["target"]), f"{record['score']:.3f}", plain(file))
    console.print(rows)
    if len(pairs) > _ROWS:
        console.print(
            f"... and {len(pairs) - _ROWS} more rows in {plain(str(folder.root / folder.table))}", soft_wrap=True
        )
    figures = [entry["figure"] for entry in folder.entries if "figure" in entry]
    for figure in figures[:_FIGURES]:
        console.print(f"figure: {plain(str(folder.root / figure))}", soft_wrap=True, highlight=False)
    if len(figures) > _FIGURES:
        console.print(f"... and {len(figures) - _FIGURES} more figures")
    console.print(f"all files: {plain(str(folder.manifest))}", soft_wrap=True, highlight=False)
