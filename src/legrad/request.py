"""Arguments of ``load``, ``wrap`` and ``explain``, checked; what one call of ``explain`` asks for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from legrad import methods
from legrad.checks import brief, check_count, check_number, check_switch
from legrad.choices import FITS, READOUTS, check_choice
from legrad.core.memory import check_memory
from legrad.core.score import ResolvedTarget
from legrad.errors import InputError
from legrad.inputs import depth
from legrad.inputs.originals import KEPT_BYTES
from legrad.inputs.readers import Input
from legrad.models.adapter import AudioEncoder
from legrad.models.anatomy import ViTAnatomy
from legrad.versions import version


def check_device(device: Any) -> None:
    """Raise ``InputError`` unless it is a device or a text."""
    if not isinstance(device, str | torch.device):
        raise InputError(f"device is a name such as 'cpu' or 'cuda:1', or a torch.device, got {brief(device)}")


def check_parts(model: Any, transform: Any, tokenizer: Any, anatomy: Any, audio_encoder: Any) -> None:
    """Raise ``InputError`` for arguments of ``wrap`` of a wrong type."""
    for name, value, kind in (("anatomy", anatomy, ViTAnatomy), ("audio_encoder", audio_encoder, AudioEncoder)):
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} is a legrad.{kind.__name__}, got {brief(value)}")
    if audio_encoder is not None:
        check_count("rate of legrad.AudioEncoder", audio_encoder.rate)
        if not callable(audio_encoder.encode):
            raise InputError(f"encode of legrad.AudioEncoder is a function, got {brief(audio_encoder.encode)}")
        if audio_encoder.tower is not None and not isinstance(audio_encoder.tower, nn.Module):
            raise InputError(f"tower of legrad.AudioEncoder is a torch.nn.Module, got {brief(audio_encoder.tower)}")
        check_number("shortest of legrad.AudioEncoder", audio_encoder.shortest, 0, math.inf)
        if audio_encoder.longest is not None:
            check_number("longest of legrad.AudioEncoder", audio_encoder.longest, 0, math.inf)
    for name, function in (("transform", transform), ("tokenizer", tokenizer)):
        if function is not None and not callable(function):
            raise InputError(f"{name} is a function or a processor of transformers, got {brief(function)}")
    if anatomy is not None and not isinstance(model, nn.Module):
        raise InputError(f"model is a torch.nn.Module, got {brief(model)}")


_WINDOW = 256  # images that are ready at once, at most


@dataclass(frozen=True)
class Request:
    """The checked arguments of a call, beside its images and targets.

    Attributes:
        method: how to explain.
        layers: ascending block indices.
        readout: a key of ``ViTAnatomy.readouts``.
        fit: how an image gets to the input size.
        null_threshold: of the null target, in [0, 1].
        keep_layers: keep the relevance of every layer too.
        memory: bytes, or "auto".
        value_range: values of images that become black and white; None for what files declare.
    """

    method: methods.Method
    layers: list[int]
    readout: str
    fit: str
    null_threshold: float
    keep_layers: bool
    memory: Literal["auto"] | int
    value_range: tuple[float, float] | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of originals that are kept in memory; others are read again when they are shown."""
        return KEPT_BYTES if self.memory == "auto" else self.memory // 4

    def window(self, anatomy: ViTAnatomy) -> int:
        """Images that are ready at once; as many more are being read meanwhile."""
        per_image = math.prod(anatomy.shape) * torch.float32.itemsize
        return max(1, min(_WINDOW, self.kept_bytes // (2 * per_image)))

    def settings(self, model: str, anatomy: ViTAnatomy, first: Input, null: ResolvedTarget | None) -> dict[str, Any]:
        """What made a result, ready for JSON."""
        return {
            "model": model,
            "method": self.method.name,
            "layers": list(self.layers),
            "readout": self.readout if self.method.readout else None,
            "fit": self.fit,
            "input_size": list(first.placement.input),
            "null_target": None if null is None else null.label_of(0),
            "null_threshold": self.null_threshold,
            **({} if self.value_range is None else {"value_range": list(self.value_range)}),
            "device": str(anatomy.device),
            "dtype": str(anatomy.dtype).removeprefix("torch."),
            "versions": {name: version(name) or "unknown" for name in ("legrad", "torch", anatomy.library)},
        }


def checked_request(
    anatomy: ViTAnatomy,
    layers: int | Sequence[int] | None,
    readout: str,
    method: str | methods.Method,
    fit: str,
    null_target: Any,
    null_threshold: float,
    keep_layers: bool,
    memory: Literal["auto"] | int,
    value_range: tuple[float, float] | None,
) -> Request:
    """The arguments of ``Explainer.explain``, checked.

    Args:
        anatomy: of the model's own size.
        layers, readout, method, fit, null_target, null_threshold, keep_layers, memory, value_range: as of
            ``Explainer.explain``.

    Raises:
        InputError: an argument that cannot be used.
    """
    check_choice("readout", readout, READOUTS)
    check_choice("fit", fit, FITS)
    memory = check_memory(memory)
    null_threshold = check_number("null_threshold", null_threshold, 0, 1)
    keep_layers = check_switch("keep_layers", keep_layers)
    kind = methods.find(method)
    kind.check(anatomy, layers, readout, null_target, keep_layers)
    blocks = kind.blocks(layers, len(anatomy.blocks))
    default_readout = "native" if kind.native else str(anatomy.default_readout)
    readout_name = default_readout if readout == "auto" else readout
    if readout_name not in anatomy.readouts:
        raise InputError(f"this model has no {readout_name} read-out, only {', '.join(anatomy.readouts)}")
    return Request(kind, blocks, readout_name, fit, null_threshold, keep_layers, memory, depth.checked(value_range))
