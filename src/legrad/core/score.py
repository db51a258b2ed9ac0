"""What is differentiated: a user's target, resolved to a score of the read-out's feature.

``ResolvedTarget`` has five kinds: ``Direction`` (texts, classes, embeddings), ``Function`` (callables), ``PerImage``
(every image its own), ``NeedsAnswer`` (targets that depend on the model's own answer) and ``NoTarget`` (of maps that
depend on none).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from legrad.checks import brief, first_line
from legrad.core.memory import ran_out
from legrad.equality import ByValue
from legrad.errors import InputError

# for all images, or one per image
Label = str | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ResolvedTarget(ByValue, ABC):
    """A score of the read-out's feature.

    Attributes:
        label: the target's name, for all images, or one per image.
        origin: the model that embedded it, where it may be used again, see ``targets.kinds.Origin``.
    """

    label: Label
    origin: Any = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def needs_answer(self) -> bool:
        """Whether the target depends on the model's answer, see ``with_answer``."""
        return False

    @property
    def needs_raw(self) -> bool:
        """Whether it scores the feature before its L2 normalisation."""
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

    def is_named(self, image: int) -> bool:
        """Whether it is a text or a class for one image."""
        return False

    def kind_of(self, image: int, product: str) -> str:
        """What the score of one image is, where that of a direction is a ``product``: "cosine" or "logit"."""
        return "score"


@final
@dataclass(frozen=True, eq=False)
class Direction(ResolvedTarget):
    """The inner product of the feature with a direction.

    Attributes:
        direction: (1 or batch, features).
        predicted: the class was chosen by the model.
        difference: of two directions.
        named: it is that of a text or a class.
    """

    direction: Tensor
    predicted: bool = False
    difference: bool = False
    named: bool = False

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

    def is_named(self, image: int) -> bool:
        """Whether it is a text or a class."""
        return self.named

    def kind_of(self, image: int, product: str) -> str:
        """The product, or a difference of two."""
        return f"{product} difference" if self.difference else product


