"""``Explainer.stream``: images of any source, one result each, as soon as it is ready.

While the model works on one batch, the next one is taken from the source and its files are read, so at most two batches
are in memory. The first batches are small, so that the first result does not wait for a whole one.
"""

import contextlib
import difflib
import functools
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from legrad.checks import check_count, check_switch, first_line
from legrad.choices import check_choice
from legrad.defaults import usual_dtype
from legrad.errors import InputError, LeGradError, UnsupportedModelError, user_line, warnings_at
from legrad.inputs.ahead import read_ahead
from legrad.inputs.originals import AbsentImage, ImageFile
from legrad.inputs.prepare import Inputs
from legrad.inputs.readers import Input
from legrad.inputs.singles import kind_of, name_of, singles
from legrad.inputs.urls import Download
from legrad.models.anatomy import ViTAnatomy
from legrad.request import checked_request
from legrad.results.explanation import Explanation
from legrad.targets.kinds import Targets

OnError = Literal["raise", "skip", "collect"]
ON_ERROR = ("raise", "skip", "collect")
_DEFAULTS: Mapping[str, Any] = {
    "layers": None,
    "readout": "auto",
    "method": "legrad",
    "size": None,
    "fit": "model",
    "null_target": None,
    "null_threshold": 0.8,
    "keep_layers": False,
    "memory": "auto",
    "value_range": None,
    "allow_private_urls": True,
}
_LARGEST = {"cpu": 8}  # images of a batch by kind of device; a CPU gains little by more
_LARGEST_ELSEWHERE = 32
_THREADS = 16
_UNNAMED = ("image 0", "video 0", "sound 0")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """An image of a stream that could not be explained.

    Attributes:
        index: its place among the images, from 0 on.
        name: path, URL, or "image 3", ...
        error: why; its text is one line.
    """

    index: int
    name: str
    error: LeGradError

    def __str__(self) -> str:
        return str(self.error)


