"""``load`` and ``wrap`` a model, ``explain`` pictures: the streaming pass around the formula in ``relevance``."""

import contextlib
import functools
import importlib.metadata
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from legrad import methods
from legrad.core.memory import Chunks, ran_out
from legrad.core.planning import Plan, Planner
from legrad.core.positions import no_position_check, position_check, random_input
from legrad.core.score import Score
from legrad.core.state import exclusive, fingerprint, plain
from legrad.core.streaming import explain_batch
from legrad.core.truth import truth_check
from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs import geometry
from legrad.inputs.prepare import Input, by_size, sources, stack
from legrad.methods import registry as methods_registry
from legrad.models import registry
from legrad.models.adapter import Adapter, Hearing
from legrad.models.anatomy import ViTAnatomy
from legrad.results.assemble import Part, assemble
from legrad.results.explanation import Explanation
from legrad.targets.resolve import Resolver, class_names

READOUTS = ("auto", "published", "native")
FITS = ("model", "squash", "pad")
_WINDOW = 256  # pictures that a device gets at once


def load(name: str, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> "Explainer":
    """Build a pretrained model with its preprocessing and tokenizer.

    Args:
        name: "embedded", "embedded:map" or "embedded:speech" (offline, inside the package: with a class token, with an
            attentional pooler, with a class token and an ear for ``legrad.Audio``),
            "open_clip:ARCH/TAG", "timm:NAME.TAG", "hf:ORG/REPO", "hf:FOLDER", "torchvision:NAME"; open_clip and timm
            also take "local-dir:PATH" and "hf-hub:ORG/REPO" behind their prefix.
        device: where the model lives; default CPU.
        dtype: torch.float32 (default), torch.float16, torch.bfloat16 or torch.float64 (not open_clip), or its name.

    Raises:
        InputError: an unknown name, or weights that cannot be loaded (for instance without a network).
        UnsupportedModelError: the name is no plain vision transformer.
    """
    return Explainer(registry.load(name, device, dtype))


def wrap(
    model: nn.Module,
    transform: Any = None,
    tokenizer: Any = None,
    anatomy: ViTAnatomy | None = None,
    labels: Sequence[str] | None = None,
    hearing: Hearing | None = None,
) -> "Explainer":
    """Explain a model that is in memory already. The model is not changed, now or later.

    Args:
        model: of open_clip, timm, transformers, torchvision or OpenAI's clip, also inside DataParallel, DDP,
            ``torch.compile`` or PEFT; any module if ``anatomy`` is given.
        transform: picture -> tensor, a torchvision-style ``Compose``, or a processor of transformers (image processor,
            or ``AutoProcessor``, which brings its tokenizer along); default: the one the model carries.
        tokenizer: texts -> token ids, as ``open_clip.get_tokenizer`` returns, or a tokenizer of transformers; needed
            for text targets.
        anatomy: your own description, see ``ViTAnatomy``; where it lays the patches is checked at the first use.

        labels: class names of a classifier, in the order of its logits; default those that the model carries.
        hearing: how sounds are embedded in the space of the model's pictures, for ``legrad.Audio`` targets.

    Raises:
        UnsupportedModelError: a model that is not known and comes without an anatomy.
        InputError: labels that are no names for the model's logits, or hearing for a classifier.
    """
    adapter = registry.adapt(model) if anatomy is None else Adapter(model, anatomy)
    adapter, transform, tokenizer = registry.tools(adapter, transform, tokenizer)
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
    if labels is not None:
        adapter = replace(adapter, labels=class_names(labels, adapter.anatomy))
    if hearing is not None:
        if adapter.anatomy.output == "logits":
            raise InputError(
                f"hearing is for models that embed pictures and sounds in one space; {type(model).__name__} is a "
                "classifier, whose output is logits: leave hearing out, or wrap a model with an embedding"
            )
        adapter = replace(adapter, hearing=hearing)
    return Explainer(adapter, own_anatomy=anatomy is not None)


class Explainer:
    """A model that can be asked where it looked. Made by ``load`` or ``wrap``."""

    def __init__(self, adapter: Adapter, own_anatomy: bool = False) -> None:
        self._adapter = adapter
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._state: tuple[Any, ...] = ()
        self._own_anatomy = own_anatomy

    def __repr__(self) -> str:
        return f"Explainer({self._adapter.name or type(self.model).__name__}, {self.anatomy!r})"

    @property
    def model(self) -> nn.Module:
        """The wrapped model itself."""
        return self._adapter.model

    @property
    def adapter(self) -> Adapter:
        """What the model's library tells about it: tokenizer, transform, labels."""
        return self._adapter

    @property
    def anatomy(self) -> ViTAnatomy:
        """What is known about the model's vision tower."""
        return self._adapter.anatomy

    @functools.cached_property
    def listener(self) -> "Explainer | None":
        """Explains the audio tower of a model that sees and hears; None if there is none that can be explained."""
        return None if self._adapter.listener is None else Explainer(self._adapter.listener)

    def to(self, device: torch.device | str) -> "Explainer":
        """Move the model; returns itself."""
        self.model.to(device)
        if self._adapter.hearing is not None and self._adapter.hearing.tower is not None:
            self._adapter.hearing.tower.to(device)
        return self

    # -- the public call ------------------------------------------------------------------------------------------

    def explain(
        self,
        images: Any,
        targets: Any,
        layers: int | Sequence[int] | None = None,
        readout: str = "auto",
        method: str | methods.Method = "legrad",
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
                (B, 3, H, W), whose H and W are the input size. For video models: a path or URL of an animation or
                video, (frames, H, W, 3) uint8, a list of frames, a list of those, or (B, frames, 3, H, W). For audio
                models: a path or URL, a waveform (samples,) at the model's rate, (waveform, rate), a list of those, or
                spectrograms (B, time, frequency).
            targets: one or several of: text (used verbatim, no template), class index, embedding (features,),
                ``Prompts``, ``ZeroShot``, ``Similar``, ``Audio``, ``Contrast``, ``PREDICTED``, or a callable that gets
                the float32 read-out (B, features) and returns (B,). A list of lists gives every picture its own.
            layers: None for all, k for the last k blocks, or a sequence of indices (negative ones count from the end).
            readout: how a layer's tokens become the scored feature. "published": as the authors' code, "native": the
                model's own head, "auto": published for class-token models, native for the others.
            method: "legrad", or a name of ``legrad.methods.METHODS`` (baselines and controls; docs/methods.md). What a
                method cannot use (``layers``, ``readout``, ``null_target``, ``keep_layers``) is refused if given.
            size: input size in pixels, int or (H, W), for pictures; default the model's own.
            fit: how a picture gets there: "model" (its own transform), "squash" (whole picture, no crop) or "pad".
            null_target: a target whose map is taken for background, for instance "a photo of a".
            null_threshold: cells whose min-maxed null relevance exceeds it become zero.
            keep_layers: keep the relevance of every layer too.
            memory: bytes that explaining may take beyond the model, or "auto" (half of what is free). Pictures and
                targets are worked off in chunks that fit; if memory runs out all the same, the chunks are halved.

        Returns:
            An ``Explanation``; its tensors are detached and on the CPU, in the order of the input.

        Raises:
            InputError: an argument or picture that cannot be used.
            TruthCheckError: what was captured does not reproduce the model, so a map would be wrong.

        Warns:
            FlatMapWarning: a map without contrast (returned as zeros).
        """
        check_choice("readout", readout, READOUTS)
        check_choice("fit", fit, FITS)
        kind = methods.find(method)
        kind.check(self.anatomy, layers, readout, null_target, keep_layers)
        if memory != "auto" and (not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0):
            raise InputError(f"memory is 'auto' or a positive number of bytes, got {memory!r}")
        if not 0 <= null_threshold <= 1:
            raise InputError(f"null_threshold lies in [0, 1], got {null_threshold}")
        blocks = kind.blocks(layers, len(self.anatomy.blocks))
        chosen = str(self.anatomy.default_readout) if readout == "auto" else readout
        if chosen not in self.anatomy.readouts:
            raise InputError(f"this model has no {chosen} read-out, only {', '.join(self.anatomy.readouts)}")
        # the whole call: results made under inference mode could not be used in training code
        with torch.inference_mode(False), torch.no_grad(), exclusive(self.anatomy.blocks[0]):
            pictures = sources(images, self._adapter, size, fit)
            # inside, so that copies of the tower for other input sizes are made from it in its plain state
            with plain(self.model), plain(self.anatomy.tower, self.anatomy.switches):
                resolver = Resolver(self._adapter, self.anatomy, len(pictures))
                scores, valid = resolver.resolve(targets)
                null = None if null_target is None else resolver.one(null_target)
                asked = scores if null is None else [*scores, null]
                question = _Question(kind, asked, blocks, chosen, memory)
                inputs: list[Input] = []
                parts: list[Part] = []
                # while a device works on one window of pictures, the processor prepares the next
                count = None if self.anatomy.device.type == "cpu" else _WINDOW
                with contextlib.closing(pictures.windows(count)) as windows:
                    for window in windows:
                        inputs += window
                        for input_size, members in by_size(inputs, len(inputs) - len(window)).items():
                            anatomy = self.anatomy.at(input_size)
                            plan = self._plan(stack([inputs[members[0]]], anatomy), anatomy)
                            parts.extend(_in_chunks(question, anatomy, inputs, members, plan))
            return assemble(
                parts,
                inputs,
                valid,
                null_threshold=null_threshold if null else None,
                keep_layers=keep_layers,
                same_for_all_targets=not kind.targets,
                layers=blocks,
                axes=self.anatomy.axes,
                settings={
                    "model": self._adapter.name or type(self.model).__name__,
                    "method": kind.name,
                    "layers": blocks,
                    "readout": chosen if kind.readout else None,
                    "fit": fit,
                    "input_size": list(inputs[0].frame.input),
                    "null_target": None if null is None else null.label_of(0),
                    "null_threshold": null_threshold,
                    "device": str(self.anatomy.device),
                    "dtype": str(self.anatomy.dtype).removeprefix("torch."),
                    "versions": dict(_versions(self.anatomy.library)),
                },
            )

    def explain_audio(self, sounds: Any, targets: Any, **options: Any) -> Explanation:
        """Where in time and frequency did the model listen, for these targets?

        The same as ``explain`` for a model of sounds; of a model that sees and hears its audio tower is explained.

        Args:
            sounds: path, URL, waveform, (waveform, rate), a list of those, or spectrograms, as in ``explain``.
            targets: as in ``explain``.
            options: layers, readout, method and the others of ``explain``; size and fit are for pictures.

        Raises:
            UnsupportedModelError: the model does not listen, or not with a transformer that is known.
        """
        if self.anatomy.axes[0] == "frequency":
            return self.explain(sounds, targets, **options)
        if self.listener is None:
            raise UnsupportedModelError(
                f"{self._adapter.name or type(self.model).__name__} has no audio tower that can be explained, its "
                f"inputs have the axes {', '.join(self.anatomy.axes)}; load a model of sounds, such as an Audio "
                "Spectrogram Transformer: hf:FOLDER"
            )
        return self.listener.explain(sounds, targets, **options)

    def _plan(self, picture: Tensor, anatomy: ViTAnatomy) -> Plan:
        """Made by the truth check at the first use of a shape, dtype and device; a user's positions are checked too."""
        weights = itertools.chain(anatomy.blocks[0].parameters(), anatomy.blocks[0].buffers())
        if next(weights).is_inference():
            raise InputError(
                "the model was made under torch.inference_mode() and cannot be differentiated; load it outside"
            )
        key = (tuple(picture.shape), picture.dtype, picture.device)
        state = fingerprint(self.anatomy.tower)
        if state != self._state:  # trained on, loaded, rebuilt: what was found out before may hold no longer
            self._plans.clear()
            self._state = state
        if key not in self._plans:
            planner = Planner(anatomy)
            truth_check(anatomy, picture, planner.visit)
            if self._own_anatomy and not no_position_check(anatomy):
                position_check(anatomy, random_input(anatomy))
            self._plans[key] = planner.plan
        return self._plans[key]


class _Question:
    """What is asked of all pictures of a call, and how much of it goes into one pass, for every size of pictures."""

    def __init__(
        self, method: methods.Method, scores: list[Score], layers: list[int], readout: str, memory: str | int
    ) -> None:
        self.method, self.scores, self.layers, self.readout, self.memory = method, scores, layers, readout, memory
        self._chunks: dict[tuple[int, ...], Chunks] = {}

    def chunks(self, anatomy: ViTAnatomy) -> Chunks:
        """The same ones for every window of pictures of a shape: what turned out to be too much stays so."""
        if anatomy.shape not in self._chunks:
            self._chunks[anatomy.shape] = Chunks(anatomy, len(self.scores), len(self.layers), self.memory)
        return self._chunks[anatomy.shape]


def _in_chunks(
    question: _Question, anatomy: ViTAnatomy, inputs: Sequence[Input], members: list[int], plan: Plan
) -> Iterator[Part]:
    """Explain pictures of one size in chunks of pictures and targets that fit into memory."""
    method, layers, readout = question.method, question.layers, question.readout
    scores, chunks = question.scores, question.chunks(anatomy)
    late = any(score.late for score in scores)
    start = 0
    while start < len(members):
        rows = members[start : start + chunks.pictures(late)]
        own = [score.rows(rows) for score in scores]
        try:
            batch = stack([inputs[row] for row in rows], anatomy)
            passes = []
            for first in range(0, len(own), chunks.targets):
                asked = own[first : first + chunks.targets]
                if method.function is None:
                    one = explain_batch(anatomy, batch, asked, layers, readout, plan, chunks.defer, chunks.numbers)
                else:
                    one = methods_registry.explain_batch(
                        method, anatomy, batch, asked, layers, readout, question.memory
                    )
                passes.append(one)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            # the frames that the traceback holds hold tensors
            failure = error.with_traceback(None)
        else:
            relevance = torch.cat([one.relevance for one in passes], 1)
            values = torch.cat([one.values for one in passes], 1)
            yield Part(rows, anatomy.cells, relevance, values, [score for one in passes for score in one.scores])
            start += len(rows)
            continue
        chunks.halve(len(rows), late, failure)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """The value of an argument; raises ``InputError`` unless it is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{name} is one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


@functools.cache
def _versions(library: str) -> dict[str, str]:
    names = {"legrad": "legrad", "torch": "torch", library: {"open_clip": "open_clip_torch"}.get(library, library)}
    found = {}
    for name, distribution in names.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
