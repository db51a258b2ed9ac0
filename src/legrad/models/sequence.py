"""A known model with layers behind it, in an ``nn.Sequential``: a linear probe, a new classifier."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from legrad.inputs.geometry import Size
from legrad.models.adapter import Adapter
from legrad.models.anatomy import Readout, ViTAnatomy
from legrad.models.checks import holds_matrix


def adapt(model: nn.Sequential, first: Adapter) -> Adapter:
    """The adapter of a sequence, from that of its first module: the layers behind it belong to the head."""
    layers = list(model.children())[1:]

    def behind(feature: Tensor) -> Tensor:
        for layer in layers:
            feature = layer(feature)
        return feature

    maps_features = any(map(holds_matrix, layers))
    kept = {} if not maps_features else {"labels": None, "encode_text": None, "audio_encoder": None}
    return replace(
        first,
        model=model,
        anatomy=_with_head(first.anatomy, model, behind, maps_features),
        name=f"{first.name} with a head",
        candidates=tuple(_with_head(candidate, model, behind, maps_features) for candidate in first.candidates),
        **kept,
    )


def _with_head(
    base: ViTAnatomy, model: nn.Module, behind: Callable[[Tensor], Tensor], maps_features: bool
) -> ViTAnatomy:
    def at_size(size: Size) -> ViTAnatomy:
        return _with_head(base.at(size), model, behind, maps_features)

    def composed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda tensor: behind(function(tensor))

    named_layers = [name for name in base.readouts if not base.is_made(name)]
    return replace(
        base,
        tower=model,
        run=composed(base.run),
        readouts={name: Readout(composed(base.readouts[name].function)) for name in named_layers},
        output="logits" if maps_features else base.output,
        at_size=None if base.at_size is None else at_size,
    )