@dataclass(frozen=True)
class Streaming:
    """A stream's checked arguments.

    Attributes:
        explainer: of the model.
        anatomy: of the model.
        targets: resolved once; None for methods without.
        options: of ``explain``.
        largest: images of a batch.
        ramp: whether the first batches are smaller.
        on_error, keep_images: as of ``Explainer.stream``.
    """

    explainer: Any
    anatomy: ViTAnatomy
    targets: Any
    options: Mapping[str, Any]
    largest: int
    ramp: bool
    on_error: OnError
    keep_images: bool

    def results(self, sources: Any, advance: Callable[[], None]) -> Generator[Explanation | Failure]:
        """One result per image, in order; ``advance`` is called after each."""
        batches = self._batches(singles(sources, self.anatomy))
        index = 0
        with contextlib.closing(batches):
            for batch in batches:
                for result in self._explained(batch, index):
                    index += 1
                    if isinstance(result, Failure):
                        _logger.warning("%s could not be explained: %s", result.name, result)
                        if self.on_error == "raise":
                            raise result.error
                    advance()
                    if not (isinstance(result, Failure) and self.on_error == "skip"):
                        yield result

    def _batches(self, singles: Iterator[Any]) -> Generator[list[Input | Failure]]:
        """Inputs, or why there is none; the next batch is being read while one is used.

        An error of the source itself comes behind the results of what it gave before.
        """
        size, taken, reading = 1 if self.ramp else self.largest, 0, None
        failure: BaseException | None = None
        try:
            while True:
                jobs: list[Callable[[], Input | Failure]] = []
                try:
                    for single in singles if failure is None else ():
                        jobs.append(self._job(single, taken + len(jobs)))
                        if len(jobs) == size:
                            break
                except Exception as error:
                    failure = error
                upcoming = _begun(jobs) if jobs else None
                if reading is not None:
                    yield list(reading)
                reading = upcoming
                if reading is None:
                    break
                taken += len(jobs)
                size = min(2 * size, self.largest)
        finally:
            if reading is not None:
                reading.close()
        if failure is not None:
            raise failure

    def _job(self, single: Any, index: int) -> Callable[[], Input | Failure]:
        """Files are read by threads; what is in memory is read here, for its owner may change it afterwards."""
        if isinstance(single, bytes | bytearray | memoryview):
            single = Download(f"{kind_of(self.anatomy)} {index}", bytes(single))
        read = functools.partial(self._read, single, index)
        if isinstance(single, str | os.PathLike | Download):
            return functools.partial(_at_line, user_line(), read)
        result = read()
        return lambda: result

    def _read(self, single: Any, index: int) -> Input | Failure:
        names = ("size", "fit", "value_range", "allow_private_urls")
        source = single.clone()[None] if isinstance(single, Tensor) else single
        try:
            given = source if isinstance(source, Tensor | Inputs | Mapping) else [source]
            queue = self.explainer.queue(
                given, *(self.options[name] for name in names), None if self.keep_images else 0
            )
            (item,) = next(queue.windows())
        except LeGradError as error:
            return Failure(index, name_of(single, index, self.anatomy), error)
        except Exception as error:  # of the user's own transform, or of a library's
            name = name_of(single, index, self.anatomy)
            return Failure(index, name, InputError(f"{name} cannot be read: {first_line(error)}"))
        if item.name in _UNNAMED:
            item = replace(item, name=f"{kind_of(self.anatomy)} {index}")
        if not self.keep_images and not isinstance(item.image, ImageFile):
            reason = f"the original of {item.name} was not kept; stream(..., keep_images=True) keeps it"
            item = replace(item, image=AbsentImage(reason))
        return item

    def _explained(self, batch: Sequence[Input | Failure], first: int) -> Iterator[Explanation | Failure]:
        """In the order of the batch."""
        answers = iter(self._answers([item for item in batch if isinstance(item, Input)]))
        for index, item in enumerate(batch, first):
            answer = item if isinstance(item, Failure) else next(answers)
            yield Failure(index, item.name, answer) if isinstance(answer, LeGradError) else answer

    def _answers(self, inputs: Sequence[Input]) -> list[Explanation | LeGradError]:
        """Of every input; a batch that fails is taken apart, so that one bad image takes no other with it."""
        if not inputs:
            return []
        own = {name: value for name, value in self.options.items() if name not in ("size", "fit", "value_range")}
        try:
            explanation = self.explainer.explain(Inputs(inputs), self.targets, **own)
        except UnsupportedModelError:  # of the model, not of an image
            raise
        except LeGradError as error:
            return [error] if len(inputs) == 1 else [answer for item in inputs for answer in self._answers([item])]
        return [self._with_own_settings(part) for part in explanation]

    def _with_own_settings(self, explanation: Explanation) -> Explanation:
        """As ``explain`` would have written them, which got prepared images."""
        settings = {**explanation.settings, "fit": self.options["fit"]}
        settings["input_size"] = list(explanation.placements[0].input)
        if self.options["value_range"] is not None:
            settings["value_range"] = list(self.options["value_range"])
        return replace(explanation, settings=settings)


class Streams:
    """``Explainer.stream``."""

    def stream(
        self,
        sources: Any,
        targets: Targets | None = None,
        batch_size: Literal["auto"] | int = "auto",
        on_error: OnError = "raise",
        progress: bool = False,
        keep_images: bool = False,
        **options: Any,
    ) -> Iterator[Explanation | Failure]:
        """Explain images of any source, one result each, as soon as it is ready: data that fit into no memory.

        >>> explainer = legrad.load("embedded")
        >>> images = (scene.image for scene in legrad.embedded.scenes(3))
        >>> [result.names[0] for result in explainer.stream(images, "a cow")]
        ['image 0', 'image 1', 'image 2']

        Args:
            sources: a folder (with those in it), a glob pattern, or an iterable of what ``explain`` takes as an image:
                a list, a generator, ``Path.glob``, a DataLoader of tensors or of (tensor, label) batches. Also single
                images, the bytes of image files, and rows with an "image". It is read as results are taken.
            targets: as for ``explain``, the same for all images; encoded once.
            batch_size: images that go through the model together; "auto" begins with one.
            on_error: what happens to an image that cannot be read or explained: "raise" its error behind the results
                before it, "skip" it (the logger "legrad" says so), or "collect" a ``Failure`` in its place.
            progress: draw a bar on stderr.
            keep_images: keep originals that are no files; results of others are without a figure. Files are read again
                when they are shown.
            options: as for ``explain``: layers, readout, method, size, fit, null_target, null_threshold, keep_layers,
                memory, value_range, allow_private_urls.

        Returns:
            An iterator of explanations of one image each, in order; ``Explanation.cat`` puts them together.

        Raises:
            InputError: an argument that cannot be used, at once; with "raise" an image, when its turn comes.
        """
        arguments = _checked(self, targets, batch_size, on_error, keep_images, options)
        if not check_switch("progress", progress):
            return arguments.results(sources, lambda: None)
        return _with_bar(arguments, sources)


