"""What can be asked about a picture, and how it becomes a score of the read-out's result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from legrad.errors import InputError

if TYPE_CHECKING:
    pass
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """A target, resolved: a direction in feature space, a function of the feature, or another score per picture.

    Attributes:
        label: one for all pictures, or one per picture.
        direction: (1 or batch, features); the score is its inner product with the feature.
        function: (batch, features) -> (batch,), rows apart.
        own: one score per picture; None stands for "nothing asked", a score of zero.
        predicted: the class was chosen by the model.
        answering: (batch, features), the model's final answer -> the target, for targets that depend on it.
    """

    label: str | tuple[str, ...]
    direction: Tensor | None = None
    function: Function | None = None
    own: "tuple[Score | None, ...] | None" = None
    predicted: bool = False
    answering: "Callable[[Tensor], Score] | None" = None

    @property
    def late(self) -> bool:
        """Does the target depend on the model's answer?"""
        return self.answering is not None or any(one is not None and one.late for one in self.own or ())

    def known(self, answer: Tensor) -> "Score":
        """The target once the model's answer is there.

        Args:
            answer: (batch, features), raw logits or L2-normalised embeddings.
        """
        if self.answering is not None:
            return self.answering(answer)
        if self.own is not None:
            rows = zip(self.own, answer.split(1), strict=True)
            return per_picture([None if one is None else one.known(row) for one, row in rows])
        return self

    def __call__(self, feature: Tensor) -> Tensor:
        """(batch, features) -> (batch,)."""
        if self.own is not None:
            rows = feature.split(1)
            scores = [row.sum(-1) * 0 if one is None else one(row) for one, row in zip(self.own, rows, strict=True)]
            return torch.cat(scores)
        if self.direction is not None:
            if self.direction.shape[-1] != feature.shape[-1]:
                raise InputError(
                    f"target {self.label!r} has {self.direction.shape[-1]} features, the model has {feature.shape[-1]}"
                )
            return (feature * self.direction.to(feature)).sum(-1)
        assert self.function is not None
        score = self.function(feature)
        if not isinstance(score, Tensor) or score.shape != feature.shape[:1]:
            came = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise InputError(
                f"target {self.label!r}: a callable gets the feature {tuple(feature.shape)} and returns one score per "
                f"picture, shape {(len(feature),)}; it returned {came}"
            )
        if feature.requires_grad and not score.requires_grad:
            raise InputError(
                f"target {self.label!r}: the callable's result does not depend on the feature (was it detached, or "
                "computed without gradients?)"
            )
        return score

    def rows(self, indices: Sequence[int]) -> "Score":
        """The same target for some of the pictures."""
        label = self.label if isinstance(self.label, str) else tuple(self.label[i] for i in indices)
        direction = self.direction
        if direction is not None and len(direction) > 1:
            direction = direction[list(indices)]
        own = None if self.own is None else tuple(self.own[i] for i in indices)
        return replace(self, label=label, direction=direction, own=own)

    def label_of(self, image: int) -> str:
        """The label for one picture."""
        return self.label if isinstance(self.label, str) else self.label[image]

    def predicted_of(self, image: int) -> bool:
        """Whether the model chose the class for one picture."""
        own = None if self.own is None else self.own[image]
        return self.predicted or (own is not None and own.predicted)


def scored(scores: Sequence[Score], features: Tensor) -> Tensor:
    """Every target on features of its own.

    Args:
        scores: the targets.
        features: (targets, groups, batch, features); a callable gets one group at a time.

    Returns:
        (targets, groups, batch).
    """
    directions = [score.direction for score in scores]
    if len({None if one is None else one.shape for one in directions}) == 1 and directions[0] is not None:
        # all at once what one by one takes longer than the arithmetic
        together = torch.stack([one for one in directions if one is not None])[:, None]
        if together.shape[-1] == features.shape[-1]:
            return (features * together.to(features)).sum(-1)
    pairs = zip(scores, features, strict=True)
    return torch.stack([torch.stack([score(feature) for feature in groups]) for score, groups in pairs])


def per_picture(scores: Sequence[Score | None]) -> Score:
    """One target out of a different one for each picture; None where a picture has none."""
    return Score(tuple("" if one is None else one.label_of(0) for one in scores), own=tuple(scores))


def contrast(a: Score, b: Score) -> Score:
    """The difference of two resolved targets."""
    if a.late or b.late:
        return Score("contrast", answering=lambda answer: contrast(a.known(answer), b.known(answer)))
    if isinstance(a.label, str) and isinstance(b.label, str):
        label: str | tuple[str, ...] = f"{a.label} rather than {b.label}"
    else:
        count = max(len(s.label) for s in (a, b) if not isinstance(s.label, str))
        label = tuple(f"{a.label_of(i)} rather than {b.label_of(i)}" for i in range(count))
    if a.direction is not None and b.direction is not None:
        return Score(label, a.direction - b.direction.to(a.direction))
    apart = next((len(one.label) for one in (a, b) if not isinstance(one.label, str)), None)
    if apart in (None, 1):
        return Score(label, function=lambda feature: a(feature) - b(feature))
    return per_picture([contrast(a.rows([i]), b.rows([i])) for i in range(apart or 0)])


def one_hot(index: int, classes: int, label: str) -> Score:
    """The logit of one class."""
    direction = torch.zeros(1, classes)
    direction[0, index] = 1
    return Score(label, direction)
