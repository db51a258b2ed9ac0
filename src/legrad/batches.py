"""Explain many images with many targets, in passes that fit into memory."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from legrad import stages
from legrad.core.finite import check_output
from legrad.core.first_look import EXAMINED
from legrad.core.first_use import FirstUse, Gradients
from legrad.core.memory import Budget, images_per_forward, ran_out
from legrad.core.planning import Shortcuts
from legrad.core.score import Function, PerImage, ResolvedTarget
from legrad.core.streaming import Explained, explain_batch
from legrad.core.truth import final_answer, with_raw_features
from legrad.core.undo import Borrowing
from legrad.errors import InputError, TruthCheckError
from legrad.inputs.prepare import InputQueue, by_size, stack
from legrad.inputs.readers import Input
from legrad.methods import registry
from legrad.models.anatomy import ViTAnatomy
from legrad.models.side_inputs import SideInputs
from legrad.request import Request
from legrad.results.assemble import PassResult

_logger = logging.getLogger(__name__)
WINDOW = 256  # images that are ready at once; as many more are being read meanwhile
_GIVEN_UP = torch.empty(0, device="cpu")


class Question:
    """What a call computes for each of its images, and how much of it goes into one pass, for every size of images.

    Args:
        request: the call's checked arguments.
        targets: resolved, the null target last if there is one.
        side_inputs: what goes into the model beside the images.
    """

    def __init__(self, request: Request, targets: Sequence[ResolvedTarget], side_inputs: SideInputs) -> None:
        self.request, self.targets, self._side_inputs = request, targets, side_inputs
        # LeGrad differentiates one block at a time
        others: Gradients = "all" if request.method.needs == "gradients" else "none"
        self._gradients: Gradients = "layers" if request.method.function is None else others
        self._needs_answer = any(target.needs_answer for target in targets)
        self._budgets: dict[tuple[int, ...], Budget] = {}

    def shortcuts(self, anatomy: ViTAnatomy, first: Input, row: int, first_use: FirstUse) -> Shortcuts:
        """What may be computed in closed form for inputs like the first one, image ``row`` of the call.

        Raises:
            TruthCheckError: the model is not what its anatomy says, or its own output holds NaN.
            InputError: the input is so far out of range that the output holds NaN.
        """
        batch = stack([first], anatomy.device, anatomy.dtype)
        bound = self._side_inputs.bound(anatomy, [row])
        try:
            shortcuts = first_use.shortcuts_for(batch, bound, self._gradients)
        except TruthCheckError:
            check_output(bound, batch)  # NaN is told where it comes from
            raise
        # a block may look plain for one row of side inputs, and not for the next
        return Shortcuts() if bound.side_inputs else shortcuts

    def results(
        self, anatomy: ViTAnatomy, inputs: Sequence[Input], members: Sequence[int], shortcuts: Shortcuts
    ) -> Iterator[PassResult]:
        """Explain images of one size.

        Args:
            anatomy: for this size.
            inputs: those prepared so far, of all sizes.
            members: indices of those of this size.
            shortcuts: of this size.

        Yields:
            The result of each pass, in the order of ``members``.

        Raises:
            LeGradError: out of memory with one image and one target.
        """
        budget = self._budget(anatomy)
        start = 0
        while start < len(members):
            rows = members[start : start + budget.images_per_pass(self._needs_answer)]
            try:
                result = self._one_pass(anatomy, [inputs[row] for row in rows], rows, shortcuts, budget)
            except (MemoryError, RuntimeError, OSError) as error:
                if not ran_out(error) or EXAMINED in getattr(error, "__notes__", ()):
                    raise
                # drop the traceback: its stack frames keep the failed chunk's tensors alive
                failure = error.with_traceback(None)
            else:
                yield result
                start += len(rows)
                continue
            budget.halve(len(rows), self._needs_answer, failure)

    def _budget(self, anatomy: ViTAnatomy) -> Budget:
        """One budget for all windows of images of a shape: after a failure it stays small."""
        if anatomy.shape not in self._budgets:
            self._budgets[anatomy.shape] = Budget(
                anatomy, len(self.targets), len(self.request.layers), self.request.memory
            )
        return self._budgets[anatomy.shape]

    def _one_pass(
        self, anatomy: ViTAnatomy, inputs: Sequence[Input], rows: Sequence[int], shortcuts: Shortcuts, budget: Budget
    ) -> PassResult:
        """All targets of some images, a few targets at a time; those that score raw features by themselves."""
        batch = stack(inputs, anatomy.device, anatomy.dtype)
        targets = [target.rows(rows) for target in self.targets]
        order = sorted(range(len(targets)), key=lambda index: targets[index].needs_raw)
        passes: list[Explained] = []
        for raw, indices in itertools.groupby(order, key=lambda index: targets[index].needs_raw):
            bound = self._side_inputs.bound(with_raw_features(anatomy) if raw else anatomy, rows)
            for group in _split([targets[index] for index in indices], budget.targets):
                try:
                    passes.append(self._explained(bound, batch, group, shortcuts, budget))
                except TruthCheckError:
                    check_output(bound, batch)  # NaN is told where it comes from
                    raise
        place = torch.tensor(order, device="cpu").argsort()
        per_layer = torch.cat([maps.relevance for maps in passes], 1)[:, place]
        scores = torch.cat([maps.scores for maps in passes], 1)[:, place]
        resolved = [target for maps in passes for target in maps.targets]
        resolved = [resolved[index] for index in place.tolist()]
        if not bool(torch.isfinite(scores).all()) or not bool(torch.isfinite(per_layer).all()):
            check_output(self._side_inputs.bound(anatomy, rows), batch)
            _refuse_nonfinite(inputs, resolved, scores, per_layer)
        return PassResult(
            list(rows),
            anatomy.patch_grid,
            self.request.method.merge(per_layer.unbind(2)),
            per_layer if self.request.keep_layers else None,
            scores,
            resolved,
            # those that score raw features come last
            None if not order or targets[order[0]].needs_raw else passes[0].answer,
        )

    def _explained(
        self,
        anatomy: ViTAnatomy,
        batch: Tensor,
        targets: Sequence[ResolvedTarget],
        shortcuts: Shortcuts,
        budget: Budget,
    ) -> Explained:
        question = anatomy, batch, targets, self.request.layers, self.request.readout
        method = self.request.method
        if method.function is None:
            return explain_batch(
                *question, shortcuts, budget.keep_until_answer, budget.max_numel, reduction=method.reduction
            )
        return registry.explain_batch(method, *question, self.request.memory)


def _split(targets: list[ResolvedTarget], count: int) -> Iterator[list[ResolvedTarget]]:
    for first in range(0, len(targets), count):
        yield targets[first : first + count]


def _refuse_nonfinite(
    inputs: Sequence[Input], targets: Sequence[ResolvedTarget], scores: Tensor, per_layer: Tensor
) -> None:
    """Raise for scores or maps that hold NaN or infinite values though the model's own output holds none."""
    bad_scores, bad_maps = ~torch.isfinite(scores), ~torch.isfinite(per_layer).flatten(2).all(-1)
    what = "score" if bool(bad_scores.any()) else "map"
    image, index = (bad_scores if what == "score" else bad_maps).nonzero()[0].tolist()
    target = targets[index]
    place = f"the {what} of target {target.label_of(image)!r} for {inputs[image].name} holds NaN or infinite values"
    if isinstance(target, Function | PerImage):
        gradient = "returns them" if what == "score" else "has no finite gradient (a root or logarithm of zero?)"
        raise InputError(f"{place}: its callable {gradient}")
    raise TruthCheckError(f"{place}, though the model's output is finite: its gradients overflow; try float32")


