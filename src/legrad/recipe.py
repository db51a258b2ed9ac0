"""How an ``Explainer`` was made, from which the same can be made again: in a copy, in another process."""

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from legrad.core.first_use import first_that_holds
from legrad.errors import InputError
from legrad.inputs import transforms
from legrad.models import checks, registry
from legrad.models.adapter import Adapter, AudioEncoder
from legrad.models.anatomy import ViTAnatomy
from legrad.models.versions import weights_version
from legrad.request import check_device, check_parts
from legrad.targets import classes

_logger = logging.getLogger(__name__)


@dataclass
class ByName:
    """The arguments of ``legrad.load``.

    Attributes:
        name, device, dtype: see there.
        version: of the weights as they were loaded; others travel with a copy.
    """

    name: str
    device: Any
    dtype: Any
    version: Any = field(default=None, compare=False)

    def adapter(self) -> Adapter:
        """Load the model; random numbers stay as they were."""
        if self.device is not None:
            check_device(self.device)
        with _random_state_kept():
            adapter = classes.without_foreign_names(registry.load(self.name, self.device, self.dtype))
        self.version = weights_version(adapter.model)
        _logger.info("loaded %s on %s, %s", self.name, adapter.anatomy.device, adapter.anatomy.dtype)
        return adapter

    def parts(self, adapter: Adapter) -> tuple[Any, ...]:
        """What ``restored`` needs: name, device, dtype, and weights that are no longer those of the name."""
        unchanged = weights_version(adapter.model) == self.version
        device, dtype = str(adapter.anatomy.device), adapter.anatomy.dtype
        if device == str(registry.automatic_device(dtype)):
            device = "auto"  # the other process may have other devices
        return self.name, device, dtype, None if unchanged else adapter.model.state_dict()

    @staticmethod
    def restored(name: str, device: Any, dtype: Any, state: Any) -> "tuple[ByName, Adapter]":
        """The same recipe and adapter from their parts."""
        recipe = ByName(name, device, dtype)
        adapter = recipe.adapter()
        if state is not None:
            try:
                adapter.model.load_state_dict(state)
            except RuntimeError as error:
                raise InputError(
                    f"the explainer of {name!r} cannot be copied: its model was rebuilt after it was loaded, and does "
                    "not fit its name any more; wrap a copy of the model instead"
                ) from error
        return recipe, adapter


@dataclass(frozen=True)
class OfModel:
    """The arguments of ``legrad.wrap``."""

    model: nn.Module
    transform: Any
    tokenizer: Any
    anatomy: ViTAnatomy | None
    labels: Any
    audio_encoder: AudioEncoder | None

    def adapter(self) -> Adapter:
        """Recognise the model, and put what the user gave in place of what its library knows."""
        check_parts(self.model, self.transform, self.tokenizer, self.anatomy, self.audio_encoder)
        adapter = registry.adapt(self.model) if self.anatomy is None else Adapter(self.model, self.anatomy)
        checks.weights(adapter.anatomy.tower)
        if adapter.candidates:
            holds = first_that_holds([adapter.anatomy, *adapter.candidates])
            adapter = replace(adapter, anatomy=holds, candidates=())
        adapter, transform, tokenizer = registry.tools(adapter, self.transform, self.tokenizer)
        if tokenizer is not None:
            adapter = replace(adapter, tokenize=lambda texts: tokenizer(list(texts)))
        if transform is not None:
            adapter = replace(adapter, transform=transforms.own_or_library(transform, adapter.transform))
        named = self.labels is not None
        adapter = classes.named(adapter, self.labels) if named else classes.without_foreign_names(adapter)
        if self.audio_encoder is not None:
            if adapter.anatomy.output == "logits":
                raise InputError(
                    "audio_encoder is for models that embed images and sounds in one space; "
                    f"{type(self.model).__name__} is a classifier, whose output is logits: leave audio_encoder out, or "
                    "wrap a model with an embedding"
                )
            adapter = replace(adapter, audio_encoder=self.audio_encoder)
        return adapter

    def parts(self, adapter: Adapter) -> tuple[Any, ...]:
        """The arguments.

        Raises:
            InputError: an anatomy of the user's own.
        """
        if self.anatomy is not None:
            raise InputError(
                "an explainer with an anatomy of your own cannot be copied or pickled, for the anatomy's functions "
                "belong to this very model: copy the model, describe the copy, and wrap it"
            )
        return self.model, self.transform, self.tokenizer, None, self.labels, self.audio_encoder

    @staticmethod
    def restored(*parts: Any) -> "tuple[OfModel, Adapter]":
        """The same recipe and adapter from their parts."""
        recipe = OfModel(*parts)
        return recipe, recipe.adapter()


class Copyable:
    """``copy.deepcopy`` and pickle of what was made by a recipe: made again, from a copy of the recipe's parts."""

    _adapter: Adapter
    _recipe: ByName | OfModel | None

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _restored(type(self), *copy.deepcopy(self._parts(), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._recipe, OfModel):
            raise InputError(
                "an explainer of legrad.wrap holds a model in memory and cannot be pickled: make it by legrad.load, "
                "whose explainers are loaded again by their name, or pickle the model and wrap it in the other process"
            )
        kind, parts = self._parts()
        return _restored, (type(self), kind, parts)

    def _parts(self) -> tuple[Any, tuple[Any, ...]]:
        """The kind of recipe, and what it restores from."""
        if self._recipe is None:
            raise InputError("only an explainer of legrad.load or legrad.wrap can be copied or pickled")
        return type(self._recipe), self._recipe.parts(self._adapter)


def _restored(owner: Any, kind: Any, parts: tuple[Any, ...]) -> Any:
    recipe, adapter = kind.restored(*parts)
    return owner(adapter, recipe=recipe)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Building a model draws random numbers: afterwards all generators stand where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # asking a graphics card that nobody uses yet would take its memory
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
