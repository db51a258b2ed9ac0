"""The classes of a data set as a model knows them: names for a text tower, outputs of a classifier."""

import functools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from legrad.datasets import names as class_names
from legrad.errors import InputError
from legrad.explainer import Explainer
from legrad.targets.kinds import Prompts

# the protocol of the paper's code, without the full stop of ``targets.kinds.DEFAULT_TEMPLATES``, which is CLIP's
TEMPLATES = ("a photo of a {}",)
_WORDNET_ID = re.compile(r"n\d{8}")


class Classes:
    """The classes of a data set, as prompts of an image-text model or as outputs of a classifier.

    Args:
        explainer: of the model.
        labels: all classes of the data set, as in its samples; empty if it does not list them.
        names: what classes are called in prompts, where the data set's labels say it badly.
        templates: texts with ``{}`` in them, whose embeddings are averaged for a class name.
    """

    def __init__(
        self,
        explainer: Explainer,
        labels: Sequence[str] = (),
        names: Mapping[str, str] | None = None,
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        self._explainer = explainer
        self.labels, self.names, self.templates = tuple(labels), names or {}, tuple(templates)
        self._directions: dict[str | int, Tensor] = {}

    @property
    def zero_shot(self) -> bool:
        """Classes are texts; otherwise they are the logits of a classifier."""
        return self._explainer.anatomy.output != "logits"

    @functools.cached_property
    def choices(self) -> tuple[str, ...]:
        """Labels that a zero-shot prediction chooses from; empty for a classifier, which has its own."""
        return zero_shot_choices(self.labels, self.names) if self.zero_shot else ()

    @functools.cached_property
    def askable(self) -> tuple[str, ...]:
        """The labels that can be a ``target``."""
        return tuple(label for label in self.labels if self._is_askable(label))

    def _is_askable(self, label: str) -> bool:
        if self.zero_shot:
            return has_name(label, self.names)
        try:
            self.target(label)
        except InputError:
            return False
        return True

    def target(self, label: str) -> Tensor | int:
        """A class as ``explain`` takes it: an embedding (features,), or an index of a classifier.

        Raises:
            InputError: a class that the model does not know.
        """
        if self.zero_shot:
            return self.direction(prompt_name(label, self.names))
        outputs, model_labels = len(self.direction(0)), self._explainer.adapter.labels
        return int(self.direction(classifier_output(label, self.labels, model_labels, outputs)).argmax())

    def column(self, label: str) -> int:
        """Where a class stands in ``logits``.

        Raises:
            InputError: it does not.
        """
        if not self.zero_shot:
            return int(self.target(label))
        self._need_choices()
        prompt_name(label, self.names)  # a class without a name cannot be chosen: raise what says so
        if label not in self.choices:
            raise InputError(f"class {label!r} is not among the {len(self.choices)} that the model chooses from")
        return self.choices.index(label)

    def at_column(self, column: int) -> Tensor | int:
        """The class at a place of ``logits``, as ``explain`` takes it."""
        return self._matrix[column] if self.zero_shot else column

    def logits(self, features: Tensor) -> Tensor:
        """(batch, classes): cosine similarities with the names of ``choices``, or the classifier's own logits.

        Args:
            features: (batch, features), see ``ModelUnderTest.features``.
        """
        return features @ self._matrix.T if self.zero_shot else features

    @functools.cached_property
    def _matrix(self) -> Tensor:
        """(classes, features), the embeddings of ``choices``."""
        self._need_choices()
        return torch.stack([self.direction(prompt_name(label, self.names)) for label in self.choices])

    def _need_choices(self) -> None:
        if not self.choices:
            raise InputError(
                "a prediction needs the classes to choose from, which this data set does not list; explain the true "
                "class (--explained truth)"
            )

    def direction(self, name: str | int) -> Tensor:
        """(features,): a feature's inner product with it is the score of a text or class. Computed once."""
        if name not in self._directions:
            target = Prompts(name, self.templates) if self.zero_shot and isinstance(name, str) else name
            self._directions[name] = self._explainer.embed(target).embeddings[0].detach()
        return self._directions[name]


def is_wordnet(label: str) -> bool:
    """Whether a label is an ImageNet synset such as n01440764."""
    return _WORDNET_ID.fullmatch(label) is not None


def zero_shot_choices(labels: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """What a zero-shot prediction chooses from: the data set's classes that have a name, all 1000 of ImageNet for its
    synsets."""
    if labels and all(map(is_wordnet, labels)):
        return tuple(class_names.imagenet_indices())
    return tuple(label for label in labels if has_name(label, names))


def has_name(label: str, names: Mapping[str, str]) -> bool:
    """Whether there is a ``prompt_name``; a folder that is called like a synset but is none has no name."""
    try:
        prompt_name(label, names)
    except InputError:
        return False
    return True


def prompt_name(label: str, names: Mapping[str, str]) -> str:
    """What to call a label in a prompt: as the user says, as WordNet says, or as it is.

    Raises:
        InputError: a synset without a name.
    """
    return names.get(label) or (class_names.of_wordnet(label) if is_wordnet(label) else label)


def classifier_output(label: str, labels: Sequence[str], model_labels: Sequence[str] | None, outputs: int) -> int | str:
    """Which class of a classifier a label is: an index, or a name that the model's own labels know.

    Args:
        label: as in the samples.
        labels: all of the data set.
        model_labels: the model's own.
        outputs: how many classes it has.

    Raises:
        InputError: the label cannot be found among the model's classes.
    """
    if is_wordnet(label) and outputs == len(class_names.imagenet_indices()) and label in class_names.imagenet_indices():
        return class_names.imagenet_indices()[label]
    if model_labels is not None:
        return label
    if len(labels) == outputs and label in labels:
        return labels.index(label)
    raise InputError(
        f"class {label!r} is unknown to the model: it has {outputs} outputs without names, and the data set's classes "
        "are not as many; call the classes as the model does (class folders, ids by --names), or take a model with a "
        "text tower"
    )
