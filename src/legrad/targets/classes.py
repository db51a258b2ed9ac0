"""The classes of a classifier: how many there are, and what they are called."""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from legrad.checks import brief
from legrad.core.state import evaluation_mode, exclusive, ordinary_tensors
from legrad.core.truth import plain_answer
from legrad.errors import InputError, warn
from legrad.models.adapter import Adapter
from legrad.models.anatomy import ViTAnatomy
from legrad.models.side_inputs import required_inputs
from legrad.models.versions import weights_version

# model -> (version of its weights, classes). Kept beside the models, for a Resolver lives for one call and an anatomy
# for one size, and counting takes a forward pass. Weak keys: an entry goes with its model.
_class_counts: weakref.WeakKeyDictionary[nn.Module, tuple[Any, int]] = weakref.WeakKeyDictionary()


def num_classes(anatomy: ViTAnatomy, model: nn.Module) -> int:
    """How many numbers a model returns: counted in a forward pass, again only after its weights changed.

    Call it inside ``state.evaluation_mode``.
    """
    version = weights_version(model), weights_version(anatomy.tower)
    entry = _class_counts.get(anatomy.tower)
    if entry is None or entry[0] != version:
        blank = torch.zeros(1, *anatomy.shape, device=anatomy.device, dtype=anatomy.dtype)
        _class_counts[anatomy.tower] = entry = (version, int(plain_answer(anatomy, blank).shape[-1]))
    return entry[1]


def _counted(adapter: Adapter) -> int | None:
    """The same for a model in any mode; None if it cannot run without more than images."""
    if required_inputs(adapter.anatomy):
        return None
    of_tower = evaluation_mode(adapter.anatomy.tower, adapter.anatomy.call_settings)
    with ordinary_tensors(), exclusive(adapter.anatomy.blocks[0]), evaluation_mode(adapter.model), of_tower:
        return num_classes(adapter.anatomy, adapter.model)


def named(adapter: Adapter, labels: Sequence[str]) -> Adapter:
    """The adapter of a classifier with a user's labels for its logits.

    Raises:
        InputError: of another model, no sequence of texts, or not as many as logits.
    """
    if adapter.anatomy.output != "logits":
        raise InputError(f"labels are for classifiers, this model's output is {adapter.anatomy.output!r}")
    names = () if isinstance(labels, str) or not isinstance(labels, Iterable) else tuple(labels)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"labels is a sequence of class names, got {brief(labels)}")
    count = _counted(adapter)
    if count is not None and len(names) != count:
        raise InputError(f"got {len(names)} labels for {count} classes")
    return replace(adapter, labels=names)


def without_foreign_names(adapter: Adapter) -> Adapter:
    """The adapter without its library's class names if the model has another number of classes: its head was replaced.

    Warns:
        UserWarning: the names are not used.
    """
    if adapter.anatomy.output != "logits" or adapter.labels is None:
        return replace(adapter, labels=None)
    count = _counted(adapter)
    if count is None or len(adapter.labels) == count:
        return adapter
    note = f"the model carries {len(adapter.labels)} class names for {count} classes: they are not used"
    warn(f"{note}; name yours with legrad.wrap(model, labels=[...])")
    notes = (*adapter.anatomy.notes, note)
    return replace(adapter, labels=None, anatomy=replace(adapter.anatomy, notes=notes))
