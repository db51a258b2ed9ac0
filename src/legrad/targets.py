"""What can be asked about a picture, and how it becomes a score of the read-out's result."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from legrad.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prompts:
    """One target out of several texts: the mean of the normalised embeddings of all templates, normalised again.

    Attributes:
        name: inserted for ``{}`` in every template.
        templates: texts with ``{}`` in them.
    """

    name: str
    templates: Sequence[str]


@dataclass(frozen=True)
class ZeroShot:
    """The best-matching of several names, chosen for every picture by the model's own final answer.

    Attributes:
        names: the classes to choose from.
        templates: texts with ``{}`` in them; the embeddings of a name's texts are averaged.
    """

    names: Sequence[str]
    templates: Sequence[str] = ("a photo of a {}.",)


@dataclass(frozen=True)
class Similar:
    """Similarity to another picture: its own feature is the target.

    Attributes:
        image: whatever ``explain`` takes as a single image.
    """

    image: "str | Image | Any"


@dataclass(frozen=True)
class Audio:
    """What a sound tells: where in the picture is what is heard, or what is named?

    For models that embed sounds in the space of their pictures, such as ``legrad.load("embedded:speech")``. Channels
    are averaged, and the waveform is resampled to the model's rate.

    Attributes:
        sound: a path, a URL, or a waveform (samples,), (samples, channels) or (channels, samples), floats in [-1, 1] or
            integers. A list of those is one target too: the mean of their normalised embeddings, normalised again.
        rate: sampling rate of waveforms, in Hz; default the model's own. A file and a tuple (waveform, rate) bring
            their own.
        start: where to begin, in seconds, in every one of the sounds.
        end: where to stop, in seconds; default their ends.
    """

    sound: "str | os.PathLike[str] | Any"
    rate: int | None = None
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Contrast:
    """Difference of two scores: what speaks for ``a`` rather than for ``b``."""

    a: Any
    b: Any


class _Predicted:
    def __repr__(self) -> str:
        return "PREDICTED"


PREDICTED: Final = _Predicted()
"""The class with the largest logit in the model's plain output, for every picture."""


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


def as_list(targets: Any) -> list[Any]:
    """One target or several -> a list of targets, or a list of lists if every picture has its own.

    A float tensor or array (targets, features) is as many embeddings, (features,) is one; integers () or (targets,) are
    class indices, and so is a range.
    """
    if isinstance(targets, range):
        targets = list(targets)
    if isinstance(targets, Tensor | np.ndarray):
        return _of_array(targets)
    if not isinstance(targets, list | tuple):
        return [targets]
    if not targets:
        raise InputError("no targets: give at least one text, class index, embedding or callable")
    nested = [isinstance(target, list | tuple) for target in targets]
    if any(nested) and not all(nested):
        raise InputError("targets mixes lists and single targets; give one list for all pictures or a list per picture")
    if all(nested):
        return [as_list(target) for target in targets]
    flat: list[Any] = []
    for target in targets:
        flat.extend(as_list(target) if isinstance(target, Tensor | np.ndarray | range) else [target])
    return flat


def _of_array(array: "Tensor | np.ndarray[Any, Any]") -> list[Any]:
    tensor = array if isinstance(array, Tensor) else _as_tensor(array)
    if tensor.is_floating_point() and tensor.ndim in (1, 2):
        return list(tensor[None] if tensor.ndim == 1 else tensor)
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if whole and tensor.ndim in (0, 1):
        return [int(index) for index in tensor.reshape(-1)]
    raise InputError(
        "an embedding target is a float tensor or array (features,) or (targets, features), class indices are integers "
        f"() or (targets,); got {tuple(tensor.shape)} {tensor.dtype}"
    )


def _as_tensor(array: "np.ndarray[Any, Any]") -> Tensor:
    try:
        return torch.tensor(array)
    except TypeError as error:
        raise InputError(
            f"an array of {array.dtype} is no target; embeddings are floats, class indices ints"
        ) from error


def one_hot(index: int, classes: int, label: str) -> Score:
    """The logit of one class."""
    direction = torch.zeros(1, classes)
    direction[0, index] = 1
    return Score(label, direction)
