"""What a terminal shows while a command works: what it is at, and how far. Nothing is shown elsewhere."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer.core
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeColumn
from rich.text import Text

from legrad import stages
from legrad.cli.consoles import stderr

P = ParamSpec("P")
R = TypeVar("R")


class _OfMany(ProgressColumn):
    """A column that is there from two images on."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> Text:
        cell = self._column.render(task) if (task.total or 0) > 1 else Text("")
        return cell  # type: ignore[return-value] # a bar is no text, and as good


class Spinner:
    """A line of its own at the end of the terminal; messages on ``stderr`` appear above it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    @property
    def is_shown(self) -> bool:
        """Between ``start`` and ``stop``."""
        return self._progress is not None

    def start(self, stage: str) -> None:
        """Show it, unless it is there."""
        if self._progress is not None:
            return
        columns = map(_OfMany, (BarColumn(), MofNCompleteColumn(), TimeColumn()))
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            *columns,
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._progress.add_task(stage, total=None)
        self._progress.start()

    def tell(self, stage: str) -> None:
        """What is being done now; shown at once, however short it is."""
        if self._progress is not None and not self._progress.disable:
            self._progress.update(self._progress.task_ids[0], description=stage, refresh=True)

    def expect(self, images: int) -> None:
        """How many images there are."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], total=images)

    def advance(self, images: int) -> None:
        """So many images are done."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], images)

    def stop(self) -> None:
        """Take it away: results are printed now, or nothing more is done."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


spinner = Spinner()


class WaitingCommand(typer.core.TyperCommand):
    """A command whose spinner is there before its arguments are read: typer imports pydantic for that, where it is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of typer."""
        if not ctx.resilient_parsing and not set(ctx.help_option_names) & set(args):
            spinner.start("loading")
        try:
            return super().parse_args(ctx, args)
        except BaseException:
            spinner.stop()
            raise


def waits(command: Callable[P, R]) -> Callable[P, R]:
    """A command that shows the spinner from its begin to its end, and the stages that the library tells."""

    @functools.wraps(command)
    def with_spinner(*args: P.args, **kwargs: P.kwargs) -> R:
        spinner.start("loading")
        try:
            with stages.heard_by(spinner.tell):
                return command(*args, **kwargs)
        finally:
            spinner.stop()

    return with_spinner
