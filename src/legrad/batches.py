"""Explain many images with many targets, in passes that fit into memory."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from legrad.core.first_use import Gradients
from legrad.core.memory import Budget, images_per_forward, ran_out
from legrad.core.planning import Shortcuts
from legrad.core.score import ResolvedTarget
from legrad.core.streaming import Explained, explain_batch
from legrad.inputs.prepare import Input, stack
from legrad.methods import Method, registry
from legrad.models.anatomy import ViTAnatomy
from legrad.results.assemble import PassResult


class Question:
    """What a call computes for each of its images, and how much of it goes into one pass, for every size of images.

    Args:
        method: how to explain.
        targets: resolved, the null target last if there is one.
        layers: ascending block indices.
        readout: a key of ``ViTAnatomy.readouts``.
        memory: bytes, or "auto".
    """

    def __init__(
        self, method: Method, targets: Sequence[ResolvedTarget], layers: Sequence[int], readout: str, memory: str | int
    ) -> None:
        self.method, self.targets, self.layers, self.readout, self.memory = method, targets, layers, readout, memory
        # LeGrad differentiates one block at a time
        others: Gradients = "all" if method.needs == "gradients" else "none"
        self.gradients: Gradients = "layers" if method.function is None else others
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
            except (MemoryError, RuntimeError, OSError) as error:
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
            self._budgets[anatomy.shape] = Budget(anatomy, len(self.targets), len(self.layers), self.memory)
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
            if self.method.function is None:
                limits = budget.keep_until_answer, budget.max_numel
                passes.append(explain_batch(anatomy, batch, group, self.layers, self.readout, shortcuts, *limits))
            else:
                passes.append(
                    registry.explain_batch(self.method, anatomy, batch, group, self.layers, self.readout, self.memory)
                )
        return PassResult(
            list(rows),
            anatomy.patch_grid,
            torch.cat([explained.relevance for explained in passes], 1),
            torch.cat([explained.scores for explained in passes], 1),
            [target for explained in passes for target in explained.targets],
        )


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
