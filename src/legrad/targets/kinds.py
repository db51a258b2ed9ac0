"""What can be asked about an image, and how it becomes a score of the read-out's result."""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, KeysView, Sequence, Set, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Union, overload

import numpy as np
import torch
from torch import Tensor, nn

from legrad.checks import brief, check_texts, whole_number
from legrad.core.score import Direction, ResolvedTarget
from legrad.equality import ByValue
from legrad.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_EMBEDDING_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""What a name is put into where no templates are given."""


@dataclass(frozen=True, eq=False)
class Prompts(ByValue):
    """One target out of several texts: the mean of the normalised embeddings of all templates, normalised again.

    >>> legrad.Prompts("cow", ["a photo of a {}", "a drawing of a {}"]).texts()
    ['a photo of a cow', 'a drawing of a cow']

    Attributes:
        name: inserted for ``{}`` in every template.
        templates: texts with ``{}`` in them.
    """

    name: str
    templates: Sequence[str]

    def texts(self) -> list[str]:
        """The name in every template.

        Raises:
            InputError: a name or templates that are no texts, or templates without ``{}``.
        """
        (name,) = check_texts("the name of legrad.Prompts", [self.name])
        templates = check_texts("templates", self.templates)
        if not all("{}" in template for template in templates):
            raise InputError(f"templates: texts with '{{}}' in them are expected, got {brief(self.templates)}")
        return [template.replace("{}", name) for template in templates]


@dataclass(frozen=True, eq=False)
class ZeroShot(ByValue):
    """The best match of several names, for every image by the model's own final answer.

    >>> scene = next(legrad.embedded.scenes(1, objects=(1, 1)))
    >>> explanation = legrad.load("embedded").explain(scene.image, legrad.ZeroShot(["cow", scene.names[0]]))
    >>> explanation.labels == [[scene.names[0]]]
    True

    Attributes:
        names: the classes to choose from.
        templates: texts with ``{}`` in them; the embeddings of a name's texts are averaged.
    """

    names: Iterable[str]
    templates: Sequence[str] = DEFAULT_TEMPLATES

    def __post_init__(self) -> None:
        if isinstance(self.names, Iterator | Set | KeysView | ValuesView):  # asked more than once, in one order
            object.__setattr__(self, "names", tuple(self.names))

    def prompts(self) -> list[Prompts]:
        """The prompts of every name.

        Raises:
            InputError: names that are no texts.
        """
        return [Prompts(name, self.templates) for name in check_texts("the names of legrad.ZeroShot", self.names)]


@dataclass(frozen=True, eq=False)
class Similar(ByValue):
    """Similarity to another image: its own feature is the target.

    The image gets the ``size`` and ``fit`` of those that are explained; a tensor is taken as it is.

    >>> first, second = legrad.embedded.scenes(2)
    >>> legrad.load("embedded").explain(first.image, legrad.Similar(second.image)).relevance.shape
    torch.Size([1, 1, 12, 12])

    Attributes:
        image: whatever ``explain`` takes as a single image.
    """

    image: "str | Image | Any"


@dataclass(frozen=True, eq=False)
class Audio(ByValue):
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


@dataclass(frozen=True, eq=False)
class Contrast(ByValue):
    """Difference of two scores: what speaks for ``a`` rather than for ``b``.

    >>> scene = next(legrad.embedded.scenes(1))
    >>> legrad.load("embedded").explain(scene.image, legrad.Contrast("a cow", "a pig")).scores.shape
    torch.Size([1, 1])
    """

    a: Any
    b: Any


@dataclass(frozen=True, eq=False)
class Target(ByValue):
    """A callable that says which feature it gets, such as a probe that was trained on the model's own output.

    Attributes:
        function: (batch, features), at least float32 -> (batch,), rows independent.
        feature: "raw", as the model gives it, or "normalized" to L2 length 1. A plain callable gets the read-out's:
            normalised of embeddings and features, raw of logits.
    """

    function: Callable[[Tensor], Tensor]
    feature: Literal["raw", "normalized"] = "raw"


class _Predicted:
    def __repr__(self) -> str:
        return "PREDICTED"


PREDICTED: Final = _Predicted()
"""The class with the largest logit in the model's plain output, for every image."""


