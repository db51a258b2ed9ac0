"""The model under test: maps in the pixels of its input, features and logits of pixels."""

import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from legrad.bench.cache import MapCache
from legrad.bench.classes import TEMPLATES, Classes
from legrad.bench.variants import Variant
from legrad.bench.weights import weights_digest
from legrad.choices import Fit
from legrad.core import state
from legrad.core.layers import resolve_layers
from legrad.errors import FlatMapWarning, InputError, UnsupportedModelError
from legrad.explainer import Explainer
from legrad.inputs import geometry, transforms
from legrad.methods import Method, find, heads
from legrad.models.versions import weights_version
from legrad.results.view import ImageView
from legrad.targets.kinds import Audio


class ModelUnderTest:
    """A model under test, with the settings that all its maps share.

    Args:
        explainer: of a model for still images.
        layers: as in ``Explainer.explain``, for methods that have layers to choose from.
        readout: as in ``Explainer.explain``, for methods that read layers out.
        labels, names, templates: see ``Classes``.
        cache: shared by all runs of a study, which have the same explainer, layers and read-out.
        size: side of the model's input, if it is not the model's own.

    Raises:
        UnsupportedModelError: a model for videos or sounds, or whose input is not square.
        InputError: layers or a read-out that the model does not have, or a size that it does not take.
    """

    def __init__(
        self,
        explainer: Explainer,
        layers: int | Sequence[int] | None = None,
        readout: str = "auto",
        labels: Sequence[str] = (),
        names: Mapping[str, str] | None = None,
        templates: Sequence[str] = TEMPLATES,
        cache: MapCache | None = None,
        size: int | None = None,
    ) -> None:
        self.check(explainer)
        self.explainer = explainer if size is None else _resized(explainer, size)
        self._size = {} if size is None else {"size": size}
        problem = self._missing({"layers": layers, "readout": readout})
        if problem:
            raise InputError(problem)
        self._arguments: dict[str, Any] = {"layers": layers, "readout": readout}
        self.classes = Classes(self.explainer, labels, names, templates)
        self._clips: dict[tuple[str, ...], Tensor] = {}
        self._cache = cache

    @staticmethod
    def check(explainer: Explainer) -> None:
        """Only models of still, square images."""
        if explainer.anatomy.axes != ("rows", "cols"):
            raise UnsupportedModelError(
                "this benchmark is for models of still images; of sounds there is `legrad bench perturbation`"
            )
        height, width = explainer.anatomy.image_size
        if height != width:
            raise UnsupportedModelError(f"the protocols are for square inputs, this model takes {height} x {width}")

    @property
    def settings(self) -> dict[str, Any]:
        """The facts about the model in a result, ready for JSON."""
        return {
            "model": self.explainer.adapter.name or type(self.explainer.model).__name__,
            "weights": weights_digest(self.explainer.model),
            **self._arguments,
            **self._size,
            "templates": list(self.classes.templates) if self.classes.zero_shot else None,
            "names": dict(self.classes.names),
            "classes": _digest("\n".join(self.classes.labels).encode()),
            "dtype": str(self.explainer.anatomy.dtype).removeprefix("torch."),
        }

    @property
    def size(self) -> int:
        """Side of the model's input, where all is measured."""
        return self.explainer.anatomy.image_size[0]

    def maps(
        self, images: Sequence[Image], targets: Sequence[Sequence[Tensor | int]], method: str, fit: Fit = "squash"
    ) -> list[Tensor]:
        """Where the model looked, for every image and its own targets.

        Args:
            images: RGB.
            targets: for every image at least one, see ``target``.
            method: a name, or a variant such as ``legrad:layers=2``.
            fit: "squash" or "model", see ``Explainer.explain``.

        Returns:
            For every image (its targets, height, width), raw relevance in the pixels of the model's input.
        """
        anatomy, variant = self.explainer.anatomy, Variant.parse(method)
        size = anatomy.image_size
        grids, _ = self._evidence(images, targets, variant, fit)
        if not variant.pixels:
            return [geometry.place(grid, geometry.Placement(size, size), anatomy.patch_grid, size) for grid in grids]
        steps = {"scale": None, **dict(variant.pixels)}
        return [self._view(image, fit).saliency(grid, **steps) for image, grid in zip(images, grids, strict=True)]

    def _view(self, image: Image, fit: Fit) -> ImageView:
        """What a user's explanation has of an image, in the pixels of the model's input."""
        anatomy = self.explainer.anatomy
        if anatomy.axes != ("rows", "cols"):
            raise UnsupportedModelError("upsampling and scale are measured on images")
        pixels = self.pixels([image], fit)[0].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        placement = geometry.Placement(anatomy.image_size, anatomy.image_size)
        return ImageView(lambda: pixels, placement, anatomy.patch_grid, anatomy.axes, geometry.Timing(), ())

    def grids(
        self, images: Sequence[Image], targets: Sequence[Sequence[Tensor | int]], method: str, fit: Fit = "squash"
    ) -> list[Tensor]:
        """The same on the patch grid, (its targets, rows, cols)."""
        return self.evidence(images, targets, method, fit)[0]

    def evidence(
        self, images: Sequence[Image], targets: Sequence[Sequence[Tensor | int]], method: str, fit: Fit = "squash"
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Maps as ``grids`` has them, and the model's own scores (its targets,) of every image."""
        return self._evidence(images, targets, Variant.parse(method).on_patches(), fit)

    def _evidence(
        self, images: Sequence[Image], targets: Sequence[Sequence[Tensor | int]], variant: Variant, fit: Fit
    ) -> tuple[list[Tensor], list[Tensor]]:
        depth, kind = len(self.explainer.anatomy.blocks), find(variant.method)
        self._check(variant)
        # one pass gives the maps of all layers, whose means are the maps of any number of them
        from_all_layers = kind.per_layer and isinstance(variant.method, str) and self._cache is not None
        last_layers = variant.arguments.get("layers") if from_all_layers else None
        arguments = variant.arguments
        if last_layers is not None:
            arguments = {**arguments, "layers": depth, "keep_layers": True}

        def compute(batch: Sequence[Image], targets: Sequence[Sequence[Tensor | int]]) -> list[tuple[Tensor, Tensor]]:
            explanation = self.explain(batch, targets, variant.method, fit=fit, **arguments)
            maps = explanation.relevance if last_layers is None else explanation.layer_relevance
            # rows are as long as the longest list of targets
            return [
                (relevance[: len(row)], scores[: len(row)])
                for relevance, scores, row in zip(maps, explanation.scores, targets, strict=True)
            ]

        if self._cache is None:
            rows: Sequence[tuple[Tensor, ...]] = compute(images, targets)
        else:
            what = (kind.name, fit, *sorted(arguments.items()))
            rows = self._cache(compute, images, targets, what, self._state)
        maps, scores = map(list, zip(*rows, strict=True))
        if last_layers is not None:
            blocks = kind.blocks(last_layers, depth)
            maps = [kind.merge(layers[:, blocks].unbind(1)) for layers in maps]
        return maps, scores

    @property
    def _state(self) -> tuple[tuple[int, int], ...]:
        """Changes with the weights, see ``models.versions``."""
        return weights_version(self.explainer.anatomy.tower)

    def explain(self, images: Sequence[Image] | Tensor, targets: Any, method: str | Method, **arguments: Any) -> Any:
        """``Explainer.explain`` with the run's settings; flat maps are counted by the benchmarks, without a warning.

        ``images`` may be what ``inputs`` returns. Layers and read-out of the run are for the methods that can use
        them; ``arguments`` have to be usable.

        Raises:
            UnsupportedModelError: the method cannot use ``arguments``.
        """
        prepared = isinstance(images, Tensor)
        shared = {name: value for name, value in self._arguments.items() if not self._refused(method, {name: value})}
        self._check(Variant(method, arguments))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FlatMapWarning)
            warnings.filterwarnings("ignore", message=".*hardly depend.*")
            return self.explainer.explain(
                images if prepared else list(images),
                [list(row) for row in targets],
                method=method,
                **{**({} if prepared else {"fit": "squash"}), **shared, **arguments},
            )

    def _check(self, variant: Variant) -> None:
        refused = self._refused(variant.method, variant.arguments) or self._missing(variant.arguments)
        if not refused and variant.heads and max(variant.heads) >= self._heads:
            refused = f"no head {max(variant.heads)}: the explained attention has {self._heads} heads"
        if refused:
            raise UnsupportedModelError(refused)

    def _missing(self, arguments: Mapping[str, Any]) -> str:
        """Layers or a read-out that no method finds in this model, or ""."""
        anatomy, readout = self.explainer.anatomy, arguments.get("readout", "auto")
        if readout not in ("auto", *anatomy.readouts):
            return f"this model has no {readout} read-out, only {', '.join(anatomy.readouts)}"
        try:
            resolve_layers(arguments.get("layers"), len(anatomy.blocks))
        except InputError as error:
            return str(error)
        return ""

    @functools.cached_property
    def _heads(self) -> int:
        """Number of heads; ``UnsupportedModelError`` if they cannot be separated."""
        return heads.num_heads(self.explainer.anatomy)

    def _refused(self, method: str | Method, arguments: Mapping[str, Any]) -> str:
        """Why a method cannot use arguments, or ""."""
        settings: dict[str, Any] = {"layers": None, "readout": "auto", "null_target": None, "keep_layers": False}
        settings.update((name, arguments[name]) for name in settings if name in arguments)
        try:
            find(method).check(self.explainer.anatomy, **settings)
        except InputError as error:
            return str(error)
        return ""

    def answers(self, images: Sequence[Image], fit: Fit = "squash") -> Tensor:
        """``Classes.logits`` of whole images, (images, classes), on the CPU."""

        def compute(batch: Sequence[Image], _: object) -> list[tuple[Tensor]]:
            return [(row[None],) for row in self.classes.logits(self.features(self.inputs(batch, fit))).cpu()]

        if self._cache is None:
            rows: Sequence[tuple[Tensor, ...]] = compute(images, None)
        else:
            rows = self._cache(
                compute, images, [[0]] * len(images), ("answers", fit, self.classes.choices), self._state
            )
        return torch.cat([row for (row,) in rows])

    # -- sounds -------------------------------------------------------------------------------------------------------

    @property
    def hears(self) -> bool:
        """Whether sounds can be targets."""
        return self.explainer.adapter.audio_encoder is not None and self.classes.zero_shot

    def heard(self, key: tuple[str, ...], clip: Callable[[], Audio]) -> Tensor:
        """(features,): the direction of a clip; ``key`` says which, and the clip is asked for once.

        Raises:
            InputError: a clip that cannot be heard, or a model that does not hear.
        """
        if key not in self._clips:
            self._clips[key] = self.explainer.embed(clip()).embeddings[0].detach()
        return self._clips[key]

    # -- pixels -------------------------------------------------------------------------------------------------------

    def inputs(self, images: Sequence[Image], fit: Fit = "squash") -> Tensor:
        """Normalised model inputs (images, 3, height, width)."""
        anatomy = self.explainer.anatomy
        return self.explainer.prepare(list(images), fit=fit).tensor.to(anatomy.device, anatomy.dtype)

    @functools.cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and std (3, 1, 1) of the model's input."""
        transform, anatomy = self.explainer.adapter.transform, self.explainer.anatomy
        scale = None if transform is None else transforms.normalisation(transform(None, "squash"))
        if scale is None:
            raise UnsupportedModelError("erasing pixels needs the model's mean and std, which its transform lacks")
        mean, std = (values[:, None, None].to(anatomy.device, anatomy.dtype) for values in scale)
        return mean, std

    def pixels(self, images: Sequence[Image], fit: Fit = "squash") -> Tensor:
        """Model inputs before mean and std, (images, 3, size, size) in [0, 1]."""
        return self.inputs(images, fit) * self._scale[1] + self._scale[0]

    def extents(self, images: Sequence[Image], patch: int = 1) -> list[tuple[int, int]]:
        """(rows, cols) from the upper left corner of each input that can be erased: all of an image."""
        return [(self.size, self.size)] * len(images)

    def seen(self, pixels: Tensor) -> Tensor:
        """``features`` of pixels in [0, 1]."""
        return self.features((pixels - self._scale[0]) / self._scale[1])

    def features(self, inputs: Tensor) -> Tensor:
        """(batch, features), float32: L2-normalised embeddings or raw logits, in a plain forward."""
        return self.explainer.predict(inputs).to(inputs.device)

    def forward(self, inputs: Tensor) -> None:
        """The model's own pass with nothing around it, for clocks."""
        with torch.inference_mode():
            self.explainer.anatomy.run(inputs)

    def synchronize(self) -> None:
        """Wait until the device has finished, before a clock is read."""
        device = self.explainer.anatomy.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def _resized(explainer: Explainer, size: int) -> Explainer:
    """The same model for inputs of size x size pixels, as ``Explainer.explain`` makes it for ``size=``."""
    adapter, sides = explainer.adapter, geometry.as_size(size)
    transform = adapter.transform
    # the copy for another size is made of the tower in its plain state
    with (
        state.evaluation_mode(explainer.model),
        state.evaluation_mode(explainer.anatomy.tower, explainer.anatomy.call_settings),
    ):
        anatomy = adapter.anatomy.at(sides)
    resized = None if transform is None else lambda size, fit: transform(size or sides, fit)
    return Explainer(replace(adapter, anatomy=anatomy, transform=resized))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
