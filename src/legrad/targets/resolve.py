"""Targets as users give them -> scores, with the help of the model: its text tower, its labels, its own answers."""

import difflib
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.checks import brief
from legrad.choices import check_choice
from legrad.core.score import Direction, Function, NeedsAnswer, NoTarget, ResolvedTarget, contrast, one_hot, per_image
from legrad.core.truth import final_answer, plain_answer
from legrad.errors import InputError, warn
from legrad.inputs.prepare import USUAL, Fitting, Inputs, sources, stack
from legrad.inputs.readers import Input
from legrad.models.adapter import Adapter
from legrad.models.anatomy import ViTAnatomy
from legrad.targets.classes import num_classes
from legrad.targets.kinds import (
    PREDICTED,
    Audio,
    Contrast,
    Origin,
    Prompts,
    Similar,
    Target,
    ZeroShot,
    as_list,
    class_per_image,
)
from legrad.targets.sound import embed_sound
from legrad.targets.text import TextEncoder


class Resolver:
    """Resolves targets for some images. Use it inside ``state.evaluation_mode``.

    Args:
        adapter: the model's.
        anatomy: for any size.
        num_images: how many images the targets are for.
        memory: bytes that the text tower may take, or "auto".
        fitting: how images become input, for those of ``Similar``.
    """

    def __init__(
        self,
        adapter: Adapter,
        anatomy: ViTAnatomy,
        num_images: int,
        memory: str | int = "auto",
        fitting: Fitting = USUAL,
    ) -> None:
        self._adapter, self._anatomy, self._num_images, self._fitting = adapter, anatomy, num_images, fitting
        self._encode = TextEncoder(adapter, anatomy, memory)

    def resolve(self, targets: Any, labels: Sequence[str] | None = None) -> tuple[list[ResolvedTarget], Tensor]:
        """Resolve the targets of a call.

        Args:
            targets: as ``explain`` got them.
            labels: names of the maps of a method that needs no targets, in the place of targets.

        Returns:
            The targets, shared by all images, and a mask (images, targets): which of them each image asks for.

        Raises:
            InputError: targets that the model cannot use, or not one list per image.
        """
        if labels is not None:
            places: list[ResolvedTarget] = [NoTarget(label, index=index) for index, label in enumerate(labels)]
            return places, torch.ones(self._num_images, len(places), dtype=torch.bool, device="cpu")
        as_lists = as_list(targets)
        classes = class_per_image(targets, self._num_images)
        if classes is not None and self._anatomy.output == "logits":
            _warn_of_classes_for_all(classes)
        if self._anatomy.output == "embedding" and (texts := self._texts_of(as_lists)):
            self._embed(texts)  # of all images and targets together
        if not isinstance(as_lists[0], list):
            return self._resolve_all(as_lists), torch.ones(
                self._num_images, len(as_lists), dtype=torch.bool, device="cpu"
            )
        if len(as_lists) != self._num_images:
            raise InputError(
                f"got {len(as_lists)} lists of targets for {self._num_images} images; give one list per image"
            )
        rows = [self._resolve_all(of_image) for of_image in as_lists]
        count = max(map(len, rows))
        valid = torch.tensor([[column < len(row) for column in range(count)] for row in rows], device="cpu")
        columns: list[ResolvedTarget] = []
        for column in range(count):
            of_each_image = [row[column] if column < len(row) else None for row in rows]
            columns.append(per_image(of_each_image))
        return columns, valid

    def resolve_null(self, target: Any) -> ResolvedTarget:
        """The null target, for all images."""
        if isinstance(target, str) and not target.strip():
            raise InputError("null_target is an empty text; say what counts as background, as in 'a photo of a'")
        return self._resolve_one(target)

    def _resolve_one(self, target: Any) -> ResolvedTarget:
        as_targets = as_list(target)
        if len(as_targets) != 1 or isinstance(as_targets[0], list):
            raise InputError(f"a single target is expected here, got {len(as_targets)}")
        return self._resolve_all(as_targets)[0]

    def _resolve_all(self, targets: list[Any]) -> list[ResolvedTarget]:
        """The targets in their order."""
        return [self._resolve_kind(target) for target in targets]

    def _resolve_kind(self, target: Any) -> ResolvedTarget:
        """One target, by its type; for classifiers texts are names of classes."""
        if isinstance(target, ResolvedTarget):
            return self._embedded(target)
        if isinstance(target, Tensor):
            return self._embedding(target)
        if isinstance(target, str):
            if self._anatomy.output == "embedding":
                return Direction(str(target), self._embed([target]), named=True)
            return self._label(target)
        if isinstance(target, bool | np.bool_):
            raise InputError("a bool is not a target; give a class index such as 3, or legrad.PREDICTED")
        if isinstance(target, int | np.integer):
            return self._class(operator.index(target))
        if isinstance(target, Prompts):
            return Direction(target.name, self._ensemble(target)[None], named=True)
        if isinstance(target, ZeroShot):
            return self._zero_shot(target)
        if isinstance(target, Similar):
            return self._similar(target)
        if isinstance(target, Audio):
            return self._audio(target)
        if isinstance(target, Contrast):
            return self._contrast(target)
        if isinstance(target, Target):
            return self._function(target)
        if target is PREDICTED:
            return self._predicted()
        if callable(target):
            return Function(_name_of(target), target)
        raise InputError(
            f"cannot use {type(target).__name__} as a target; give a text, class index, embedding, callable, or one of "
            "legrad.Prompts, ZeroShot, Similar, Audio, Contrast, Target, PREDICTED"
        )

    def _embedded(self, target: ResolvedTarget) -> ResolvedTarget:
        """What ``Explainer.embed`` gave, of this very model."""
        modules = self._adapter.model, self._anatomy.tower
        if isinstance(target.origin, Origin) and target.origin.differs_from(*modules):
            raise InputError(
                f"target {target.label!r} was embedded by another model ({target.origin.name}); embed it with this "
                "explainer, or give its .embeddings if both share one space"
            )
        return target

    def _usable_targets(self) -> str:
        """What can be asked of this model, for messages."""
        if self._anatomy.output == "logits":
            return "a class index, legrad.PREDICTED or a callable"
        feature = "legrad.Similar(image), an embedding or a callable"
        if self._adapter.audio_encoder is not None:
            feature = f"legrad.Audio(sound), {feature}"
        texts = self._anatomy.output == "embedding" and self._adapter.encode_text is not None
        return f"a text, legrad.ZeroShot(names), {feature}" if texts else feature

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised text embeddings (texts, features), float32."""
        if self._anatomy.output != "embedding" or self._adapter.encode_text is None:
            raise InputError(f"this model has no text tower; give {self._usable_targets()}")
        if self._adapter.tokenize is None:
            raise InputError(
                "text targets need a tokenizer: legrad.wrap(model, tokenizer=open_clip.get_tokenizer(NAME)), or pass "
                "text embeddings as a float tensor (targets, features)"
            )
        empty = [text for text in texts if not text.strip()]
        if empty:
            raise InputError(f"a text target is empty: {empty[0]!r}; say what to look for, as in 'a photo of a dog'")
        return self._encode(texts)

    def _ensemble(self, prompts: Prompts) -> Tensor:
        """One direction of all templates of a name, (features,)."""
        return F.normalize(self._embed(prompts.texts()).mean(0), dim=-1)

    def _texts_of(self, target: Any) -> list[str]:
        """All texts that a target needs embeddings of; those of all targets are encoded together."""
        if isinstance(target, str):
            return [target]
        if isinstance(target, Prompts):
            return target.texts()
        if isinstance(target, ZeroShot):
            return [text for prompts in target.prompts() for text in prompts.texts()]
        if isinstance(target, Contrast):
            return [text for side in (target.a, target.b) for text in self._texts_of(side)]
        if isinstance(target, list | tuple):
            return [text for single in target for text in self._texts_of(single)]
        return []

    def _embedding(self, vector: Tensor) -> ResolvedTarget:
        if self._anatomy.output == "logits":
            raise InputError("embedding targets are for models with an embedding; give a class index to a classifier")
        vector = vector.detach()
        if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            raise InputError("an embedding target is zero or holds NaN or infinite values")
        vector = vector.clone().to(self._anatomy.device, torch.promote_types(vector.dtype, torch.float32))
        return Direction("embedding", F.normalize(vector, dim=-1)[None])

    def _label(self, text: str) -> ResolvedTarget:
        labels = self._labels()
        if not text.strip():
            raise InputError(f"a text target is empty: {text!r}; give the name of a class")
        if self._anatomy.output != "logits" or labels is None:
            raise InputError(f"{text!r}: this model knows no texts; give {self._usable_targets()}")
        name = text.strip().casefold()
        # ImageNet's labels are lists of synonyms: "tench, Tinca tinca"
        synonyms = [[part.strip() for part in label.split(",")] for label in labels]
        matches = [index for index, label in enumerate(labels) if name == label.strip().casefold()]
        matches = matches or [i for i, parts in enumerate(synonyms) if name in [part.casefold() for part in parts]]
        if len(matches) == 1:
            return self._class(matches[0])
        if matches:
            raise InputError(f"{text!r} names several classes; give one of the indices {matches}")
        nearest = difflib.get_close_matches(text, [part for parts in synonyms for part in parts], 5)
        hint = (
            f"nearest: {', '.join(nearest)}"
            if nearest
            else f"its {len(labels)} classes begin with {', '.join(labels[:5])}"
        )
        raise InputError(f"the classifier has no class {text!r}; {hint}")

    def _class(self, index: int) -> ResolvedTarget:
        if self._anatomy.output != "logits":
            raise InputError(
                f"class index {index} needs a classifier, which this model is not; give {self._usable_targets()}"
            )
        labels, classes = self._labels(), num_classes(self._anatomy, self._adapter.model)
        if not 0 <= index < classes:
            raise InputError(f"class index {index} is outside 0..{classes - 1}")
        return one_hot(index, classes, labels[index] if labels else f"class {index}")

    def _labels(self) -> tuple[str, ...] | None:
        """Names of the classes; none if a head was put in since the model was wrapped, and there are others now."""
        labels = self._adapter.labels if self._anatomy.output == "logits" else None
        return labels if labels and len(labels) == num_classes(self._anatomy, self._adapter.model) else None

    def _feature(self, image: Input) -> Tensor:
        """The model's own plain answer for one image, (1, features)."""
        anatomy = self._anatomy.at(image.placement.input)
        return final_answer(anatomy, plain_answer(anatomy, stack([image], anatomy.device, anatomy.dtype)))

    def _zero_shot(self, target: ZeroShot) -> ResolvedTarget:
        prompts = target.prompts()
        classes = torch.stack([self._ensemble(prompts_of_name) for prompts_of_name in prompts])

        def best(answer: Tensor) -> ResolvedTarget:
            indices = (answer @ classes.to(answer).T).argmax(-1)
            return Direction(tuple(prompts[i].name for i in indices.tolist()), classes[indices], named=True)

        return NeedsAnswer("best of the names", best)

    def _function(self, target: Target) -> ResolvedTarget:
        if not callable(target.function):
            raise InputError(f"legrad.Target takes a callable, got {brief(target.function)}")
        check_choice("feature of legrad.Target", target.feature, ("raw", "normalized"))
        function = target.function
        if target.feature == "normalized":
            function = functools.partial(_on_normalized, target.function)
        # logits are raw already
        normalizes = any(readout.normalize for readout in self._anatomy.readouts.values())
        return Function(_name_of(target.function), function, raw=target.feature == "raw" and normalizes)

    def _contrast(self, target: Contrast) -> ResolvedTarget:
        a, b = self._resolve_one(target.a), self._resolve_one(target.b)
        sides = [side for side in (a, b) if isinstance(side, Direction)]
        features = {side.direction.shape[-1] for side in sides}
        if len(features) > 1:
            are_vectors = [isinstance(side, Tensor | np.ndarray) for side in (target.a, target.b)]
            if sum(are_vectors) == 1:  # the other one is the model's
                count, expected = (side.direction.shape[-1] for side in (sides if are_vectors[0] else sides[::-1]))
                raise InputError(f"Contrast: the embedding has {count} features, the model has {expected}")
        return contrast(a, b)

    def _similar(self, target: Similar) -> ResolvedTarget:
        if self._anatomy.output == "logits":
            raise InputError("Similar is for models with an embedding; this one is a classifier")
        if self._anatomy.side_inputs:
            raise InputError(
                f"legrad.Similar: there is no {self._anatomy.side_inputs[0]!r} for the other image; give its feature, "
                "a tensor (features,)"
            )
        image = target.image
        if isinstance(image, Tensor) and image.ndim == len(self._anatomy.shape):
            image = image[None]
        is_ready = isinstance(image, Tensor | Mapping | Inputs)
        fitting = USUAL if is_ready else self._fitting
        transform, unpack = self._adapter.transform, self._adapter.unpack
        queue = sources(image, self._anatomy, transform, unpack, fitting.size, fitting.fit, fitting.value_range)
        images = next(queue.windows())
        if len(images) != 1:
            raise InputError(f"Similar takes one image, got {len(images)}")
        return Direction(f"similar to {PurePath(images[0].name).stem}", self._feature(images[0]))

    def _audio(self, target: Audio) -> ResolvedTarget:
        if self._adapter.audio_encoder is None or self._anatomy.output == "logits":
            raise InputError(
                "legrad.Audio is for models that embed sounds in the space of their images, such as "
                "'embedded:speech' or one wrapped with audio_encoder=legrad.AudioEncoder(...); give this one "
                f"{self._usable_targets()}"
            )
        label, embedding = embed_sound(target, self._adapter.audio_encoder)
        return Direction(label, embedding[None].to(self._anatomy.device))

    def _predicted(self) -> ResolvedTarget:
        if self._anatomy.output != "logits":
            raise InputError(f"PREDICTED needs a classifier, which this model is not; give {self._usable_targets()}")
        labels = self._labels()

        def best(logits: Tensor) -> ResolvedTarget:
            indices = logits.argmax(-1)
            are_vectors = tuple(f"{labels[i] if labels else f'class {i}'} (predicted)" for i in indices.tolist())
            return Direction(
                are_vectors, F.one_hot(indices, logits.shape[-1]).to(logits.dtype), predicted=True, named=True
            )

        return NeedsAnswer("predicted", best)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _on_normalized(function: Callable[[Tensor], Tensor], feature: Tensor) -> Tensor:
    return function(F.normalize(feature, dim=-1))


def _warn_of_classes_for_all(labels: Sequence[int]) -> None:
    first = ", ".join(f"[{label}]" for label in labels[:3])
    spelling = f"[{first}, ...]" if len(labels) > 3 else f"[{first}]"
    warn(
        f"{len(labels)} class indices for {len(labels)} images: every image is explained for all of them. For one "
        f"class per image give a list for each, {spelling}, as labels[:, None].tolist() of a tensor does"
    )