class Origin:
    """The model that embedded a target; copies and pickles forget it.

    Args:
        name: of the model.
        modules: by which it is known again: the whole model, its vision tower.
    """

    def __init__(self, name: str, *modules: nn.Module) -> None:
        self.name, self._modules = name, tuple(weakref.ref(module) for module in modules)

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self.name,)

    def differs_from(self, *modules: nn.Module) -> bool:
        """Whether these are certainly of another model."""
        alive = [module for reference in self._modules if (module := reference()) is not None]
        return bool(alive) and not any(module is other for module in alive for other in modules)


@dataclass(frozen=True, eq=False)
class EmbeddedTargets(ByValue, Sequence[ResolvedTarget]):
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
SingleTarget = Union[
    str,
    int,
    Tensor,
    Callable[[Tensor], Tensor],
    Prompts,
    ZeroShot,
    Similar,
    Audio,
    Contrast,
    Target,
    _Predicted,
    ResolvedTarget,
    "np.ndarray[Any, Any]",
]
# one or several for all images, or a list for each image
Targets = SingleTarget | EmbeddedTargets | range | Sequence[SingleTarget] | Sequence[Sequence[SingleTarget]]

_NO_TARGETS = "no targets: give at least one text, class index, embedding or callable"


def as_list(targets: Any) -> list[Any]:
    """One target or several -> a list of targets, or a list of lists if every image has its own.

    A float tensor or array (targets, features) is as many embeddings, (features,) is one; integers () or (targets,) are
    class indices, and so is a range.
    """
    if isinstance(targets, range | EmbeddedTargets):
        targets = list(targets)
    if isinstance(targets, Tensor | np.ndarray):
        return _of_array(targets)
    if targets is None:
        raise InputError(_NO_TARGETS)
    if not isinstance(targets, list | tuple):
        return [targets]
    if not targets:
        raise InputError(_NO_TARGETS)
    nested = [isinstance(target, list | tuple | EmbeddedTargets) for target in targets]
    if any(nested) and not all(nested):
        raise InputError("targets mixes lists and single targets; give one list for all images or a list per image")
    if all(nested):
        return [as_list(target) for target in targets]
    flat: list[Any] = []
    for target in targets:
        flat.extend(as_list(target) if isinstance(target, Tensor | np.ndarray | range) else [target])
    if not flat:
        raise InputError(_NO_TARGETS)
    return flat


def class_per_image(targets: Any, count: int) -> list[int] | None:
    """Class indices that look like the labels of a batch, one per image; None for anything else.

    Those are a tensor or array of as many integers as there are images, or a list of those in which one comes twice:
    nobody asks for the same class twice.
    """
    is_array = isinstance(targets, Tensor | np.ndarray)
    if count < 2 or not (is_array or isinstance(targets, list | tuple)) or getattr(targets, "ndim", 1) != 1:
        return None
    if len(targets) != count:
        return None
    indices = [whole_number(target) for target in (targets.tolist() if is_array else targets)]
    labels = [index for index in indices if index is not None]
    return labels if len(labels) == count and (is_array or len(set(labels)) < count) else None


def _of_array(array: "Tensor | np.ndarray[Any, Any]") -> list[Any]:
    tensor = array if isinstance(array, Tensor) else _as_tensor(array)
    is_known_dtype = tensor.dtype in _EMBEDDING_TYPES or not (tensor.is_floating_point() or tensor.is_quantized)
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or not is_known_dtype:
        raise InputError(
            "an embedding target is a dense tensor with data, float16, bfloat16, float32 or float64, got "
            f"{tuple(tensor.shape) if not tensor.is_nested else 'a nested tensor of'} {tensor.dtype} "
            f"({str(tensor.layout).removeprefix('torch.')}, on {tensor.device}); convert it first"
        )
    if tensor.shape[:1] == (0,):
        raise InputError(_NO_TARGETS)
    if tensor.is_floating_point() and tensor.ndim in (1, 2):
        return list(tensor[None] if tensor.ndim == 1 else tensor)
    is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if is_integer and tensor.ndim in (0, 1):
        return [int(index) for index in tensor.reshape(-1)]
    raise InputError(
        "an embedding target is a float tensor or array (features,) or (targets, features), class indices are integers "
        f"() or (targets,); got {tuple(tensor.shape)} {tensor.dtype}"
    )


def _as_tensor(array: "np.ndarray[Any, Any]") -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("a masked array is no target: what stands for the masked values? Fill them, array.filled(0)")
    try:
        return torch.tensor(array, device="cpu")
    except TypeError as error:
        raise InputError(
            f"an array of {array.dtype} is no target; embeddings are floats, class indices ints"
        ) from error
