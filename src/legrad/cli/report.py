"""``legrad report``: what a run has saved, as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from legrad.cli.consoles import console, plain
from legrad.cli.waiting import waits

Results = Annotated[str, typer.Argument(help="The --out of `legrad explain`, or a folder of `Explanation.save`.")]
Out = Annotated[str | None, typer.Option(help="The file. Default: report.html in the folder.")]


@waits
def report(folder: Results, out: Out = None) -> None:
    """One HTML file with all results of a folder: search, sort, prompts, layers, values; no network, no server."""
    path = page_of(folder, out)
    console.print(f"report: {plain(str(path))} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True, highlight=False)


def page_of(folder: str | Path, out: str | None = None) -> Path:
    """Write the page of a folder of results; returns its path."""
    from legrad.report.page import html, write_page
    from legrad.results.explanation import Explanation
    from legrad.results.manifest import Manifest, folder_path
    from legrad.results.page import page_record

    root = folder_path(folder)
    explanation = Explanation.load(root)
    manifest = Manifest.read(root / "manifest.json")
    failures = [] if manifest is None else [(entry["image"], entry["error"]) for entry in manifest.failures]
    path = root / "report.html" if out is None else Path(out)
    write_page(path, html(page_record(explanation, range(len(explanation.names)), "inferno", 0.8, failures)))
    return path
