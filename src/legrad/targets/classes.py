"""The classes of a classifier: how many there are, and what they are called."""

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from legrad.core.state import evaluation_mode, weights_version
from legrad.core.truth import plain_answer
from legrad.errors import InputError
from legrad.models.adapter import Adapter

# model -> (version of its weights, classes). Kept beside the models, for a Resolver lives for one call and an anatomy
# for one size, and counting takes a forward pass. Weak keys: an entry goes with its model.
_class_counts: weakref.WeakKeyDictionary[nn.Module, tuple[Any, int]] = weakref.WeakKeyDictionary()


def num_classes(adapter: Adapter) -> int:
    """How many classes there are: what one forward pass returns, counted again only after the weights changed."""
    anatomy = adapter.anatomy
    version = weights_version(adapter.model), weights_version(anatomy.tower)
    entry = _class_counts.get(anatomy.tower)
    if entry is None or entry[0] != version:
        blank = torch.zeros(1, *anatomy.shape, device=anatomy.device, dtype=anatomy.dtype)
        with evaluation_mode(adapter.model), evaluation_mode(anatomy.tower, anatomy.call_settings):
            _class_counts[anatomy.tower] = entry = (version, int(plain_answer(anatomy, blank).shape[-1]))
    return entry[1]


def named(adapter: Adapter, labels: Sequence[str]) -> Adapter:
    """The adapter of a classifier with a user's labels for its logits.

    Raises:
        InputError: of another model, no sequence of texts, or not as many as logits.
    """
    if adapter.anatomy.output != "logits":
        raise InputError(f"labels are for classifiers, this model's output is {adapter.anatomy.output!r}")
    try:
        names = () if isinstance(labels, str) else tuple(labels)
    except TypeError:
        names = ()
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"labels is a sequence of class names, got {labels!r}")
    count = num_classes(adapter)
    if len(names) != count:
        raise InputError(f"got {len(names)} labels for {count} classes")
    return replace(adapter, labels=names)


def without_foreign_names(adapter: Adapter) -> Adapter:
    """The adapter without its library's class names if the model has another number of classes: its head was replaced.

    Warns:
        UserWarning: the names are not used.
    """
    if adapter.anatomy.output != "logits" or adapter.labels is None:
        return replace(adapter, labels=None)
    count = num_classes(adapter)
    if len(adapter.labels) == count:
        return adapter
    note = f"the model carries {len(adapter.labels)} class names for {count} classes: they are not used"
    warnings.warn(f"{note}; name yours with legrad.wrap(model, labels=[...])", UserWarning, stacklevel=5)
    notes = (*adapter.anatomy.notes, note)
    return replace(adapter, labels=None, anatomy=replace(adapter.anatomy, notes=notes))
