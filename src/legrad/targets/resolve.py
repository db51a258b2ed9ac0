"""Targets as users give them -> scores, with the help of the model: its text tower, its labels, its own answers."""

import difflib
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.core.score import Direction, Function, NeedsAnswer, ResolvedTarget, contrast, one_hot, per_image
from legrad.core.truth import final_answer, plain_answer
from legrad.errors import InputError
from legrad.inputs.prepare import Input, sources, stack
from legrad.models.adapter import Adapter
from legrad.models.anatomy import ViTAnatomy
from legrad.targets.classes import num_classes
from legrad.targets.kinds import PREDICTED, Audio, Contrast, Prompts, Similar, ZeroShot, as_list
from legrad.targets.sound import embed_sound
from legrad.targets.text import token_ids, truncated_texts


class Resolver:
    """Resolves targets for some images. Use it inside ``state.evaluation_mode``.

    Args:
        adapter: the model's.
        anatomy: for any size.
        num_images: how many images the targets are for.
    """

    def __init__(self, adapter: Adapter, anatomy: ViTAnatomy, num_images: int) -> None:
        self._adapter, self._anatomy, self._num_images = adapter, anatomy, num_images

    def resolve(self, targets: Any) -> tuple[list[ResolvedTarget], Tensor]:
        """Resolve the targets of a call.

        Returns:
            The targets, shared by all images, and a mask (images, targets): which of them each image asks for.

        Raises:
            InputError: targets that the model cannot use, or not one list per image.
        """
        as_lists = as_list(targets)
        if not isinstance(as_lists[0], list):
            return self._resolve_all(as_lists), torch.ones(self._num_images, len(as_lists), dtype=torch.bool)
        if len(as_lists) != self._num_images:
            raise InputError(
                f"got {len(as_lists)} lists of targets for {self._num_images} images; give one list per image"
            )
        rows = [self._resolve_all(of_image) for of_image in as_lists]
        count = max(map(len, rows))
        valid = torch.tensor([[column < len(row) for column in range(count)] for row in rows])
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
        """The targets in their order; texts are encoded together."""
        texts = [target for target in targets if isinstance(target, str)]
        encoded = iter(self._embed(texts)) if texts and self._anatomy.output == "embedding" else iter(())
        return [
            Direction(target, next(encoded)[None])
            if isinstance(target, str) and self._anatomy.output == "embedding"
            else self._resolve_kind(target)
            for target in targets
        ]

    def _resolve_kind(self, target: Any) -> ResolvedTarget:
        """One target, by its type; texts only for classifiers, whose labels they name."""
        if isinstance(target, ResolvedTarget):
            return target
        if isinstance(target, Tensor):
            return self._embedding(target)
        if isinstance(target, str):
            return self._label(target)
        if isinstance(target, bool):
            raise InputError("a bool is not a target")
        if isinstance(target, int | np.integer):
            return self._class(operator.index(target))
        if isinstance(target, Prompts):
            return Direction(target.name, self._ensemble(target.name, target.templates)[None])
        if isinstance(target, ZeroShot):
            return self._zero_shot(target)
        if isinstance(target, Similar):
            return self._similar(target)
        if isinstance(target, Audio):
            return self._audio(target)
        if isinstance(target, Contrast):
            return contrast(self._resolve_one(target.a), self._resolve_one(target.b))
        if target is PREDICTED:
            return self._predicted()
        if callable(target):
            return Function(getattr(target, "__name__", type(target).__name__), target)
        raise InputError(
            f"cannot use {type(target).__name__} as a target; give a text, class index, embedding, callable, or one of "
            "legrad.Prompts, ZeroShot, Similar, Audio, Contrast, PREDICTED"
        )

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
        ids = token_ids(self._adapter.tokenize, texts)
        if truncated := truncated_texts(self._adapter.tokenize, texts, ids):
            _warn_of_truncation(truncated)
        try:
            embedding = self._adapter.encode_text(ids.to(self._anatomy.device))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
            shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise InputError(
                f"the text tower does not take what the tokenizer gives ({shape}): {str(error).splitlines()[0]}; is it "
                "the tokenizer of this very model?"
            ) from error
        return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)

    def _ensemble(self, name: str, templates: Sequence[str]) -> Tensor:
        if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
            raise InputError(f"templates is a non-empty sequence of texts with '{{}}' in them, got {templates!r}")
        texts = [template.replace("{}", name) for template in templates]
        return F.normalize(self._embed(texts).mean(0), dim=-1)

    def _embedding(self, vector: Tensor) -> ResolvedTarget:
        if self._anatomy.output == "logits":
            raise InputError("embedding targets are for models with an embedding; give a class index to a classifier")
        if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            raise InputError("an embedding target is zero or holds NaN or infinite values")
        vector = vector.detach().clone().to(self._anatomy.device, torch.promote_types(vector.dtype, torch.float32))
        return Direction("embedding", F.normalize(vector, dim=-1)[None])

    def _label(self, text: str) -> ResolvedTarget:
        labels = self._labels()
        if self._anatomy.output != "logits" or labels is None:
            raise InputError(f"{text!r}: this model knows no texts; give {self._usable_targets()}")
        name = text.strip().casefold()
        for index, label in enumerate(labels):
            if name == label.casefold():
                return self._class(index)
        # ImageNet's labels are lists of synonyms: "tench, Tinca tinca"
        synonyms = [[part.strip() for part in label.split(",")] for label in labels]
        matches = [i for i, parts in enumerate(synonyms) if name in [part.casefold() for part in parts]]
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
        labels, classes = self._labels(), num_classes(self._adapter)
        if not 0 <= index < classes:
            raise InputError(f"class index {index} is outside 0..{classes - 1}")
        return one_hot(index, classes, labels[index] if labels else f"class {index}")

    def _labels(self) -> tuple[str, ...] | None:
        """Names of the classes; none if a head was put in since the model was wrapped, and there are others now."""
        labels = self._adapter.labels
        return labels if labels and len(labels) == num_classes(self._adapter) else None

    def _feature(self, image: Input) -> Tensor:
        """The model's own plain answer for one image, (1, features)."""
        anatomy = self._anatomy.at(image.placement.input)
        return final_answer(anatomy, plain_answer(anatomy, stack([image], anatomy.device, anatomy.dtype)))

    def _zero_shot(self, target: ZeroShot) -> ResolvedTarget:
        if isinstance(target.names, str) or not target.names:
            raise InputError(f"ZeroShot takes a non-empty sequence of names, got {target.names!r}")
        classes = torch.stack([self._ensemble(name, target.templates) for name in target.names])

        def best(answer: Tensor) -> ResolvedTarget:
            indices = (answer @ classes.to(answer).T).argmax(-1)
            return Direction(tuple(target.names[i] for i in indices.tolist()), classes[indices])

        return NeedsAnswer("best of the names", best)

    def _similar(self, target: Similar) -> ResolvedTarget:
        if self._anatomy.output == "logits":
            raise InputError("Similar is for models with an embedding; this one is a classifier")
        queue = sources(target.image, self._anatomy, self._adapter.transform, self._adapter.unpack)
        images = next(queue.windows())
        if len(images) != 1:
            raise InputError(f"Similar takes one image, got {len(images)}")
        return Direction(f"similar to {images[0].name}", self._feature(images[0]))

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
            names = tuple(f"{labels[i] if labels else f'class {i}'} (predicted)" for i in indices.tolist())
            return Direction(names, F.one_hot(indices, logits.shape[-1]).to(logits.dtype), predicted=True)

        return NeedsAnswer("predicted", best)


def _warn_of_truncation(texts: Sequence[str]) -> None:
    first = texts[0] if len(texts[0]) <= 80 else f"{texts[0][:60]} … {texts[0][-15:]}"
    others = f" ({len(texts) - 1} more texts are cut too)" if len(texts) > 1 else ""
    warnings.warn(
        f"the text {first!r} is longer than the model's context: its end is cut off and plays no part{others}",
        UserWarning,
        stacklevel=6,
    )
