"""The model under test: maps in the pixels of its input, features of pixels, names as directions of features."""

import hashlib
import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from legrad import capture, geometry
from legrad.errors import FlatMapWarning, InputError, UnsupportedModelError
from legrad.explainer import Explainer
from legrad.inputs import prepare, stack
from legrad.resolving import Resolver
from legrad.targets import Prompts

TEMPLATES = ("a photo of a {}",)
_SAMPLED = 1000  # values of each tensor that enter the fingerprint


def known_methods() -> tuple[str, ...]:
    """Names that ``explain(method=...)`` takes."""
    if importlib.util.find_spec("legrad.methods") is None:
        return ("legrad",)
    return tuple(importlib.import_module("legrad.methods").METHODS)


@dataclass(frozen=True)
class Variant:
    """A method with arguments of its own: ``legrad``, ``legrad:layers=2``, ``legrad:layers=1:readout=native``.

    Attributes:
        method: as in ``explain``.
        arguments: that replace the run's.
    """

    method: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Raises ``InputError`` for an unknown method or argument, with the known ones."""
        method, *parts = text.split(":")
        if method not in known_methods():
            raise InputError(f"no method {method!r}; known: {', '.join(known_methods())}")
        arguments: dict[str, Any] = {}
        for part in parts:
            name, _, value = part.partition("=")
            if name == "layers" and value.isdecimal():
                arguments[name] = int(value)
            elif name == "readout" and value in ("published", "native"):
                arguments[name] = value
            else:
                raise InputError(
                    f"method {text!r}: a variant is METHOD:layers=K or METHOD:readout=published|native, got {part!r}"
                )
        return cls(method, arguments)


class Subject:
    """A model under test, with the settings that all its maps share.

    Args:
        explainer: of a model for still pictures.
        layers: as in ``Explainer.explain``.
        readout: as in ``Explainer.explain``.
        templates: texts with ``{}`` in them, whose embeddings are averaged for a class name.

    Raises:
        UnsupportedModelError: a model for videos or sounds.
    """

    def __init__(
        self,
        explainer: Explainer,
        layers: int | Sequence[int] | None = None,
        readout: str = "auto",
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        if explainer.anatomy.axes != ("rows", "cols"):
            raise UnsupportedModelError("the benchmarks are for models of still pictures")
        self.explainer = explainer
        self._arguments: dict[str, Any] = {"layers": layers, "readout": readout}
        self.templates = tuple(templates)
        self._directions: dict[Any, Tensor] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What a result tells about the model, ready for JSON."""
        return {
            "model": self.explainer.adapter.name or type(self.explainer.model).__name__,
            "weights": fingerprint(self.explainer.model),
            **self._arguments,
            "templates": list(self.templates) if self.zero_shot else None,
            "dtype": str(self.explainer.anatomy.dtype).removeprefix("torch."),
        }

    @property
    def size(self) -> geometry.Size:
        """(height, width) of the model's input, where all is measured."""
        return self.explainer.anatomy.image_size

    @property
    def zero_shot(self) -> bool:
        """Classes are texts; otherwise they are the logits of a classifier."""
        return self.explainer.anatomy.output != "logits"

    def maps(
        self, pictures: Sequence[Image], targets: Sequence[Sequence[Tensor | int]], method: str, fit: str = "squash"
    ) -> list[Tensor]:
        """Where the model looked, for every picture and its own targets.

        Args:
            pictures: RGB.
            targets: for every picture at least one, see ``target``.
            method: a name, or a variant such as ``legrad:layers=2``.
            fit: "squash" or "model", see ``Explainer.explain``.

        Returns:
            For every picture (its targets, height, width), raw relevance in the pixels of the model's input.
        """
        return [
            geometry.place(grid, geometry.Frame(self.size, self.size), self.explainer.anatomy.cells, self.size)
            for grid in self.grids(pictures, targets, method, fit)
        ]

    def grids(
        self, pictures: Sequence[Image], targets: Sequence[Sequence[Tensor | int]], method: str, fit: str = "squash"
    ) -> list[Tensor]:
        """The same on the patch grid, (its targets, rows, cols)."""
        variant = Variant.parse(method)
        found = self.explain(pictures, targets, variant.method, fit=fit, **variant.arguments)
        return [grid[: len(own)] for grid, own in zip(found.relevance, targets, strict=True)]

    def explain(self, pictures: Sequence[Image], targets: Any, method: str, **arguments: Any) -> Any:
        """``Explainer.explain`` with the run's settings; flat maps are counted by whoever asks, not warned of."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FlatMapWarning)
            warnings.filterwarnings("ignore", message=".*hardly depend.*")
            return self.explainer.explain(
                list(pictures),
                [list(own) for own in targets],
                method=method,
                **{"fit": "squash", **self._arguments, **arguments},
            )

    def target(self, name: str | int) -> Tensor | int:
        """A class as ``explain`` takes it: an embedding, or an index of a classifier."""
        direction = self.direction(name)
        return direction if self.zero_shot else int(direction.argmax())

    def direction(self, name: str | int) -> Tensor:
        """(features,): a feature's inner product with it is the class's score. Remembered.

        Raises:
            InputError: a class that the model does not know.
        """
        if name not in self._directions:
            asked = Prompts(name, self.templates) if self.zero_shot and isinstance(name, str) else name
            anatomy, adapter = self.explainer.anatomy, self.explainer.adapter
            with torch.no_grad(), capture.exclusive(anatomy.blocks[0]), capture.plain(self.explainer.model):
                score = Resolver(adapter, anatomy, []).one(asked)
            assert score.direction is not None
            self._directions[name] = score.direction[0].detach()
        return self._directions[name]

    def directions(self, names: Sequence[str | int]) -> Tensor:
        """(names, features)."""
        return torch.stack([self.direction(name) for name in names])

    def inputs(self, pictures: Sequence[Image], fit: str = "squash") -> Tensor:
        """Normalised model inputs (pictures, 3, height, width)."""
        return stack(prepare(list(pictures), self.explainer.adapter, None, fit), self.explainer.anatomy)

    def black(self) -> Tensor:
        """(3, 1, 1): a black pixel in the model's input."""
        transform = self.explainer.adapter.transform
        scale = None if transform is None else geometry.normalisation(transform(None, "squash"))
        if scale is None:
            raise UnsupportedModelError("erasing pixels needs the model's mean and std, which its transform lacks")
        return (-scale[0] / scale[1])[:, None, None].to(self.explainer.anatomy.device, self.explainer.anatomy.dtype)

    def features(self, inputs: Tensor) -> Tensor:
        """(batch, features), float32: L2-normalised embeddings or raw logits, in a plain forward."""
        anatomy = self.explainer.anatomy
        with torch.no_grad(), capture.exclusive(anatomy.blocks[0]), capture.plain(self.explainer.model):
            output = anatomy.run(inputs)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return F.normalize(output, dim=-1) if anatomy.output != "logits" else output

    def synchronize(self) -> None:
        """Wait until the device has finished, before a clock is read."""
        device = self.explainer.anatomy.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def fingerprint(model: torch.nn.Module) -> str:
    """Tells weights apart: a digest of every parameter's and buffer's name, shape and some of its values.

    No sums: their last digits depend on the number of threads.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLED)].double().cpu().contiguous()
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]
