"""What can be asked about an image, and how it becomes a score of the read-out's result."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Union, overload

import numpy as np
import torch
from torch import Tensor

from legrad.core.score import Direction, ResolvedTarget
from legrad.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""What a name is put into where no templates are given."""


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
    """The best match of several names, for every image by the model's own final answer.

    Attributes:
        names: the classes to choose from.
        templates: texts with ``{}`` in them; the embeddings of a name's texts are averaged.
    """

    names: Sequence[str]
    templates: Sequence[str] = DEFAULT_TEMPLATES


@dataclass(frozen=True)
class Similar:
    """Similarity to another image: its own feature is the target.

    Attributes:
        image: whatever ``explain`` takes as a single image.
    """

    image: "str | Image | Any"


@dataclass(frozen=True)
class Audio:
    """A sound as the target: where in the image is the thing that makes it, or that it names?

    For models that embed sounds in the space of their images, such as ``legrad.load("embedded:speech")``. Channels
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
"""The class with the largest logit in the model's plain output, for every image."""


@dataclass(frozen=True)
class EmbeddedTargets(Sequence[ResolvedTarget]):
    """Targets that ``Explainer.embed`` has encoded, to be used in many calls of ``explain``.

    Attributes:
        targets: resolved, in the order in which they were given.
    """

    targets: tuple[ResolvedTarget, ...]

    @overload
    def __getitem__(self, index: int) -> ResolvedTarget: ...
    @overload
    def __getitem__(self, index: slice) -> "EmbeddedTargets": ...
    def __getitem__(self, index: int | slice) -> "ResolvedTarget | EmbeddedTargets":
        return EmbeddedTargets(self.targets[index]) if isinstance(index, slice) else self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labels(self) -> list[str]:
        """The targets' names."""
        return [target.label if isinstance(target.label, str) else target.label[0] for target in self.targets]

    @property
    def embeddings(self) -> Tensor:
        """(targets, features), at least float32: L2-normalised, or one-hot for the classes of a classifier.

        Raises:
            InputError: a target without a direction, such as a callable or ``PREDICTED``.
        """
        for target in self.targets:
            if not isinstance(target, Direction):
                raise InputError(f"target {target.label!r} has no embedding: it is a function, or waits for an answer")
        return torch.cat([target.direction for target in self.targets if isinstance(target, Direction)])


# one target: a text, class index, embedding, callable, or one of the kinds above
Target = Union[
    str,
    int,
    Tensor,
    Callable[[Tensor], Tensor],
    Prompts,
    ZeroShot,
    Similar,
    Audio,
    Contrast,
    _Predicted,
    ResolvedTarget,
    "np.ndarray[Any, Any]",
]
# one or several for all images, or a list for each image
Targets = Target | EmbeddedTargets | range | Sequence[Target] | Sequence[Sequence[Target]]


def as_list(targets: Any) -> list[Any]:
    """One target or several -> a list of targets, or a list of lists if every image has its own.

    A float tensor or array (targets, features) is as many embeddings, (features,) is one; integers () or (targets,) are
    class indices, and so is a range.
    """
    if isinstance(targets, range | EmbeddedTargets):
        targets = list(targets)
    if isinstance(targets, Tensor | np.ndarray):
        return _of_array(targets)
    if not isinstance(targets, list | tuple):
        return [targets]
    if not targets:
        raise InputError("no targets: give at least one text, class index, embedding or callable")
    nested = [isinstance(target, list | tuple | EmbeddedTargets) for target in targets]
    if any(nested) and not all(nested):
        raise InputError("targets mixes lists and single targets; give one list for all images or a list per image")
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
        return torch.tensor(array, device="cpu")
    except TypeError as error:
        raise InputError(
            f"an array of {array.dtype} is no target; embeddings are floats, class indices ints"
        ) from error
