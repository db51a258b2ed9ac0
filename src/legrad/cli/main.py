"""The command line: ``legrad explain``, ``legrad models``, ``legrad doctor``. Parse, call the library, save, print.

Exit status: 0 all is well, 1 some inputs failed (or a model is not healthy), 2 nothing could be done. What is heavy is
imported when a command runs: help, version and shell completion load neither torch nor a model library, except of a
single benchmark (``legrad bench NAME``), whose options are read off its class. The list of methods loads neither.
"""

import io
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.table import Column, Table

import legrad
from legrad.choices import LIBRARIES
from legrad.cli import arguments, bench, completion, paper
from legrad.cli.arguments import Json
from legrad.cli.consoles import console, drop_output, plain, print_error, print_warning
from legrad.cli.explain import explain
from legrad.cli.options import choice, parse_size
from legrad.cli.output import print_json
from legrad.cli.report import report
from legrad.cli.waiting import WaitingCommand, spinner, waits
from legrad.errors import InputError, LeGradError

app = typer.Typer(
    help="Where did the model look, for this text or this class?", no_args_is_help=True, pretty_exceptions_enable=False
)
app.command(cls=WaitingCommand)(explain)
app.command()(report)
app.command()(paper.cite)
app.add_typer(bench.app, name="bench")


def _version(requested: bool) -> None:
    if requested:
        console.print(f"legrad {legrad.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command(cls=WaitingCommand)
@waits
def models(
    filter: Annotated[str, typer.Argument(help="Part of the name, any case.")] = "",
    library: Annotated[
        str | None,
        typer.Option(help="Only this one: open_clip, timm, hf, torchvision.", autocompletion=completion.of(LIBRARIES)),
    ] = None,
    supported: Annotated[bool, typer.Option("--supported", help="Leave out what cannot be explained.")] = False,
    json: Json = False,
) -> None:
    """List what can be loaded by name, and why the rest cannot; nothing is built or downloaded."""
    from legrad.models.registry import available

    if library is not None:
        library = choice("--library", library, LIBRARIES)
    table = Table(Column("model", no_wrap=True, overflow="fold"), "verdict")
    rows = [
        (name, reason)
        for name, reason in available()
        if filter.lower() in name.lower() and library in (None, name.partition(":")[0]) and not (supported and reason)
    ]
    if json and rows:
        print_json([{"model": name, "supported": not reason, "reason": reason} for name, reason in rows])
        return
    for name, reason in rows:
        table.add_row(
            plain(name), f"[red]not supported:[/red] {plain(reason)}" if reason else "[green]supported[/green]"
        )
    if not rows:
        raise InputError(f"no model's name contains {filter!r}{f' in library {library!r}' if library else ''}")
    spinner.stop()
    console.print(table)
    console.print(
        f"{sum(not reason for _, reason in rows)} of {len(rows)} supported; also folders and the hub: "
        "open_clip:local-dir:PATH, open_clip:hf-hub:ORG/REPO, timm:local-dir:PATH, timm:hf-hub:ORG/REPO, hf:FOLDER, "
        "hf:ORG/REPO",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def methods(json: Json = False) -> None:
    """List the methods for `legrad explain --method`: what each map is, and where it comes from."""
    from legrad.methods.catalogue import listed

    if json:
        print_json([{"method": name, "map": about.summary, "source": about.source} for name, about in listed().items()])
        return
    table = Table(Column("method", no_wrap=True), "the map", Column("source", overflow="fold"))
    for name, method in listed().items():
        table.add_row(name, method.summary, method.source)
    console.print(table)


@app.command(cls=WaitingCommand)
@waits
def doctor(
    model: Annotated[
        str, typer.Argument(help="As for --model of `legrad explain`.", autocompletion=completion.models)
    ] = "embedded",
    size: Annotated[str | None, typer.Option(help="Input size, 448 or HEIGHTxWIDTH. Default: the model's.")] = None,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = None,
    json: Json = False,
) -> None:
    """Examine a model: what it is, how it is explained, and whether the truth check holds on a random image."""
    from legrad.doctor import examine

    report = examine(legrad.load(model, device=device.lower(), dtype=dtype), parse_size(size))
    if json:
        print_json(
            [{"what": finding.what, "value": finding.value, "good": finding.good} for finding in report.findings]
        )
        raise typer.Exit(0 if report.healthy else 1)
    table = Table(Column(plain(model), style="bold"), Column("", overflow="fold"), show_header=True)
    marks = {True: "[green]✓[/green] ", False: "[red]✗[/red] ", None: ""}
    for finding in report.findings:
        table.add_row(finding.what, marks[finding.good] + plain(finding.value))
    spinner.stop()
    console.print(table)
    if not report.healthy:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: library errors become one line and exit status 2, warnings one line each."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may hold what the terminal cannot show
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning
            with completion.colons_of_bash():
                raise SystemExit(app(prog_name="legrad", standalone_mode=False) or 0)
    except LeGradError as error:
        print_error(str(error))
        raise SystemExit(2) from None
    except OSError as error:  # of the terminal: files are written elsewhere, with errors of their own
        drop_output()
        print_error(f"cannot write the output: {error.strerror or error}")
        raise SystemExit(2) from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, wherever this version of typer has it from
            raise
        raise SystemExit(_report_usage(error)) from None


def _report_usage(error: Any) -> int:
    """Print what is wrong with the arguments, or the help if there are none; the exit status."""
    context = error.ctx if hasattr(error, "ctx") else None
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        hint = f" (see {context.command_path} --help)" if context else ""
        print_error(f"{error.format_message().rstrip('.')}{hint}")
    return int(error.exit_code)
