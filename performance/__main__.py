"""Measure the speed and memory numbers that this project publishes: ``make performance``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from performance import environments, page, plots, tables
from performance.cases import CASES, Case, select
from performance.contenders import RIVALS
from performance.results import Results
from performance.store import ROOT, Store, machine, revision

FULL, QUICK = ROOT / "docs" / "performance", ROOT / "runs" / "performance-quick"
# seconds that the readings of a case may take, beyond the minimum of rounds
BUDGET, QUICK_BUDGET = 8.0, 2.0
TIMEOUT = 1800

# piped into a file the tables are not squeezed into 80 columns
console = Console(width=None if sys.stdout.isatty() else 160)


class Measuring:
    """Runs cases, each in a process of its own.

    Args:
        device: "cpu", "cuda", ...
        threads: of PyTorch.
        repeats: rounds of every time case; None for as many as fit the budget.
        quick: short budget, one process per memory case.
        envs: folder of the rivals' environments.
    """

    def __init__(self, device: str, threads: int, repeats: int | None, quick: bool, envs: Path) -> None:
        self.order = {
            "device": device,
            "threads": threads,
            "repeats": repeats,
            "budget": QUICK_BUDGET if quick else BUDGET,
        }
        self.quick, self.envs = quick, envs

    def __call__(self, case: Case) -> dict[str, Any]:
        """The samples of a case; raises with the end of the worker's messages if it failed."""
        if case.measure == "time":
            return self._process(case)
        runs = [self._process(case) for _ in range(1 if self.quick else case.processes)]
        return {"runs": runs, "load": runs[0]["load"], "versions": runs[0]["versions"]}

    def _process(self, case: Case) -> dict[str, Any]:
        rival = RIVALS.get(case.contender)
        python, home, variables = sys.executable, "", dict(os.environ)
        if rival is not None and rival.pins:
            python = str(environments.python_of(case.contender, rival, self.envs))
            home = str(Path(python).parent.parent)
            variables = environments.clean()
        threads = str(self.order["threads"])
        # offline: nothing here needs a network
        variables |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        with tempfile.TemporaryDirectory() as scratch:
            answer = Path(scratch, "answer.json")
            order = {**self.order, "case": case.as_dict(), "environment": home, "answer": str(answer)}
            process = subprocess.run(
                [python, "-m", "performance.worker"],
                cwd=ROOT,
                input=json.dumps(order),
                capture_output=True,
                text=True,
                env=variables,
                timeout=TIMEOUT,
            )
            if process.returncode:
                raise RuntimeError(_error_of(process))
            return json.loads(answer.read_text())


def _error_of(process: subprocess.CompletedProcess[str]) -> str:
    if process.returncode == -signal.SIGKILL:
        return "killed, most likely out of memory"
    return process.stderr.strip()[-2000:] or f"exit code {process.returncode}"


def measure_all(
    store: Store, todo: list[Case], measuring: Callable[[Case], dict[str, Any]], code: str
) -> Iterator[tuple[Case, str | None]]:
    """Measure and store one case after the other; yields (case, error or None). A failure ends only its case."""
    for case in todo:
        error = None
        stamp = {"revision": code, "when": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            entry = measuring(case)
        except (RuntimeError, OSError, subprocess.SubprocessError) as failure:
            error = str(failure)
            entry = {"error": error}
        store.add(case, {**stamp, **entry})
        yield case, error


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A subset of a few minutes.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Cases whose key holds this, or matches this pattern; measured again.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of PyTorch, for every contender.", min=1)] = 2,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds of every case; default: what fits the time, at least 3.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; the page is written beside it, as FOLDER.md.")
    ] = None,
    envs: Annotated[Path, typer.Option(help="Where the other packages are installed.")] = environments.DEFAULT,
    show: Annotated[bool, typer.Option("--list", help="Print the cases and stop.")] = False,
    render: Annotated[bool, typer.Option("--render", help="Write the page again, measure nothing.")] = False,
) -> None:
    """Measure ours and others against the bare forward pass; print and save tables, samples and plots.

    An interrupted run continues where it stopped; failed cases are measured again.
    """
    folder = out or (QUICK if quick else FULL)
    if render:
        content = json.loads((folder / "results.json").read_text())
        console.print(f"wrote {_report(content, folder)}")
        return
    selection = select(CASES, quick, only, device.startswith("cuda"))
    if show or not selection:
        console.print("\n".join(case.key for case in selection) or f"no case matches {only!r}; --list prints all")
        raise typer.Exit(0 if show else 2)
    settings = {"device": device, "threads": threads, "quick": quick}
    store = Store(folder / "results.json", settings, machine(device))
    if store.dropped and only is not None:
        console.print(f"{store.path} holds other settings or another machine: give --out, or run all", style="red")
        raise typer.Exit(2)
    if store.dropped:
        console.print(f"{store.dropped} earlier cases had other settings or another machine: measuring anew")
    todo = store.begin(selection, full=only is None)
    if len(todo) < len(selection):
        console.print(f"going on: {len(selection) - len(todo)} of {len(selection)} cases are done")
    failures = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    try:
        with bar:
            task = bar.add_task("", total=len(todo))
            measuring = Measuring(device, threads, repeats, quick, envs)

            def measure(case: Case) -> dict[str, Any]:
                bar.update(task, description=case.key)
                return measuring(case)

            for case, error in measure_all(store, todo, measure, revision()):
                bar.advance(task)
                bar.console.print(f"{case.key}  {_short(case, store) if error is None else 'FAILED'}", highlight=False)
                if error is not None:
                    failures.append((case, error))
    except KeyboardInterrupt:
        console.print(f"interrupted; what is done is in {store.path}, the same command goes on")
        raise typer.Exit(130) from None
    if only is None:
        store.finish(selection)
    path = _report(store.content, folder)
    _print_tables(Results(store.entries))
    console.print(f"wrote {path}, {store.path}")
    for case, error in failures:
        console.print(f"FAILED {case.key}: {error}", style="red", highlight=False, markup=False)
    if failures:
        raise typer.Exit(1)


def _report(content: dict[str, Any], folder: Path) -> Path:
    return page.write(content, folder, plots.draw(Results(content["cases"]), folder))


def _short(case: Case, store: Store) -> str:
    results = Results(store.entries)
    ratio, extra = results.ratio(case), results.extra(case)
    if ratio is not None:
        return f"{ratio.show()} bare forwards"
    return "" if extra is None else f"{extra.show(3)} GB extra"


def _print_tables(results: Results) -> None:
    for make in (tables.goals, tables.times, tables.rivals, tables.memory, tables.growth):
        title, head, rows = make(results)
        if rows:
            table = Table(*head, title=title)
            for row in rows:
                table.add_row(*row)
            console.print(table)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        typer.run(main)