@final
@dataclass(frozen=True, eq=False)
class Function(ResolvedTarget):
    """A user's function of the feature. It gets a copy: what it changes in place, no other target sees.

    Attributes:
        function: (batch, features) -> (batch,), rows independent.
        raw: it gets the feature before its L2 normalisation.
    """

    function: Callable[[Tensor], Tensor]
    raw: bool = False

    @property
    def needs_raw(self) -> bool:
        """As ``raw`` says."""
        return self.raw

    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,).

        Raises:
            InputError: the function fails, returns something else, or something that does not depend on the feature.
        """
        copy = feature.clone()
        node, version = copy.grad_fn, copy._version
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):  # put back if the function changes it
                score = self.function(copy)
        except Exception as error:  # anything that users wrote; exceptions of their own come through
            if type(error).__module__.partition(".")[0] not in ("builtins", "torch") or ran_out(error):
                raise
            raise InputError(f"target {self.label!r}: the callable failed: {first_line(error)}") from error
        self._check(score, feature, node)
        if copy._version == version and feature.requires_grad and not torch.equal(copy, feature):
            self._check_hidden_change(score, copy, feature)
        return score.to(feature)

    def _check_hidden_change(self, score: Tensor, copy: Tensor, feature: Tensor) -> None:
        """Raise ``InputError`` if what was written through ``.data``, unseen by autograd, changes the gradient."""
        (written_grad,) = torch.autograd.grad(score.sum(), copy, retain_graph=True)
        copy.data.copy_(feature.data)
        (restored,) = torch.autograd.grad(score.sum(), copy, retain_graph=True)
        if not torch.equal(written_grad, restored):
            raise InputError(
                f"target {self.label!r}: the callable changes its feature through .data, behind the back of autograd; "
                "let it work on a copy, feature.clone()"
            )

    def _check(self, score: Any, feature: Tensor, node: Any) -> None:
        """Raise ``InputError`` unless it is one score per image that depends on the feature (its copy's graph node)."""
        if not isinstance(score, Tensor) or score.shape != feature.shape[:1] or not score.is_floating_point():
            kind = "" if isinstance(score, Tensor) and score.is_floating_point() else f" ({brief(score)})"
            returned = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise InputError(
                f"target {self.label!r}: a callable gets the feature {tuple(feature.shape)} and returns one score per "
                f"image, floats of shape {(len(feature),)}; it returned {returned}{kind}"
            )
        if feature.requires_grad and not _reaches(score.grad_fn, node):
            raise InputError(
                f"target {self.label!r}: the callable's result does not depend on the feature (was it detached, or "
                "computed without gradients?)"
            )


@final
@dataclass(frozen=True, eq=False)
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

    @property
    def needs_raw(self) -> bool:
        """Whether they score raw features: all of them, or none."""
        return any(target is not None and target.needs_raw for target in self.targets)

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

    def is_named(self, image: int) -> bool:
        """Whether it is a text or a class for one image."""
        target = self.targets[image]
        return target is not None and target.is_named(0)

    def kind_of(self, image: int, product: str) -> str:
        """Of the target of one image."""
        target = self.targets[image]
        return "none" if target is None else target.kind_of(0, product)


@final
@dataclass(frozen=True, eq=False)
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


@final
@dataclass(frozen=True, eq=False)
class NoTarget(ResolvedTarget):
    """The place of a target, for methods whose maps depend on none: the score is 0.

    Attributes:
        index: of the map, where the method has several for an image.
    """

    index: int = 0

    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,)."""
        return feature.new_zeros(len(feature))

    def kind_of(self, image: int, product: str) -> str:
        """There is none."""
        return "none"


def _reaches(start: Any, node: Any) -> bool:
    """Whether a node of the autograd graph is among those that another one was computed from."""
    waiting, visited = [start], set()
    while waiting:
        current = waiting.pop()
        if current is node:
            return current is not None
        if current is not None and current not in visited:
            visited.add(current)
            waiting.extend(parent for parent, _ in current.next_functions)
    return False


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
    """One target out of a different one for each image; None where an image has none.

    Raises:
        InputError: some of them score raw features, others normalised ones.
    """
    if len({target.needs_raw for target in targets if target is not None}) > 1:
        raise InputError(
            "the targets at one place of the images' lists score raw features of some images and normalised ones of "
            'others; give all of them feature="raw", or put them at different places'
        )
    return PerImage(tuple("" if target is None else target.label_of(0) for target in targets), tuple(targets))


def contrast(a: ResolvedTarget, b: ResolvedTarget) -> ResolvedTarget:
    """The difference of two resolved targets.

    Raises:
        InputError: they score different features.
    """
    if a.needs_raw != b.needs_raw:
        raise InputError(
            f"Contrast: {(a if a.needs_raw else b).label!r} scores the raw feature, "
            f"{(b if a.needs_raw else a).label!r} the normalised one; they cannot be subtracted"
        )
    if a.needs_answer or b.needs_answer:
        return NeedsAnswer("contrast", lambda answer: contrast(a.with_answer(answer), b.with_answer(answer)))
    count = next((len(target.label) for target in (a, b) if not isinstance(target.label, str)), None)
    label: Label
    if count is None:
        label = f"{a.label} rather than {b.label}"
    else:
        label = tuple(f"{a.label_of(image)} rather than {b.label_of(image)}" for image in range(count))
    if isinstance(a, Direction) and isinstance(b, Direction):
        if a.direction.shape[-1] != b.direction.shape[-1]:
            raise InputError(
                f"Contrast: {a.label!r} has {a.direction.shape[-1]} features, {b.label!r} has {b.direction.shape[-1]}"
            )
        return Direction(label, a.direction - b.direction.to(a.direction), difference=True)
    if count is None or count == 1:
        return Function(label, lambda feature: a(feature) - b(feature), a.needs_raw)
    return per_image([contrast(a.rows([image]), b.rows([image])) for image in range(count)])


def one_hot(index: int, classes: int, label: str) -> Direction:
    """The logit of one class."""
    direction = torch.zeros(1, classes, device="cpu", dtype=torch.float32)
    direction[0, index] = 1
    return Direction(label, direction, named=True)
