"""What is differentiated: a user's target, resolved to a score of the read-out's feature.

``ResolvedTarget`` has four kinds: ``Direction`` (texts, classes, embeddings), ``Function`` (callables), ``PerImage``
(every image its own) and ``NeedsAnswer`` (targets that depend on the model's own answer).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from legrad.errors import InputError

# for all images, or one per image
Label = str | tuple[str, ...]


@dataclass(frozen=True)
class ResolvedTarget(ABC):
    """A score of the read-out's feature.

    Attributes:
        label: the target's name, for all images, or one per image.
    """

    label: Label

    @property
    def needs_answer(self) -> bool:
        """Whether the target depends on the model's answer, see ``with_answer``."""
        return False

    @abstractmethod
    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,), rows independent."""

    def with_answer(self, answer: Tensor) -> "ResolvedTarget":
        """The target once the model's answer is there.

        Args:
            answer: (batch, features), raw logits or L2-normalised embeddings.
        """
        return self

    def rows(self, indices: Sequence[int]) -> "ResolvedTarget":
        """The same target for some of the images."""
        return replace(self, label=_labels_at(self.label, indices))

    def label_of(self, image: int) -> str:
        """The label for one image."""
        return self.label if isinstance(self.label, str) else self.label[image]

    def is_predicted(self, image: int) -> bool:
        """Whether the model chose the class for one image."""
        return False


@final
@dataclass(frozen=True)
class Direction(ResolvedTarget):
    """The inner product of the feature with a direction.

    Attributes:
        direction: (1 or batch, features).
        predicted: the class was chosen by the model.
    """

    direction: Tensor
    predicted: bool = False

    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,)."""
        if self.direction.shape[-1] != feature.shape[-1]:
            raise InputError(
                f"target {self.label!r} has {self.direction.shape[-1]} features, the model has {feature.shape[-1]}"
            )
        return (feature * self.direction.to(feature)).sum(-1)

    def rows(self, indices: Sequence[int]) -> "Direction":
        """The same target for some of the images."""
        direction = self.direction[list(indices)] if len(self.direction) > 1 else self.direction
        return replace(self, label=_labels_at(self.label, indices), direction=direction)

    def is_predicted(self, image: int) -> bool:
        """Whether the model chose the class."""
        return self.predicted


@final
@dataclass(frozen=True)
class Function(ResolvedTarget):
    """A user's function of the feature.

    Attributes:
        function: (batch, features) -> (batch,), rows independent.
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,).

        Raises:
            InputError: the function returns something else, or something that does not depend on the feature.
        """
        enabled = torch.is_grad_enabled()
        # its own: what it writes there is seen by nobody else
        score = self.function(feature.clone())
        if torch.is_grad_enabled() != enabled:
            torch.set_grad_enabled(enabled)
            raise InputError(
                f"target {self.label!r}: the callable switched gradients {'off' if enabled else 'on'} and left them so "
                "(torch.set_grad_enabled); use a with-block inside it, or leave the mode alone"
            )
        if not isinstance(score, Tensor) or score.shape != feature.shape[:1]:
            returned = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise InputError(
                f"target {self.label!r}: a callable gets the feature {tuple(feature.shape)} and returns one score per "
                f"image, shape {(len(feature),)}; it returned {returned}"
            )
        if feature.requires_grad and not score.requires_grad:
            raise InputError(
                f"target {self.label!r}: the callable's result does not depend on the feature (was it detached, or "
                "computed without gradients?)"
            )
        return score


@final
@dataclass(frozen=True)
class PerImage(ResolvedTarget):
    """A target of its own for every image; None where an image has none: a score of zero.

    Attributes:
        targets: one per image.
    """

    targets: tuple[ResolvedTarget | None, ...]

    @property
    def needs_answer(self) -> bool:
        """Whether any of the targets depends on the model's answer."""
        return any(target is not None and target.needs_answer for target in self.targets)

    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,)."""
        rows = zip(self.targets, feature.split(1), strict=True)
        return torch.cat([row.sum(-1) * 0 if target is None else target(row) for target, row in rows])

    def with_answer(self, answer: Tensor) -> "PerImage":
        """Every image's target with its own row of the answer."""
        rows = zip(self.targets, answer.split(1), strict=True)
        return per_image([None if target is None else target.with_answer(row) for target, row in rows])

    def rows(self, indices: Sequence[int]) -> "PerImage":
        """The same target for some of the images."""
        targets = tuple(self.targets[index] for index in indices)
        return replace(self, label=_labels_at(self.label, indices), targets=targets)

    def is_predicted(self, image: int) -> bool:
        """Whether the model chose the class for one image."""
        target = self.targets[image]
        return target is not None and target.is_predicted(0)


@final
@dataclass(frozen=True)
class NeedsAnswer(ResolvedTarget):
    """A target that depends on the model's answer, such as its predicted class.

    Attributes:
        from_answer: (batch, features), the model's final answer -> the target.
    """

    from_answer: Callable[[Tensor], ResolvedTarget]

    @property
    def needs_answer(self) -> bool:
        """True."""
        return True

    def __call__(self, feature: Tensor) -> Tensor:
        """Not possible: call ``with_answer`` first."""
        raise RuntimeError(f"target {self.label!r} needs the model's answer first")

    def with_answer(self, answer: Tensor) -> ResolvedTarget:
        """The target for this answer."""
        return self.from_answer(answer)


def _labels_at(label: Label, indices: Sequence[int]) -> Label:
    return label if isinstance(label, str) else tuple(label[index] for index in indices)


def scored(targets: Sequence[ResolvedTarget], features: Tensor) -> Tensor:
    """The score of every target, each on its own features.

    Args:
        targets: the targets.
        features: (targets, groups, batch, features); a callable gets one group at a time.

    Returns:
        (targets, groups, batch).
    """
    directions = [target.direction for target in targets if isinstance(target, Direction)]
    if len(directions) == len(targets) and len({direction.shape for direction in directions}) == 1:
        # one batched product instead of a Python loop over targets
        matrix = torch.stack(directions)[:, None]
        if matrix.shape[-1] == features.shape[-1]:
            return (features * matrix.to(features)).sum(-1)
    pairs = zip(targets, features, strict=True)
    return torch.stack([torch.stack([target(feature) for feature in groups]) for target, groups in pairs])


def per_image(targets: Sequence[ResolvedTarget | None]) -> PerImage:
    """One target out of a different one for each image; None where an image has none."""
    return PerImage(tuple("" if target is None else target.label_of(0) for target in targets), tuple(targets))


def contrast(a: ResolvedTarget, b: ResolvedTarget) -> ResolvedTarget:
    """The difference of two resolved targets."""
    if a.needs_answer or b.needs_answer:
        return NeedsAnswer("contrast", lambda answer: contrast(a.with_answer(answer), b.with_answer(answer)))
    count = next((len(target.label) for target in (a, b) if not isinstance(target.label, str)), None)
    label: Label
    if count is None:
        label = f"{a.label} rather than {b.label}"
    else:
        label = tuple(f"{a.label_of(image)} rather than {b.label_of(image)}" for image in range(count))
    if isinstance(a, Direction) and isinstance(b, Direction):
        return Direction(label, a.direction - b.direction.to(a.direction))
    if count is None or count == 1:
        return Function(label, lambda feature: a(feature) - b(feature))
    return per_image([contrast(a.rows([image]), b.rows([image])) for image in range(count)])


def one_hot(index: int, classes: int, label: str) -> Direction:
    """The logit of one class."""
    direction = torch.zeros(1, classes, device="cpu", dtype=torch.float32)
    direction[0, index] = 1
    return Direction(label, direction)
