"""The classes of a data set as a model knows them: names for a text tower, columns of a classifier."""

import re
from collections.abc import Mapping, Sequence

from legrad.datasets import names
from legrad.errors import InputError

_WORDNET_ID = re.compile(r"n\d{8}")


def is_wordnet(label: str) -> bool:
    """Whether a label is an ImageNet synset such as n01440764."""
    return _WORDNET_ID.fullmatch(label) is not None


def choices(labels: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    """What a zero-shot prediction chooses from: the data set's classes that have a name, all 1000 of ImageNet for its
    synsets."""
    if labels and all(map(is_wordnet, labels)):
        return tuple(names.imagenet_indices())
    return tuple(label for label in labels if named(label, given))


def named(label: str, given: Mapping[str, str]) -> bool:
    """Whether there is a ``name``; a folder that is called like a synset but is none has no name."""
    try:
        name(label, given)
    except InputError:
        return False
    return True


def name(label: str, given: Mapping[str, str]) -> str:
    """What to call a label in a prompt: as the user says, as WordNet says, or as it is.

    Raises:
        InputError: a synset without a name.
    """
    return given.get(label) or (names.of_wordnet(label) if is_wordnet(label) else label)


def column(label: str, listed: Sequence[str], labels: Sequence[str] | None, outputs: int) -> int | str:
    """Which class of a classifier a label is: an index, or a name that the model's own labels know.

    Args:
        label: as in the samples.
        listed: all of the data set.
        labels: the model's own.
        outputs: how many classes it has.

    Raises:
        InputError: the label cannot be found among the model's classes.
    """
    if is_wordnet(label) and outputs == len(names.imagenet_indices()) and label in names.imagenet_indices():
        return names.imagenet_indices()[label]
    if labels is not None:
        return label
    if len(listed) == outputs and label in listed:
        return listed.index(label)
    raise InputError(
        f"class {label!r} is unknown to the model: it has {outputs} outputs without names, and the data set's classes "
        "are not as many"
    )
