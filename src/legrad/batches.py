"""Explain many images with many targets, in passes that fit into memory."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from legrad.core.first_use import FirstUse
from legrad.core.memory import Budget, images_per_forward, ran_out
from legrad.core.planning import Shortcuts
from legrad.core.score import ResolvedTarget
from legrad.core.streaming import Explained, explain_batch
from legrad.inputs.prepare import Input, InputQueue, by_size, stack
from legrad.methods import registry
from legrad.models.anatomy import ViTAnatomy
from legrad.request import Request
from legrad.results.assemble import PassResult

_WINDOW = 256  # images that a device gets at once


class Question:
    """What a call computes for each of its images, and how much of it goes into one pass, for every size of images.

    Args:
        request: the call's checked arguments.
        targets: resolved, the null target last if there is one.
    """

    def __init__(self, request: Request, targets: Sequence[ResolvedTarget]) -> None:
        self.request, self.targets = request, targets
        self._needs_answer = any(target.needs_answer for target in targets)
        self._budgets: dict[tuple[int, ...], Budget] = {}

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
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
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
        """All targets of some images, a few targets at a time."""
        batch = stack(inputs, anatomy.device, anatomy.dtype)
        targets = [target.rows(rows) for target in self.targets]
        passes: list[Explained] = []
        for first in range(0, len(targets), budget.targets):
            group = targets[first : first + budget.targets]
            question = anatomy, batch, group, self.request.layers, self.request.readout
            if self.request.method.function is None:
                passes.append(explain_batch(*question, shortcuts, budget.keep_until_answer, budget.max_numel))
            else:
                passes.append(registry.explain_batch(self.request.method, *question, self.request.memory))
        return PassResult(
            list(rows),
            anatomy.patch_grid,
            torch.cat([explained.relevance for explained in passes], 1),
            torch.cat([explained.scores for explained in passes], 1),
            [target for explained in passes for target in explained.targets],
        )


def explain_queue(
    question: Question, queue: InputQueue, anatomy: ViTAnatomy, first_use: FirstUse
) -> tuple[list[Input], list[PassResult]]:
    """Read and explain; while a device works on one window of images, the CPU prepares the next.

    Args:
        question: what the call computes.
        queue: its images.
        anatomy: of the model's own size.
        first_use: of the model.
    """
    inputs: list[Input] = []
    results: list[PassResult] = []
    with contextlib.closing(queue.windows(None if anatomy.device.type == "cpu" else _WINDOW)) as windows:
        for window in windows:
            inputs += window
            for input_size, members in by_size(inputs, len(inputs) - len(window)).items():
                at_size = anatomy.at(input_size)
                first = stack([inputs[members[0]]], at_size.device, at_size.dtype)
                results.extend(question.results(at_size, inputs, members, first_use.shortcuts_for(first, at_size)))
    return inputs, results


def tensor_batches(anatomy: ViTAnatomy, tensor: Tensor) -> Iterator[tuple[ViTAnatomy, Tensor]]:
    """Tensor input in parts that fit one plain forward pass, each with the anatomy for its size.

    Args:
        anatomy: of the model's own size.
        tensor: checked, see ``inputs.prepare.checked_tensor``; on any device.
    """
    sides = tuple(tensor.shape[-2:])
    if len(anatomy.shape) == 1:  # waveforms have one row of patches
        sides = anatomy.image_size
    elif anatomy.axes[0] == "frequency":  # spectrograms are (time, frequency)
        sides = sides[::-1]
    at_size = anatomy.at((sides[0], sides[1]))
    for part in tensor.split(images_per_forward(at_size)):
        yield at_size, part.to(at_size.device, at_size.dtype)


def input_batches(anatomy: ViTAnatomy, inputs: Sequence[Input]) -> Iterator[tuple[ViTAnatomy, Tensor]]:
    """The same for prepared inputs: neighbours of one size together, so that the order stays."""
    for size, neighbours in itertools.groupby(inputs, key=lambda item: item.placement.input):
        at_size, rest = anatomy.at(size), list(neighbours)
        count = images_per_forward(at_size)
        for first in range(0, len(rest), count):
            yield at_size, stack(rest[first : first + count], at_size.device, at_size.dtype)
