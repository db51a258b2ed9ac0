"""What a paper needs: ``legrad cite``, ``legrad bench table``."""

import sys
from typing import Annotated

import typer

from legrad.choices import check_choice
from legrad.errors import InputError

Names = Annotated[
    list[str] | None, typer.Argument(help="Methods and data sets: gradcam, imagenet-s, ... Default: all of them.")
]
Folder = Annotated[str, typer.Argument(help="The --out of a run.")]
Format = Annotated[str, typer.Option(help="latex | markdown | csv")]
Benchmark = Annotated[str | None, typer.Option(help="Only this benchmark.")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Only this column, as in report.csv; repeat it.")]


def cite(names: Names = None) -> None:
    """BibTeX of methods, baselines and data sets."""
    from legrad.citations import DATA_SETS, METHODS, bibtex
    from legrad.methods.catalogue import GROUP
    from legrad.plugins import names_of

    own_entries: dict[str, str] = {}
    unknown = any(name.partition(":")[0].lower() not in {**METHODS, **DATA_SETS} for name in names or ())
    if unknown and names_of(GROUP):  # only they can have it, and take torch to load
        from legrad.methods import all_methods

        own_entries = {name.lower(): method.bibtex for name, method in all_methods().items() if name not in METHODS}
    sys.stdout.write(bibtex(names or (), own_entries) + "\n")


def table(folder: Folder, format: Format = "latex", benchmark: Benchmark = None, metric: Metrics = None) -> None:
    """Print the tables of all results in a folder: LaTeX (booktabs), Markdown or CSV."""
    from legrad.bench.report.page import results_in
    from legrad.bench.report.tables import FORMATS, merged
    from legrad.results.manifest import folder_path

    check_choice("--format", format, tuple(FORMATS))
    contents = [content for _, content in results_in(folder_path(folder))]
    if benchmark is not None:
        names = list(dict.fromkeys(content["benchmark"] for content in contents))
        if benchmark not in names:
            raise InputError(f"{folder} has no result of {benchmark!r}; there are {', '.join(names)}")
        contents = [content for content in contents if content["benchmark"] == benchmark]
    sys.stdout.write(merged(contents, metric or (), format))
