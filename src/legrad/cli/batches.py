"""The loop of ``legrad explain``: read, explain and save in small batches."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from legrad.atomic import WriteError
from legrad.cli.waiting import spinner
from legrad.errors import LeGradError

if TYPE_CHECKING:
    from legrad.cli.sources import Source
    from legrad.results.explanation import Explanation

BATCH = 8


def explain_all(
    explain: "Callable[[list[Source], list[Any]], Explanation]",
    save: "Callable[[Explanation, int, Source], None]",
    fail: "Callable[[Source, str], None]",
    sources: "Sequence[Source]",
    still: bool,
    value_range: tuple[float, float] | None,
) -> None:
    """Read images, explain and save them in small batches; whatever is wrong with one does not stop the others.

    Args:
        explain: explains a batch: where its images are from, and the images.
        save: saves one image of it, with its number in the batch.
        fail: is told what went wrong with an image.
        sources: what to read.
        still: images, which are read here; videos and sounds are handed on one by one, as paths.
        value_range: of images, see ``Explainer.explain``.

    Raises:
        WriteError: the results cannot be written, which would be so for all others too.
    """
    from legrad.inputs import images

    step = BATCH if still else 1

    def attempt(batch: "list[tuple[Source, Any]]") -> None:
        try:
            explanation = explain([source for source, _ in batch], [image for _, image in batch])
        except Exception as error:
            if len(batch) == 1:
                fail(batch[0][0], _line(error))
            else:  # find out which one it was
                for item in batch:
                    attempt([item])
            return
        for index, (source, _) in enumerate(batch):
            try:
                save(explanation, index, source)
            except WriteError:
                raise
            except Exception as error:
                fail(source, _line(error))

    spinner.expect(len(sources))
    for start in range(0, len(sources), step):
        batch: list[tuple[Source, Any]] = []
        for source in sources[start : start + step]:
            if source.problem:
                fail(source, source.problem)
                continue
            try:
                image = images.read(source.path, value_range=value_range) if still else source.path
                batch.append((source, image))
            except Exception as error:
                fail(source, _line(error))
        if batch:
            attempt(batch)
        spinner.advance(min(step, len(sources) - start))


def _line(error: Exception) -> str:
    """An error of ours, or one of another kind with its name: one image must not end the work on all others."""
    return str(error) if isinstance(error, LeGradError) else f"{type(error).__name__}: {error}"