def explain_queue(
    question: Question,
    queue: InputQueue,
    anatomy: ViTAnatomy,
    first_use: FirstUse,
    undisturbed_model: Callable[[], Borrowing],
) -> tuple[list[Input], list[PassResult]]:
    """Read and explain; while a device works on one window of images, the CPU prepares the next.

    Args:
        question: what the call computes.
        queue: its images.
        anatomy: of the model's own size.
        first_use: of the model.
        undisturbed_model: this thread's alone; files and URLs are read outside.

    Returns:
        The inputs, whose tensors are given up once they are explained, and the results of all passes.
    """
    inputs: list[Input] = []
    results: list[PassResult] = []
    with contextlib.closing(queue.windows(question.request.window(anatomy))) as windows:
        for window in windows:
            start = len(inputs)
            inputs += window
            with undisturbed_model():
                for input_size, members in by_size(inputs, start).items():
                    at_size = anatomy.at(input_size)
                    stages.tell("checking")
                    shortcuts = question.shortcuts(at_size, inputs[members[0]], members[0], first_use)
                    stages.tell("explaining")
                    results.extend(question.results(at_size, inputs, members, shortcuts))
            _logger.debug("explained %d images, %d of %d", len(window), len(inputs), len(queue))
            inputs[start:] = [replace(item, tensor=_GIVEN_UP) for item in window]
            del window
    return inputs, results


def final_answers(
    anatomy: ViTAnatomy,
    windows: Iterable[Tensor | Sequence[Input]],
    side_inputs: SideInputs,
    undisturbed_model: Callable[[], Borrowing],
) -> Tensor:
    """The model's own final answers.

    Args:
        anatomy: of the model's own size.
        windows: tensors, checked by ``inputs.tensors.checked_tensor`` and on any device, or prepared inputs.
        side_inputs: of all of them.
        undisturbed_model: this thread's alone; files and URLs are read outside.

    Returns:
        (images, features) on the CPU.
    """
    answers: list[Tensor] = []
    start = 0
    for window in windows:
        with undisturbed_model():
            for at_size, batch in _batches(anatomy, window):
                bound = side_inputs.bound(at_size, range(start, start + len(batch)))
                answers.append(final_answer(bound, bound.run(batch)).cpu())
                start += len(batch)
    return torch.cat(answers)


def _batches(anatomy: ViTAnatomy, window: Tensor | Sequence[Input]) -> Iterator[tuple[ViTAnatomy, Tensor]]:
    """In the order of the window, as many as fit one plain forward pass, each batch with the anatomy for its size."""
    if isinstance(window, Tensor):
        sides = tuple(window.shape[-2:])
        if len(anatomy.shape) == 1:  # waveforms have one row of patches
            sides = anatomy.image_size
        elif anatomy.axes[0] == "frequency":  # spectrograms are (time, frequency)
            sides = sides[::-1]
        at_size = anatomy.at((sides[0], sides[1]))
        for part in window.split(images_per_forward(at_size)):
            yield at_size, part.to(at_size.device, at_size.dtype)
        return
    for size, neighbours in itertools.groupby(window, key=lambda item: item.placement.input):
        at_size, members = anatomy.at(size), list(neighbours)
        count = images_per_forward(at_size)
        for first in range(0, len(members), count):
            yield at_size, stack(members[first : first + count], at_size.device, at_size.dtype)
