"""``load`` and ``wrap`` a model, ``explain`` images: the steps in order."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legrad import methods
from legrad.batches import WINDOW, Question, explain_queue, final_answers
from legrad.checks import brief, first_line
from legrad.choices import FITS, Fit, ReadoutName, check_choice
from legrad.convenience import Convenience
from legrad.core.first_use import FirstUse
from legrad.core.memory import check_memory, ran_out
from legrad.core.state import evaluation_mode, exclusive, not_compiled, ordinary_tensors
from legrad.core.undo import Borrowing, Together, guarded
from legrad.deprecation import renamed_arguments, renamed_fields
from legrad.errors import InputError
from legrad.inputs import transforms
from legrad.inputs.geometry import Size
from legrad.inputs.prepare import Fitting, Images, InputQueue, Inputs, sources
from legrad.inputs.readers import Input
from legrad.inputs.tensors import checked_tensor
from legrad.models import checks
from legrad.models.adapter import Adapter, AudioEncoder
from legrad.models.anatomy import ViTAnatomy
from legrad.models.side_inputs import SideInputs
from legrad.recipe import ByName, Copyable, OfModel
from legrad.request import check_device, checked_request
from legrad.results.assemble import assemble
from legrad.results.explanation import Explanation
from legrad.results.presence import Asker
from legrad.targets.downloads import downloaded
from legrad.targets.kinds import EmbeddedTargets, Origin, Targets, as_list
from legrad.targets.resolve import Resolver


@not_compiled
@guarded
def load(name: str, device: torch.device | str | None = "auto", dtype: torch.dtype | str | None = None) -> "Explainer":
    """Build a pretrained model with its preprocessing and tokenizer.

    >>> explainer = legrad.load("embedded", device="cpu")
    >>> explainer.predict(next(legrad.embedded.scenes(1)).image).shape
    torch.Size([1, 128])

    Args:
        name: "embedded", "embedded:map" or "embedded:speech" (offline, inside the package: with a class token, with an
            attentional pooler, with a class token and a speech encoder for ``legrad.Audio``),
            "open_clip:ARCH/TAG", "timm:NAME.TAG", "hf:ORG/REPO", "hf:FOLDER", "torchvision:NAME"; open_clip and timm
            also take "local-dir:PATH" and "hf-hub:ORG/REPO" behind their prefix.
        device: where the model lives; "auto" (or None) takes CUDA, else MPS, else the CPU.
        dtype: torch.float32 (default), torch.float16, torch.bfloat16 or torch.float64 (not open_clip), or its name.

    Raises:
        InputError: an unknown name, or weights that cannot be loaded (for instance without a network).
        UnsupportedModelError: the name is no plain vision transformer.
    """
    recipe = ByName(name, device, dtype)
    return Explainer(recipe.adapter(), recipe=recipe)


@not_compiled
@renamed_arguments(hearing="audio_encoder")
@guarded
def wrap(
    model: nn.Module,
    transform: Any = None,
    tokenizer: Any = None,
    anatomy: ViTAnatomy | None = None,
    labels: Sequence[str] | None = None,
    audio_encoder: AudioEncoder | None = None,
) -> "Explainer":
    """Explain a model that is in memory already. The model is not changed, now or later.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    >>> explainer = legrad.wrap(model)
    >>> explainer.explain(torch.randn(1, 3, 224, 224), targets=[3, 7]).relevance.shape
    torch.Size([1, 2, 14, 14])

    Args:
        model: of open_clip, timm, transformers, torchvision or OpenAI's clip, also inside DataParallel, DDP,
            ``torch.compile`` or PEFT; any module if ``anatomy`` is given.
        transform: image -> tensor, a torchvision-style ``Compose``, or a processor of transformers (image processor,
            or ``AutoProcessor``, which brings its tokenizer along); default: the one the model carries.
        tokenizer: texts -> token ids, as ``open_clip.get_tokenizer`` returns, or a tokenizer of transformers; needed
            for text targets.
        anatomy: your own description, see ``ViTAnatomy``; where it lays the patches is checked at the first use.
        labels: class names of a classifier, in the order of its logits; default those that the model carries.
        audio_encoder: how sounds are embedded in the space of the model's images, for ``legrad.Audio`` targets.

    Raises:
        UnsupportedModelError: a model that is not known and comes without an anatomy.
        InputError: an argument of another type, labels that are no names for the model's logits, audio_encoder for a
            classifier, or a model without weights.

    Warns:
        UserWarning: the model carries class names, but not as many as it has classes: they are not used.
    """
    recipe = OfModel(model, transform, tokenizer, anatomy, labels, audio_encoder)
    return Explainer(recipe.adapter(), own_anatomy=anatomy is not None, recipe=recipe)


@renamed_fields(listener="audio_explainer")
class Explainer(Copyable, Convenience):
    """A model that can be asked where it looked. Made by ``load`` or ``wrap``.

    ``explain`` does all of it; its steps can be used alone: ``prepare`` reads and preprocesses images, ``embed``
    encodes targets, ``predict`` is the model's own answer.
    """

    def __init__(self, adapter: Adapter, own_anatomy: bool = False, recipe: ByName | OfModel | None = None) -> None:
        self._adapter, self._recipe = adapter, recipe
        self._first_use = FirstUse(adapter.anatomy, check_positions=own_anatomy)

    def __repr__(self) -> str:
        return f"Explainer({self.name}, {self.anatomy.described(self.input_size)})"

    @property
    def input_size(self) -> Size:
        """(height, width) of what ``explain`` makes of a square image by default; (frequency, time) of sounds."""
        usual, transform = self.anatomy.image_size, self._adapter.transform
        return usual if self.anatomy.axes[0] == "frequency" else transforms.usual_size(transform, usual)

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
    def audio_explainer(self) -> "Explainer | None":
        """Explains the audio tower of a model of images and sounds; None if there is none that can be explained."""
        return None if self._adapter.audio_adapter is None else Explainer(self._adapter.audio_adapter)

    @property
    def name(self) -> str:
        """By which the model was loaded, or its type."""
        return self._adapter.name or type(self.model).__name__

    def to(self, device: torch.device | str) -> "Explainer":
        """Move the model; returns itself.

        Raises:
            InputError: no such device.
        """
        check_device(device)
        try:
            self.model.to(device)
        except (RuntimeError, AssertionError) as error:
            if ran_out(error):
                raise
            raise InputError(f"the model cannot be moved to {brief(device)}: {first_line(error)}") from error
        if self._adapter.audio_encoder is not None and self._adapter.audio_encoder.tower is not None:
            self._adapter.audio_encoder.tower.to(device)
        return self

    # -- the steps ------------------------------------------------------------------------------------------------

    @not_compiled
    @guarded
    def prepare(
        self,
        images: Images,
        size: int | Sequence[int] | None = None,
        fit: Fit = "model",
        value_range: tuple[float, float] | None = None,
        allow_private_urls: bool = True,
    ) -> Inputs:
        """Read and preprocess images once, for several calls.

        >>> explainer = legrad.load("embedded")
        >>> images = explainer.prepare([scene.image for scene in legrad.embedded.scenes(2)])
        >>> explainer.explain(images, "a cow").scores.shape, explainer.predict(images).shape
        (torch.Size([2, 1]), torch.Size([2, 128]))

        Args:
            images, size, fit, value_range, allow_private_urls: as for ``explain``.

        Returns:
            The model's inputs with their originals; ``explain`` and ``predict`` take them in place of images.

        Raises:
            InputError: an argument or image that cannot be used.
        """
        check_choice("fit", fit, FITS)
        with ordinary_tensors():
            queue = self.queue(images, size, fit, value_range, allow_private_urls)
            return Inputs(next(queue.windows()), queue.fitting)

    @not_compiled
    @guarded
    def embed(
        self,
        targets: Targets,
        memory: Literal["auto"] | int = "auto",
        allow_private_urls: bool = True,
        size: int | Sequence[int] | None = None,
        fit: Fit = "model",
        value_range: tuple[float, float] | None = None,
    ) -> EmbeddedTargets:
        """Encode targets once, for many calls: ``explain(..., targets=explainer.embed(texts))``.

        >>> explainer = legrad.load("embedded")
        >>> targets = explainer.embed(["a cow", "a pig"])
        >>> targets.embeddings.shape
        torch.Size([2, 128])
        >>> explainer.explain(next(legrad.embedded.scenes(1)).image, targets).labels
        [['a cow', 'a pig']]

        Args:
            targets: one or several, as for ``explain``, the same for all images.
            memory: bytes that the text tower may take, or "auto".
            allow_private_urls, size, fit, value_range: as for ``explain``; the last three for images of ``Similar``.

        Returns:
            The targets, resolved; ``embeddings`` are their directions (targets, features) where they have one.

        Raises:
            InputError: targets that cannot be used, or a list for each image.
        """
        if any(isinstance(target, list) for target in as_list(targets)):
            raise InputError("embed takes targets for all images; give explain a list of lists")
        fitting = Fitting(size, check_choice("fit", fit, FITS), value_range)
        targets = downloaded(targets, allow_private_urls)
        with ordinary_tensors(), self._undisturbed_model():
            resolved, _ = Resolver(self._adapter, self.anatomy, 0, check_memory(memory), fitting).resolve(targets)
        origin = Origin(self.name, self.model, self.anatomy.tower)
        return EmbeddedTargets(tuple(replace(target, origin=origin) for target in resolved))

    @not_compiled
    @guarded
    def predict(
        self,
        images: Images,
        size: int | Sequence[int] | None = None,
        fit: Fit = "model",
        inputs: Mapping[str, Tensor] | None = None,
        value_range: tuple[float, float] | None = None,
        allow_private_urls: bool = True,
    ) -> Tensor:
        """The model's own final answer.

        >>> explainer = legrad.load("embedded")
        >>> explainer.predict(next(legrad.embedded.scenes(1)).image).norm(dim=-1).round(decimals=3)
        tensor([1.])

        Args:
            images, size, fit, inputs, value_range, allow_private_urls: as for ``explain``; a tensor stays on its device
                until its turn comes.

        Returns:
            (images, features), detached, on the CPU, at least float32: raw logits of classifiers, else L2-normalised
            embeddings (unless an anatomy's native read-out says ``normalize=False``).

        Raises:
            InputError: an argument or image that cannot be used.
        """
        check_choice("fit", fit, FITS)
        with ordinary_tensors():
            windows: Iterable[Tensor | Sequence[Input]]
            if isinstance(images, Tensor) and images.ndim == len(self.anatomy.shape) + 1:
                tensor = checked_tensor(images, self.anatomy, size, fit, value_range)
                count, windows = len(tensor), [tensor]
            else:
                queue = self.queue(images, size, fit, value_range, allow_private_urls, 0)
                count, windows = len(queue), queue.windows(WINDOW)
            side_inputs = SideInputs(inputs, count, self.anatomy)
            return final_answers(self.anatomy, windows, side_inputs, self._undisturbed_model)

    # -- the public call ------------------------------------------------------------------------------------------

    @not_compiled
    @guarded
    def explain(
        self,
        images: Images,
        targets: Targets | None = None,
        layers: int | Sequence[int] | None = None,
        readout: ReadoutName = "auto",
        method: str | methods.Method = "legrad",
        size: int | Sequence[int] | None = None,
        fit: Fit = "model",
        null_target: Targets | None = None,
        null_threshold: float = 0.8,
        keep_layers: bool = False,
        memory: Literal["auto"] | int = "auto",
        inputs: Mapping[str, Tensor] | None = None,
        value_range: tuple[float, float] | None = None,
        allow_private_urls: bool = True,
    ) -> Explanation:
        """Where did the model look, for these targets? LeGrad, arXiv:2404.03214.

        >>> explainer = legrad.load("embedded")
        >>> scene = next(legrad.embedded.scenes(1))
        >>> explanation = explainer.explain(scene.image, ["a photo of a cow", "a photo of a pig"])
        >>> explanation.relevance.shape, explanation.saliency().shape
        (torch.Size([1, 2, 12, 12]), torch.Size([1, 2, 192, 192]))

        Args:
            images: path, http(s) URL, PIL image, (H, W, 3) uint8 array, a list of those, or a normalised float tensor
                (B, channels, H, W); H and W are the input size. For video models: a path or URL of an animation or
                video, (frames, H, W, 3) uint8, a list of frames, a list of those, or (B, frames, 3, H, W). For audio
                models: a path or URL, a waveform (samples,) at the model's rate, (waveform, rate), a list of those, or
                spectrograms (B, time, frequency). Or what ``prepare`` gave.
            targets: one or several of: text (used verbatim, no template), class index, embedding (features,),
                ``Prompts``, ``ZeroShot``, ``Similar``, ``Audio``, ``Contrast``, ``PREDICTED``, or a callable that gets
                the read-out (B, features), at least float32, and returns (B,): L2-normalised of models with an
                embedding or feature, raw logits of classifiers; ``Target(callable, feature="raw")`` gets it before
                the normalisation. A list of lists gives every image its own. Or what ``embed`` gave. None for methods
                whose maps depend on no target (raw-attention, rollout, controls).
            layers: None for all (or what the method is for, such as the last two thirds), k for the last k blocks, or a
                sequence of indices (negative ones count from the end).
            readout: how a layer's tokens become the scored feature. "published": as the authors' code, "native": the
                model's own head, "auto": published for class-token models, native for others and refined methods.
            method: "legrad", or a name of ``legrad.methods.METHODS`` (baselines and controls; docs/methods.md). What a
                method cannot use (``layers``, ``readout``, ``null_target``, ``keep_layers``) is refused if given.
            size: input size in pixels, int or (H, W), for images; default the model's own.
            fit: how a image gets there: "model" (its own transform), "squash" (whole image, no crop) or "pad".
            null_target: a target whose map is taken for background, for instance "a photo of a".
            null_threshold: cells whose min-maxed null relevance exceeds it become zero.
            keep_layers: keep the relevance of every layer too.
            memory: bytes that explaining may take beyond the model, or "auto" (half of what is free). Images and
                targets are worked off in chunks that fit; if memory runs out all the same, the chunks are halved.
            inputs: what the model takes beside the images, by name: tensors or arrays with one row per image, handed to
                its forward pass, and to read-outs that have a parameter of that name.
            value_range: (low, high), the values of images that become black and white, in the files' own units, such as
                (0, 4095) or a window of Hounsfield units; default what a file declares.
            allow_private_urls: False refuses URLs of local and private addresses, for services (docs/inputs.md).

        Returns:
            An ``Explanation``; its tensors are detached and on the CPU, in the order of the input.

        Raises:
            InputError: an argument or image that cannot be used.
            TruthCheckError: what was captured does not reproduce the model, so a map would be wrong.

        Warns:
            FlatMapWarning: a map without contrast (returned as zeros).
        """
        request = checked_request(
            self.anatomy, layers, readout, method, fit, null_target, null_threshold, keep_layers, memory, value_range
        )
        with ordinary_tensors():
            queue = self.queue(images, size, fit, request.value_range, allow_private_urls, request.kept_bytes)
            targets, null_target = (downloaded(target, allow_private_urls) for target in (targets, null_target))
            side_inputs = SideInputs(inputs, len(queue), self.anatomy)
            with self._undisturbed_model():
                if self.anatomy.is_made(request.readout):
                    self._first_use.check_mean_readout(side_inputs.bound(self.anatomy, [0]))
                anatomy = side_inputs.bound(self.anatomy, [0])
                resolver = Resolver(self._adapter, anatomy, len(queue), request.memory, queue.fitting)
                resolved, valid = resolver.resolve(targets, request.method.own_labels(anatomy, targets))
                null = None if null_target is None else resolver.resolve_null(null_target)
            question = Question(request, resolved if null is None else [*resolved, null], side_inputs)
            inputs_of_call, results = explain_queue(
                question, queue, self.anatomy, self._first_use, self._undisturbed_model
            )
            return assemble(
                results,
                inputs_of_call,
                valid,
                null_threshold=request.null_threshold if null else None,
                keep_layers=request.keep_layers,
                same_for_all_targets=not request.method.targets,
                layers=request.layers,
                anatomy=self.anatomy,
                settings=request.settings(self.name, self.anatomy, inputs_of_call[0], null),
                asker=Asker(self),
            )

    def _undisturbed_model(self) -> Borrowing:
        """A with-block with the model this thread's alone, in evaluation mode; used inside ``ordinary_tensors``.

        Copies of the tower for other input sizes are made inside, from the tower in its evaluation mode. Files and URLs
        are read outside, so that no thread waits for another's.
        """
        checks.weights(self.anatomy.tower)
        return Together(
            lambda: exclusive(self.anatomy.blocks[0]),
            lambda: evaluation_mode(self.model),
            lambda: evaluation_mode(self.anatomy.tower, self.anatomy.call_settings),
        )

    def queue(self, images: Images, *options: Any) -> InputQueue:
        """What is to be read for ``images``; ``options`` as of ``inputs.prepare.sources``, from ``size`` on."""
        return sources(images, self.anatomy, self._adapter.transform, self._adapter.unpack, *options)
