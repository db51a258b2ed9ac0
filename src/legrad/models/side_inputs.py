"""What goes into a model beside the images: tensors with one row per image, cut along with the images.

A model gets them as keywords of its forward pass, ``anatomy.run(images, **inputs)``; a read-out gets those that its
function has a parameter for: ``Readout(lambda tokens, meta: head(torch.cat([pool(tokens), meta], -1)))``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from legrad.checks import brief, first_line
from legrad.errors import InputError, LeGradError
from legrad.models.anatomy import Readout, ViTAnatomy, readouts_given
from legrad.models.functions import Forward, Head


class SideInputs:
    """The side inputs of a call.

    Args:
        inputs: name -> tensor or array with one row per image; None for none.
        count: how many images there are.
        anatomy: of the model.

    Raises:
        InputError: names that the model does not take or misses, rows that do not fit, or values that are no numbers.
    """

    def __init__(self, inputs: Any, count: int, anatomy: ViTAnatomy) -> None:
        if inputs is not None and not isinstance(inputs, Mapping):
            raise InputError(f"inputs is a dict of names and tensors, inputs={{'meta': meta}}, got {brief(inputs)}")
        _check_names(anatomy, list(inputs or {}))
        self._inputs = {name: _checked(name, value, count) for name, value in (inputs or {}).items()}

    def bound(self, anatomy: ViTAnatomy, rows: Sequence[int]) -> ViTAnatomy:
        """The anatomy with the side inputs of some images; the anatomy itself if there are none."""
        if not self._inputs:
            return anatomy
        indices = list(rows)
        moved = {name: tensor[indices].to(anatomy.device) for name, tensor in self._inputs.items()}
        return _bound(anatomy, moved)


@dataclass(frozen=True, repr=False)
class _AnatomyWithInputs(ViTAnatomy):
    """An anatomy that hands side inputs to its forward pass and read-outs.

    Attributes:
        plain: without them.
        inputs: of the images of a batch.
    """

    plain: ViTAnatomy | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def side_inputs(self) -> tuple[str, ...]:
        """Names of what its forward pass gets beside the images, ascending."""
        return tuple(sorted(self.inputs))

    def for_images(self, indices: Sequence[int]) -> ViTAnatomy:
        """With the side inputs of some of the images."""
        assert self.plain is not None
        return _bound(self.plain, {name: tensor[list(indices)] for name, tensor in self.inputs.items()})


def _bound(anatomy: ViTAnatomy, inputs: Mapping[str, Tensor]) -> ViTAnatomy:
    values: dict[str, Any] = {item.name: getattr(anatomy, item.name) for item in fields(ViTAnatomy)}
    in_dtype = _as_type(inputs, anatomy.dtype)
    # read-outs compute in float32 at least
    in_float = _as_type(inputs, torch.promote_types(anatomy.dtype, torch.float32))
    readouts = readouts_given(anatomy.readouts)
    takes = {name: _takes(readout.function, inputs) for name, readout in readouts.items()}
    if any(takes.values()):  # else those that the anatomy made itself can stay too
        values["readouts"] = {
            name: Readout(_with_rows(readout.function, {key: in_float[key] for key in takes[name]}), readout.normalize)
            for name, readout in readouts.items()
        }
    values["run"] = _with_rows(anatomy.run, in_dtype)
    return _AnatomyWithInputs(**values, plain=anatomy, inputs=inputs)


def _as_type(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floats in a type; indices and the like stay what they are."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def _with_rows(function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The function with its side inputs; a batch of several layers, or of copies of one image, repeats their rows."""
    if not inputs:
        return function

    def call(batch: Tensor) -> Tensor:
        repeats = {name: len(batch) // len(tensor) for name, tensor in inputs.items()}
        rows = {
            name: tensor if repeats[name] == 1 else tensor.repeat(repeats[name], *[1] * (tensor.ndim - 1))
            for name, tensor in inputs.items()
        }
        try:
            return function(batch, **rows)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, LeGradError | torch.OutOfMemoryError) or "memory" in str(error):
                raise
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in rows.items())
            raise InputError(f"the model does not take its inputs {shapes}: {first_line(error)}") from error

    return call


def _checked(name: str, value: Any, count: int) -> Tensor:
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        try:
            value = torch.tensor(value, device="cpu")
        except TypeError as error:
            raise InputError(f"inputs[{name!r}] is a tensor of numbers, got an array of {value.dtype}") from error
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise InputError(f"inputs[{name!r}] is a tensor or array with one row per image, got {brief(value)}")
    if value.ndim == 0 or len(value) != count:
        rows = "no rows" if value.ndim == 0 else f"{len(value)} rows"
        raise InputError(f"inputs[{name!r}] has {rows} for {count} images; give one row per image")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"inputs[{name!r}] holds NaN or infinite values")
    return value.detach().clone() if value.is_inference() else value.detach()


def _check_names(anatomy: ViTAnatomy, names: list[Any]) -> None:
    parameters = _parameters(anatomy.run)
    if parameters is None:
        return
    known = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    open_ended = len(known) < len(parameters)
    unknown = [name for name in names if not isinstance(name, str) or (name not in known and not open_ended)]
    if unknown:
        takes = f"only {', '.join(known)}" if known else "only images"
        raise InputError(
            f"this model takes no input {unknown[0]!r} beside the images, {takes}; an anatomy of your own may: "
            "run=lambda images, meta: ... (docs/explain-your-own-model.md)"
        )
    missing = [name for name in required_inputs(anatomy) if name not in names]
    if missing:
        raise InputError(
            f"this model needs {', '.join(map(repr, missing))} beside the images: "
            f"inputs={{{missing[0]!r}: one row per image}}"
        )


def required_inputs(anatomy: ViTAnatomy) -> list[str]:
    """Names of what the model cannot run without, beside the images."""
    return [
        name
        for name, parameter in (_parameters(anatomy.run) or {}).items()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.default is parameter.empty
    ]


def _takes(function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> list[str]:
    """Which of the inputs a read-out has a parameter for."""
    parameters = _parameters(function) or {}
    return [name for name in inputs if name in parameters]


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """What can be given by name behind the first argument; None if Python does not know."""
    while isinstance(function, Forward | Head):
        function = function.function
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature.parameters.values())
    if parameters and (parameters[0].kind in positional or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL):
        parameters = parameters[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return {parameter.name: parameter for parameter in parameters if parameter.kind in named}