def _checked(
    explainer: Any,
    targets: Any,
    batch_size: Any,
    on_error: Any,
    keep_images: Any,
    options: Mapping[str, Any],
) -> Streaming:
    """The arguments of ``Explainer.stream``, checked; targets are encoded here, once.

    Raises:
        InputError: an argument that cannot be used.
    """
    check_choice("on_error", on_error, ON_ERROR)
    for name in options:
        if name == "inputs":
            raise InputError("stream takes no inputs=: it does not know the number of images; give explain batches")
        if name not in _DEFAULTS:
            close = difflib.get_close_matches(name, _DEFAULTS, 1)
            raise InputError(
                f"stream has no argument {name!r}{f', did you mean {close[0]!r}?' if close else ''}; beside its own it "
                f"takes {', '.join(_DEFAULTS)}, as explain does"
            )
    values = {**_DEFAULTS, **options}
    anatomy = explainer.anatomy
    of_request = ("layers", "readout", "method", "fit", "null_target", "null_threshold", "keep_layers", "memory")
    request = checked_request(anatomy, **{name: values[name] for name in (*of_request, "value_range")})
    of_embedding = ("memory", "allow_private_urls", "size", "fit", "value_range")
    embed = functools.partial(explainer.embed, **{name: values[name] for name in of_embedding})
    targets = embed(targets) if request.method.own_labels(anatomy, targets) is None else None
    if values["null_target"] is not None:
        values["null_target"] = embed(values["null_target"])
    automatic = isinstance(batch_size, str) and batch_size == "auto"
    if not automatic and isinstance(batch_size, str):
        raise InputError(f"batch_size is 'auto' or a whole number from 1, got {batch_size!r}")
    largest = (
        _LARGEST.get(anatomy.device.type, _LARGEST_ELSEWHERE) if automatic else check_count("batch_size", batch_size)
    )
    keep = check_switch("keep_images", keep_images)
    return Streaming(explainer, anatomy, targets, values, largest, automatic, on_error, keep)


def _with_bar(stream: Streaming, sources: Any) -> Generator[Explanation | Failure]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("explaining", total=_count(sources))
        yield from stream.results(sources, lambda: bar.advance(task))


def _count(sources: Any) -> int | None:
    """How many images there will be, where that is known."""
    counted = getattr(sources, "dataset", sources)  # of a DataLoader, which counts batches
    if isinstance(counted, str | bytes | os.PathLike | Mapping):
        return None
    try:
        return len(counted)
    except TypeError:
        return None


def _begun(jobs: Sequence[Callable[[], Any]]) -> Generator[Any]:
    """The results of the jobs in order; threads have begun with them when this returns."""
    if not usual_dtype():  # nothing may run meanwhile that would see another one
        return (job() for job in jobs)
    results = read_ahead([lambda: None, *jobs], min(_THREADS, os.cpu_count() or 1, len(jobs) + 1), len(jobs) + 1)
    next(results)  # the first job is nothing: it starts the threads
    return results


def _at_line(line: Any, job: Callable[[], Any]) -> Any:
    with warnings_at(line):
        return job()
