"""``load`` and ``wrap`` a model, ``explain`` pictures: the streaming pass around the formula in ``relevance``."""

import importlib.metadata
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad import adapters, capture, geometry, images, relevance
from legrad.anatomy import Readout, ViTAnatomy
from legrad.errors import FlatMapWarning, InputError, TruthCheckError
from legrad.explanation import Explanation
from legrad.targets import (
    PREDICTED,
    Contrast,
    Prompts,
    Score,
    Similar,
    ZeroShot,
    as_list,
    contrast,
    one_hot,
    per_picture,
)

READOUTS = ("auto", "published", "native")
FITS = ("model", "squash", "pad")
METHODS = ("legrad",)
_AUTO_MEMORY = 2 << 30  # bytes, where free memory is not known
_INSENSITIVE = 0.99
_FLAT = 1e-6


def load(name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Explainer":
    """Build a pretrained model with its preprocessing and tokenizer.

    Args:
        name: "embedded" (offline, inside the package), "open_clip:ARCH/TAG", "open_clip:local-dir:PATH" or
            "open_clip:hf-hub:ORG/REPO".
        device: where the model lives; default CPU.
        dtype: torch.float32 (default), torch.float16 or torch.bfloat16.

    Raises:
        InputError: an unknown name, or weights that cannot be loaded (for instance without a network).
        UnsupportedModelError: the name is no plain vision transformer.
    """
    return Explainer(adapters.load(name, device, dtype))


def wrap(
    model: nn.Module, transform: Any = None, tokenizer: Any = None, anatomy: ViTAnatomy | None = None
) -> "Explainer":
    """Explain a model that is in memory already. The model is not changed, now or later.

    Args:
        model: an open_clip model or vision tower; any module if ``anatomy`` is given.
        transform: picture -> tensor, a torchvision-style ``Compose``; default: the one the model carries.
        tokenizer: texts -> token ids, as ``open_clip.get_tokenizer`` returns; needed for text targets.
        anatomy: your own description, see ``ViTAnatomy``.

    Raises:
        UnsupportedModelError: a model that is not known and comes without an anatomy.
    """
    adapter = adapters.adapt(model) if anatomy is None else adapters.Adapter(model, anatomy)
    if tokenizer is not None:
        adapter = replace(adapter, tokenize=lambda texts: tokenizer(list(texts)))
    if transform is not None:
        own = adapter.transform

        def chosen(size: geometry.Size | None, fit: str) -> Any:
            if size is None and fit == "model":
                return transform
            if own is None:
                raise InputError("with your own transform only size=None and fit='model' are possible")
            return own(size, fit)

        adapter = replace(adapter, transform=chosen)
    return Explainer(adapter)


@dataclass(frozen=True)
class _Input:
    """One picture, ready for the model."""

    tensor: Tensor  # (3, height, width)
    frame: geometry.Frame
    picture: Any  # (H, W, 3) uint8, None for tensor input without mean and std
    name: str


class Explainer:
    """A model that can be asked where it looked. Made by ``load`` or ``wrap``."""

    def __init__(self, adapter: adapters.Adapter) -> None:
        self._adapter = adapter
        self._checked: set[tuple[Any, ...]] = set()

    def __repr__(self) -> str:
        return f"Explainer({self._adapter.name or type(self.model).__name__}, {self.anatomy!r})"

    @property
    def model(self) -> nn.Module:
        """The wrapped model itself."""
        return self._adapter.model

    @property
    def anatomy(self) -> ViTAnatomy:
        """What is known about the model's vision tower."""
        return self._adapter.anatomy

    def to(self, device: torch.device | str) -> "Explainer":
        """Move the model; returns itself."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the vision tower lives."""
        return next(self.anatomy.tower.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type that pictures are cast to: that of the tower's first parameter with two or more dimensions."""
        return next(p.dtype for p in self.anatomy.tower.parameters() if p.ndim > 1)

    # -- the public call ------------------------------------------------------------------------------------------

    def explain(
        self,
        images: Any,
        targets: Any,
        layers: int | Sequence[int] | None = None,
        readout: str = "auto",
        method: str = "legrad",
        size: int | Sequence[int] | None = None,
        fit: str = "model",
        null_target: Any = None,
        null_threshold: float = 0.8,
        keep_layers: bool = False,
        memory: str | int = "auto",
    ) -> Explanation:
        """Where did the model look, for these targets? LeGrad, arXiv:2404.03214.

        Args:
            images: path, http(s) URL, PIL image, (H, W, 3) uint8 array, a list of those, or a normalised float tensor
                (B, 3, H, W), whose H and W are the input size.
            targets: one or several of: text (used verbatim, no template), class index, embedding (features,),
                ``Prompts``, ``ZeroShot``, ``Similar``, ``Contrast``, ``PREDICTED``, or a callable that gets the float32
                read-out (B, features) and returns (B,). A list of lists gives every picture its own.
            layers: None for all, k for the last k blocks, or a sequence of indices (negative ones count from the end).
            readout: how a layer's tokens become the scored feature. "published": as the authors' code, "native": the
                model's own head, "auto": published for class-token models, native for the others.
            method: "legrad".
            size: input size in pixels, int or (H, W), for pictures; default the model's own.
            fit: how a picture gets there: "model" (its own transform), "squash" (whole picture, no crop) or "pad".
            null_target: a target whose map is taken for background, for instance "a photo of a".
            null_threshold: cells whose min-maxed null relevance exceeds it become zero.
            keep_layers: keep the relevance of every layer too.
            memory: bytes that explaining may take beyond the model, or "auto".

        Returns:
            An ``Explanation``; its tensors are detached and on the CPU, in the order of the input.

        Raises:
            InputError: an argument or picture that cannot be used.
            TruthCheckError: what was captured does not reproduce the model, so a map would be wrong.

        Warns:
            FlatMapWarning: a map without contrast (returned as zeros).
        """
        _choose("readout", readout, READOUTS)
        _choose("fit", fit, FITS)
        _choose("method", method, METHODS)
        if memory != "auto" and (not isinstance(memory, int) or memory <= 0):
            raise InputError(f"memory is 'auto' or a positive number of bytes, got {memory!r}")
        if not 0 <= null_threshold <= 1:
            raise InputError(f"null_threshold lies in [0, 1], got {null_threshold}")
        blocks = resolve_layers(layers, len(self.anatomy.blocks))
        chosen = self.anatomy.default_readout if readout == "auto" else readout
        with capture.exclusive(self.anatomy.blocks[0]):
            inputs = self._inputs(images, size, fit)
            anatomy = self._anatomy_for(inputs[0].tensor)
            with capture.plain(self.model, anatomy.switches):
                scores, valid = self._resolve(targets, inputs, anatomy)
                null = None if null_target is None else self._score(null_target, inputs, anatomy)
                self._check_once(inputs[0].tensor, anatomy)
                parts = [
                    self._pass(
                        inputs[rows],
                        [s.rows(rows) for s in (*scores, *([null] if null else []))],
                        anatomy,
                        blocks,
                        chosen,
                    )
                    for rows in _chunks(len(inputs), self._images_per_pass(anatomy, len(scores), memory))
                ]
        per_layer = torch.cat([part[0] for part in parts])
        values = torch.cat([part[1] for part in parts])
        return self._explanation(
            inputs,
            anatomy,
            scores,
            valid,
            per_layer,
            values,
            blocks,
            null_threshold=null_threshold if null else None,
            keep_layers=keep_layers,
            settings={
                "model": self._adapter.name or type(self.model).__name__,
                "method": method,
                "layers": blocks,
                "readout": chosen,
                "fit": fit,
                "input_size": list(inputs[0].frame.input),
                "null_target": None if null is None else null.label_of(0),
                "null_threshold": null_threshold,
                "device": str(self.device),
                "dtype": str(self.dtype).removeprefix("torch."),
                "versions": _versions(anatomy.library),
            },
        )

    # -- pictures -------------------------------------------------------------------------------------------------

    def _inputs(self, source: Any, size: int | Sequence[int] | None, fit: str) -> list[_Input]:
        if isinstance(source, Tensor):
            return self._tensor_inputs(source, size, fit)
        if isinstance(source, np.ndarray) and source.ndim == 4:
            source = list(source)
        sources = list(source) if isinstance(source, list | tuple) else [source]
        if not sources:
            raise InputError("no images")
        if any(isinstance(item, Tensor) for item in sources):
            raise InputError("give tensor input as one float tensor (batch, 3, height, width), not inside a list")
        if self._adapter.transform is None:
            raise InputError(
                "this model carries no preprocessing: give legrad.wrap(model, transform=...), or pass a normalised "
                "float tensor (batch, 3, height, width)"
            )
        wanted = None if size is None else geometry.as_size(size)
        transform = self._adapter.transform(wanted, fit)
        return [self._prepare(item, transform, index) for index, item in enumerate(sources)]

    @staticmethod
    def _prepare(source: Any, transform: Any, index: int) -> _Input:
        picture = images.read(source)
        frame = geometry.follow(transform, (picture.height, picture.width))
        tensor = transform(picture)
        if tuple(tensor.shape[1:]) != frame.input:
            raise InputError(
                f"the transform gave {tuple(tensor.shape[1:])} pixels where {frame.input} were expected from its steps; "
                "preprocess yourself and pass a float tensor (batch, 3, height, width)"
            )
        # pictures that were read from a file know where they came from
        name = str(picture.info.get(images.SOURCE, f"image {index}"))
        return _Input(tensor, frame, np.asarray(picture), name)

    def _tensor_inputs(self, tensor: Tensor, size: Any, fit: str) -> list[_Input]:
        if tensor.ndim != 4 or tensor.shape[1] != 3 or not tensor.is_floating_point() or len(tensor) == 0:
            raise InputError(
                "tensor input is normalised float (batch, 3, height, width) with at least one picture, got "
                f"{tuple(tensor.shape)} {tensor.dtype}"
            )
        if size is not None or fit != "model":
            raise InputError("size and fit are for pictures; resize tensor input yourself")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError("the input tensor holds NaN or infinite values; check your preprocessing")
        with torch.inference_mode(False):
            tensor = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
        scale = (
            None if self._adapter.transform is None else geometry.normalisation(self._adapter.transform(None, "model"))
        )
        frame = geometry.Frame((tensor.shape[2], tensor.shape[3]), (tensor.shape[2], tensor.shape[3]))
        return [_Input(row, frame, _denormalised(row, scale), f"image {index}") for index, row in enumerate(tensor)]

    def _anatomy_for(self, tensor: Tensor) -> ViTAnatomy:
        """The anatomy for the input's size; the model's own if it fits, else one with resampled positions."""
        height, width = tensor.shape[-2:]
        if (height, width) == self.anatomy.image_size:
            return self.anatomy
        if height < self.anatomy.patch_size[0] or width < self.anatomy.patch_size[1]:
            raise InputError(
                f"input of {height} x {width} pixels is smaller than one patch of {self.anatomy.patch_size}"
            )
        return self.anatomy.resized((height, width))

    # -- targets --------------------------------------------------------------------------------------------------

    def _resolve(self, targets: Any, inputs: list[_Input], anatomy: ViTAnatomy) -> tuple[list[Score], Tensor]:
        """Targets as scores shared by all pictures, and which of (images, targets) are asked for."""
        listed = as_list(targets)
        if not isinstance(listed[0], list):
            return self._scores(listed, inputs, anatomy), torch.ones(len(inputs), len(listed), dtype=torch.bool)
        if len(listed) != len(inputs):
            raise InputError(
                f"got {len(listed)} lists of targets for {len(inputs)} pictures; give one list per picture"
            )
        rows = [self._scores(own, [one], anatomy) for own, one in zip(listed, inputs, strict=True)]
        count = max(map(len, rows))
        valid = torch.tensor([[column < len(row) for column in range(count)] for row in rows])
        columns = []
        for column in range(count):
            cells = [row[column] if column < len(row) else None for row in rows]
            columns.append(per_picture(cells))
        return columns, valid

    def _score(self, target: Any, inputs: list[_Input], anatomy: ViTAnatomy) -> Score:
        return self._scores([target], inputs, anatomy)[0]

    def _scores(self, targets: list[Any], inputs: list[_Input], anatomy: ViTAnatomy) -> list[Score]:
        """One score per target; texts are encoded together."""
        texts = [target for target in targets if isinstance(target, str)]
        encoded = iter(self._embed(texts, anatomy)) if texts and anatomy.output == "embedding" else iter(())
        return [
            Score(target, next(encoded)[None])
            if isinstance(target, str) and anatomy.output == "embedding"
            else self._single(target, inputs, anatomy)
            for target in targets
        ]

    def _single(self, target: Any, inputs: list[_Input], anatomy: ViTAnatomy) -> Score:
        if isinstance(target, Tensor):
            return self._embedding(target, anatomy)
        if isinstance(target, str):
            return self._label(target, anatomy)
        if isinstance(target, bool):
            raise InputError("a bool is not a target")
        if isinstance(target, int | np.integer):
            return self._class(operator.index(target), anatomy)
        if isinstance(target, Prompts):
            return Score(target.name, self._ensemble(target.name, target.templates, anatomy)[None])
        if isinstance(target, ZeroShot):
            return self._zero_shot(target, inputs, anatomy)
        if isinstance(target, Similar):
            return self._similar(target, anatomy)
        if isinstance(target, Contrast):
            return contrast(self._score(target.a, inputs, anatomy), self._score(target.b, inputs, anatomy))
        if target is PREDICTED:
            return self._predicted(inputs, anatomy)
        if callable(target):
            return Score(getattr(target, "__name__", type(target).__name__), function=target)
        raise InputError(
            f"cannot use {type(target).__name__} as a target; give a text, class index, embedding, callable, or one of "
            "legrad.Prompts, ZeroShot, Similar, Contrast, PREDICTED"
        )

    def _embed(self, texts: Sequence[str], anatomy: ViTAnatomy) -> Tensor:
        """L2-normalised text embeddings (texts, features), float32."""
        if anatomy.output != "embedding" or self._adapter.encode_text is None:
            raise InputError(
                "this model has no text tower; targets are class indices, embeddings, Similar or callables"
            )
        if self._adapter.tokenize is None:
            raise InputError(
                "text targets need a tokenizer: legrad.wrap(model, tokenizer=open_clip.get_tokenizer(NAME)), or pass "
                "text embeddings as a float tensor (targets, features)"
            )
        empty = [text for text in texts if not text.strip()]
        if empty:
            raise InputError(f"a text target is empty: {empty[0]!r}; say what to look for, as in 'a photo of a dog'")
        ids = self._adapter.tokenize(texts).to(self.device)
        embedding = self._adapter.encode_text(ids)
        return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)

    def _ensemble(self, name: str, templates: Sequence[str], anatomy: ViTAnatomy) -> Tensor:
        if isinstance(templates, str) or not templates or not all("{}" in template for template in templates):
            raise InputError(f"templates is a non-empty sequence of texts with '{{}}' in them, got {templates!r}")
        texts = [template.replace("{}", name) for template in templates]
        return F.normalize(self._embed(texts, anatomy).mean(0), dim=-1)

    def _embedding(self, vector: Tensor, anatomy: ViTAnatomy) -> Score:
        if anatomy.output == "logits":
            raise InputError("embedding targets are for models with an embedding; give a class index to a classifier")
        if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            raise InputError("an embedding target is zero or holds NaN or infinite values")
        with torch.inference_mode(False):
            vector = vector.detach().clone().to(self.device, torch.promote_types(vector.dtype, torch.float32))
            return Score("embedding", F.normalize(vector, dim=-1)[None])

    def _label(self, text: str, anatomy: ViTAnatomy) -> Score:
        import difflib

        labels = self._adapter.labels
        if anatomy.output != "logits" or labels is None:
            raise InputError(f"{text!r}: this model knows no texts; give a class index, an embedding or a callable")
        for index, label in enumerate(labels):
            if text.casefold() == label.casefold():
                return self._class(index, anatomy)
        near = difflib.get_close_matches(text, labels, 5)
        raise InputError(f"the classifier has no class {text!r}; nearest: {', '.join(near) or 'none'}")

    def _class(self, index: int, anatomy: ViTAnatomy) -> Score:
        if anatomy.output != "logits":
            raise InputError(
                f"class index {index} needs a classifier; this model compares pictures with texts, so give a text or "
                "legrad.ZeroShot(names)"
            )
        labels = self._adapter.labels
        classes = len(labels) if labels else self._features(anatomy)
        if not 0 <= index < classes:
            raise InputError(f"class index {index} is outside 0..{classes - 1}")
        return one_hot(index, classes, labels[index] if labels else f"class {index}")

    def _features(self, anatomy: ViTAnatomy) -> int:
        blank = torch.zeros(1, 3, *anatomy.image_size, device=self.device, dtype=self.dtype)
        return int(anatomy.run(blank).shape[-1])

    def _output(self, inputs: list[_Input], anatomy: ViTAnatomy) -> Tensor:
        """The model's own plain answer: L2-normalised embeddings or raw logits, (images, features)."""
        rows = [anatomy.run(self._stack(inputs[part])) for part in _chunks(len(inputs), 8)]
        output = torch.cat(rows)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return F.normalize(output, dim=-1) if anatomy.output == "embedding" else output

    def _zero_shot(self, target: ZeroShot, inputs: list[_Input], anatomy: ViTAnatomy) -> Score:
        if isinstance(target.names, str) or not target.names:
            raise InputError(f"ZeroShot takes a non-empty sequence of names, got {target.names!r}")
        classes = torch.stack([self._ensemble(name, target.templates, anatomy) for name in target.names])
        best = (self._output(inputs, anatomy) @ classes.T).argmax(-1)
        return Score(tuple(target.names[i] for i in best.tolist()), classes[best])

    def _similar(self, target: Similar, anatomy: ViTAnatomy) -> Score:
        if anatomy.output == "logits":
            raise InputError("Similar is for models with an embedding; this one is a classifier")
        other = self._inputs(target.image, None, "model")
        if len(other) != 1:
            raise InputError(f"Similar takes one image, got {len(other)}")
        feature = self._output(other, self._anatomy_for(other[0].tensor))
        return Score(f"similar to {other[0].name}", F.normalize(feature, dim=-1))

    def _predicted(self, inputs: list[_Input], anatomy: ViTAnatomy) -> Score:
        if anatomy.output != "logits":
            raise InputError("PREDICTED needs a classifier; for an image-text model give legrad.ZeroShot(names)")
        logits = self._output(inputs, anatomy)
        best = logits.argmax(-1)
        labels = self._adapter.labels
        names = tuple(labels[i] if labels else f"class {i}" for i in best.tolist())
        return Score(names, F.one_hot(best, logits.shape[-1]).to(logits.dtype))

    # -- the streaming pass ---------------------------------------------------------------------------------------

    def _stack(self, inputs: list[_Input]) -> Tensor:
        return torch.stack([one.tensor for one in inputs]).to(self.device, self.dtype)

    def _images_per_pass(self, anatomy: ViTAnatomy, targets: int, memory: str | int) -> int:
        """How many pictures fit the budget, from a rough count of what one block's tail keeps."""
        budget = memory if isinstance(memory, int) else _AUTO_MEMORY
        if memory == "auto" and self.device.type == "cuda":
            budget = torch.cuda.mem_get_info(self.device)[0] // 2
        tokens = math.prod(anatomy.grid) + anatomy.num_prefix_tokens
        width = max(p.shape[-1] for p in anatomy.blocks[0].parameters() if p.ndim > 1)
        per_image = 4 * (12 * tokens * width + targets * len(anatomy.blocks) * tokens) + (1 << 20)
        return max(1, min(32, budget // per_image))

    def _check_once(self, image: Tensor, anatomy: ViTAnatomy) -> None:
        key = (tuple(image.shape), self.dtype, str(self.device))
        if key not in self._checked:
            truth_check(anatomy, image[None].to(self.device, self.dtype))
            self._checked.add(key)

    def _pass(
        self, inputs: list[_Input], scores: list[Score], anatomy: ViTAnatomy, layers: list[int], readout: str
    ) -> tuple[Tensor, Tensor]:
        """One forward: relevance (images, targets, layers, rows, cols) and scores (images, targets), on the CPU."""
        batch = self._stack(inputs)
        exact = anatomy.readouts[readout]
        found: dict[int, Tensor] = {}

        def score(feature: Tensor) -> Tensor:
            return torch.stack([one(feature) for one in scores], 1)

        def visit(layer: int, output: Any, calls: list[capture.AttentionCall]) -> None:
            tokens = anatomy.to_tokens(output)
            step = _pooler_layer if anatomy.route == "pooler" else _block_layer
            keys = step(anatomy, exact, tokens, calls, score, layer)
            found[layer] = relevance.on_grid(keys, anatomy.key_prefix, anatomy.grid).cpu()

        final, last = capture.stream(
            lambda: anatomy.run(batch), anatomy.blocks, layers, visit, tap=anatomy.route == "self-attention"
        )
        final = final.to(torch.promote_types(final.dtype, torch.float32))
        _same_output(_native(anatomy, anatomy.to_tokens(last)), final, "the native read-out of the last block's tokens")
        if anatomy.output == "embedding":
            final = F.normalize(final, dim=-1)
        return torch.stack([found[layer] for layer in layers], 2), score(final).detach().cpu()

    # -- the result -----------------------------------------------------------------------------------------------

    def _explanation(
        self,
        inputs: list[_Input],
        anatomy: ViTAnatomy,
        scores: list[Score],
        valid: Tensor,
        per_layer: Tensor,
        values: Tensor,
        layers: list[int],
        null_threshold: float | None,
        keep_layers: bool,
        settings: dict[str, Any],
    ) -> Explanation:
        merged = relevance.merge_layers(per_layer.unbind(2))
        flat = _flat(merged)
        merged = merged.masked_fill(flat[..., None, None], 0)
        null = None
        if null_threshold is not None:
            null, merged, per_layer = merged[:, -1:], merged[:, :-1], per_layer[:, :-1]
            values, flat = values[:, :-1], flat[:, :-1]
        labels = [
            [score.label_of(i) if valid[i, t] else "" for t, score in enumerate(scores)] for i in range(len(inputs))
        ]
        if bool((flat & valid).any()):
            where = [(inputs[i].name, labels[i][t]) for i, t in (flat & valid).nonzero().tolist()]
            warnings.warn(
                f"{len(where)} maps are flat and returned as zeros, the first for {where[0][0]}, target "
                f"{where[0][1]!r}: no patch matters for this score in the chosen layers",
                FlatMapWarning,
                stacklevel=3,
            )
        insensitive = _insensitive(merged, null, valid & ~flat)
        if bool(insensitive.any()):
            warnings.warn(
                f"{int(insensitive.sum())} of {int(valid.sum())} maps hardly depend on the target (correlation above "
                f"{_INSENSITIVE} with the mean of the others or the null map); see Explanation.prompt_independent",
                UserWarning,
                stacklevel=3,
            )
        if null is not None and null_threshold is not None:
            merged = relevance.subtract_null(merged, null, null_threshold)
        keep = valid[..., None, None]
        covered = (
            anatomy.grid[0] * anatomy.patch_size[0],
            anatomy.grid[1] * anatomy.patch_size[1],
        )
        return Explanation(
            relevance=merged * keep,
            layer_relevance=per_layer * keep[..., None] if keep_layers else None,
            layers=tuple(layers),
            scores=values.masked_fill(~valid, 0),
            valid=valid,
            labels=labels,
            prompt_independent=insensitive,
            frames=[one.frame for one in inputs],
            covered=covered,
            pictures=[one.picture for one in inputs],
            names=[one.name for one in inputs],
            settings=settings,
        )


# -- one layer ----------------------------------------------------------------------------------------------------


def _block_layer(
    anatomy: ViTAnatomy,
    readout: Readout,
    tokens: Tensor,
    calls: list[capture.AttentionCall],
    score: Callable[[Tensor], Tensor],
    layer: int,
) -> Tensor:
    """Self-attention route: gradients of the layer's scores at its head outputs, (batch, targets, keys)."""
    _check_calls(anatomy, calls, f"block {layer} ({type(anatomy.blocks[layer]).__name__})")
    leaf = _as_float(tokens.detach()).requires_grad_()
    scores = score(capture.in_float(readout, anatomy.tower, anatomy.blocks, leaf))
    heads = [calls[tap] for tap in anatomy.taps]
    results = []
    for target in range(scores.shape[1]):
        above = _gradient(scores[:, target], leaf, layer, target)
        # half precision: bring the gradient near 1 by a power of two, which ReLU lets us undo exactly afterwards
        shift = _power_of_two(above) if tokens.dtype != leaf.dtype else torch.ones(1, 1, 1)
        gradients = torch.autograd.grad(
            tokens,
            [call.output for call in heads],
            (above * shift).to(tokens.dtype),
            retain_graph=True,
            allow_unused=True,
        )
        maps = []
        for call, gradient in zip(heads, gradients, strict=True):
            if gradient is None:
                raise TruthCheckError(
                    f"an attention of block {layer} does not reach the block's output: wrong attention or wrong block"
                )
            maps.append(relevance.key_relevance(gradient, call.value, call.keep))
        results.append(relevance.merge_layers(maps) / shift.flatten(1))
    return torch.stack(results, 1)


def _pooler_layer(
    anatomy: ViTAnatomy,
    readout: Readout,
    tokens: Tensor,
    calls: list[capture.AttentionCall],
    score: Callable[[Tensor], Tensor],
    layer: int,
) -> Tensor:
    """Pooler route: the same at the pooler's attention over the block's tokens, query 0 only."""
    leaf = _as_float(tokens.detach())
    feature, calls = capture.tapped(lambda: capture.in_float(readout, anatomy.tower, anatomy.blocks, leaf))
    _check_calls(anatomy, calls, f"the attentional pooler on block {layer}")
    scores = score(feature)
    call = calls[anatomy.taps[-1]]
    keep = None if call.keep is None else call.keep[:, :, :1]
    results = []
    for target in range(scores.shape[1]):
        gradient = _gradient(scores[:, target], call.output, layer, target)
        results.append(relevance.key_relevance(gradient[:, :, :1], call.value, keep))
    return torch.stack(results, 1)


def _gradient(score: Tensor, at: Tensor, layer: int, target: int) -> Tensor:
    """d sum(score) / d at; rows of a batch are independent, so the sum keeps them apart."""
    if not score.requires_grad:
        raise InputError(
            f"target {target}: the callable's result does not depend on the feature (was it detached, or computed "
            "without gradients?)"
        )
    (gradient,) = torch.autograd.grad(score.sum(), at, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise TruthCheckError(f"the score of target {target} does not depend on layer {layer}'s attention")
    return gradient


def _as_float(tokens: Tensor) -> Tensor:
    return tokens.to(torch.promote_types(tokens.dtype, torch.float32))


def _power_of_two(gradient: Tensor) -> Tensor:
    """(batch, 1, ...) powers of two that bring each picture's largest gradient to about 1; 1 for a zero gradient."""
    largest = gradient.abs().flatten(1).amax(1)
    exponent = torch.where(largest > 0, -largest.clamp(min=1e-38).log2().floor(), 0)
    return exponent.exp2().reshape(-1, *[1] * (gradient.ndim - 1))


def _native(anatomy: ViTAnatomy, tokens: Tensor) -> Tensor:
    """The native head on tokens, before L2, at least float32."""
    native = anatomy.readouts["native"].function
    return capture.in_float(native, anatomy.tower, anatomy.blocks, _as_float(tokens))


# -- the truth check ----------------------------------------------------------------------------------------------


def _tolerance(dtype: torch.dtype) -> float:
    return 3e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4


def _distance(found: Tensor, expected: Tensor) -> float:
    found, expected = _as_float(found), _as_float(expected)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _same_output(found: Tensor, expected: Tensor, what: str, dtype: torch.dtype | None = None) -> None:
    distance = _distance(found, expected) if found.shape == expected.shape else math.inf
    # a comparison with NaN is False, and NaN must not pass
    if not distance <= _tolerance(dtype or expected.dtype):
        raise TruthCheckError(
            f"{what} differs from the model's own output by {distance:.2g} of its largest value (shapes "
            f"{tuple(found.shape)} and {tuple(expected.shape)}): this model is not what its anatomy says"
        )


def _check_calls(anatomy: ViTAnatomy, calls: list[capture.AttentionCall], where: str) -> None:
    if len(calls) != anatomy.attentions:
        raise TruthCheckError(
            f"{where} ran {len(calls)} scaled-dot-product attentions, expected {anatomy.attentions}: its attention "
            "bypasses F.scaled_dot_product_attention (an own implementation, a scripted module), or is of another kind"
        )


def truth_check(anatomy: ViTAnatomy, batch: Tensor) -> None:
    """One plain forward against the instrumented one, block by block if they differ, and every tapped attention
    against an explicit softmax on a few queries.

    Call it inside ``capture.plain``.

    Args:
        anatomy: for the size of ``batch``.
        batch: (1, 3, height, width) in the model's dtype.

    Raises:
        TruthCheckError: says what differs, and where first.
    """
    with capture.record(anatomy.blocks) as plain_blocks:
        expected = anatomy.run(batch)
    tapped: dict[int, list[capture.AttentionCall]] = {}
    blocks: dict[int, Tensor] = {}

    def visit(layer: int, output: Any, calls: list[capture.AttentionCall]) -> None:
        blocks[layer] = anatomy.to_tokens(output).detach()
        if anatomy.route == "pooler":
            _, calls = capture.tapped(lambda: _native(anatomy, blocks[layer]), verify=True)
        for call in calls:
            call.output = call.output.detach()  # keep no graph
        tapped[layer] = calls

    every = range(len(anatomy.blocks))
    found, _ = capture.stream(
        lambda: anatomy.run(batch), anatomy.blocks, every, visit, tap=anatomy.route == "self-attention", verify=True
    )
    limit = _tolerance(batch.dtype)
    for layer in every:
        name = f"block {layer} ({type(anatomy.blocks[layer]).__name__})"
        distance = _distance(blocks[layer], anatomy.to_tokens(plain_blocks[layer]))
        if not distance <= limit:
            raise TruthCheckError(
                f"instrumented and plain forward differ, first at {name}, by {distance:.2g} of the largest value"
            )
        where = name if anatomy.route == "self-attention" else f"the attentional pooler on {name}"
        _check_calls(anatomy, tapped[layer], where)
        for number, call in enumerate(tapped[layer]):
            if call.mismatch is None or not call.mismatch <= limit:
                raise TruthCheckError(
                    f"attention {number} of {where}: head outputs differ from softmax(QK^T)V by {call.mismatch:.2g} of "
                    "the largest value: values, mask, scale or head order were not captured as the model uses them"
                )
    _same_output(found, expected, "the instrumented forward's result", batch.dtype)
    last = anatomy.to_tokens(plain_blocks[len(anatomy.blocks) - 1])
    _same_output(_native(anatomy, last), expected, "the native read-out of the last block's tokens", batch.dtype)


# -- small things -------------------------------------------------------------------------------------------------


def resolve_layers(layers: int | Sequence[int] | None, depth: int) -> list[int]:
    """Ascending block indices.

    Args:
        layers: None for all, k >= 1 for the last k, or a sequence of indices (negative ones count from the end).
        depth: number of blocks.

    Raises:
        InputError: 0, a negative int, more than ``depth``, an index out of range, a duplicate, an empty sequence.
    """
    hint = f"use an int from 1 to {depth} for the last blocks, or a sequence of indices such as [-1] or [0, 3]"
    if layers is None:
        return list(range(depth))
    if isinstance(layers, bool):
        raise InputError(f"layers={layers!r}; {hint}")
    if isinstance(layers, int | np.integer):
        if not 1 <= layers <= depth:
            raise InputError(f"layers={layers} but the model has {depth} blocks; {hint}")
        return list(range(depth - int(layers), depth))
    try:
        indices = [operator.index(layer) for layer in layers]
    except TypeError as error:
        raise InputError(f"layers={layers!r}; {hint}") from error
    if not indices:
        raise InputError(f"layers is empty; {hint}")
    outside = [index for index in indices if not -depth <= index < depth]
    if outside:
        raise InputError(f"layer {outside[0]} is outside the model's {depth} blocks; {hint}")
    resolved = sorted(index % depth for index in indices)
    if len(set(resolved)) < len(resolved):
        raise InputError(f"layers={list(layers)!r} names a block twice; {hint}")
    return resolved


def _choose(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is one of {', '.join(map(repr, allowed))}, got {value!r}")


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _flat(maps: Tensor) -> Tensor:
    """(images, targets) bool: maps whose spread is nothing but rounding."""
    high, low = maps.amax((-2, -1)), maps.amin((-2, -1))
    return ~(high - low > _FLAT * high.abs())


def _insensitive(maps: Tensor, null: Tensor | None, valid: Tensor) -> Tensor:
    """(images, targets) bool: maps that correlate with the mean of the others, or with the null map."""
    count = valid.sum(1)[:, None, None, None]
    shown = maps * valid[..., None, None]
    others = (shown.sum(1, keepdim=True) - shown) / (count - 1).clamp(min=1)
    alike = (_correlation(maps, others) > _INSENSITIVE) & (count[..., 0, 0] > 1)
    if null is not None:
        alike |= _correlation(maps, null.expand_as(maps)) > _INSENSITIVE
    return alike & valid


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the grid; 0 where a map is flat."""
    a, b = (x.flatten(-2) - x.flatten(-2).mean(-1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=-1, eps=1e-30)


def _denormalised(tensor: Tensor, scale: tuple[Tensor, Tensor] | None) -> Any:
    """The picture behind normalised input, (H, W, 3) uint8; stretched to grey if mean and std are not known."""
    pixels = tensor.detach().float().cpu()
    if scale is None:
        grey = pixels.mean(0)
        pixels = relevance.min_max(grey).expand(3, -1, -1)
    else:
        pixels = pixels * scale[1][:, None, None] + scale[0][:, None, None]
    return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def _versions(library: str) -> dict[str, str]:
    names = {"legrad": "legrad", "torch": "torch", library: {"open_clip": "open_clip_torch"}.get(library, library)}
    found = {}
    for name, distribution in names.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
