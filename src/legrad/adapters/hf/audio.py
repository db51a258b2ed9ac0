"""Audio transformers of transformers: AST. Input is a spectrogram, (batch, time, frequency)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from legrad.adapters.hf.common import LIBRARY, answers, switches
from legrad.adapters.sizes import Size
from legrad.anatomy import Readout, ViTAnatomy
from legrad.errors import InputError


def ast(model: Any) -> ViTAnatomy:
    """AST: overlapping patches, frequency first; the mean of class and distillation token goes to the head."""
    trunk, config = getattr(model, "audio_spectrogram_transformer", model), model.config
    size = (config.num_mel_bins, config.max_length)

    def native(tokens: Tensor) -> Tensor:
        tokens = trunk.layernorm(tokens)
        feature = (tokens[:, 0] + tokens[:, 1]) / 2
        return feature if trunk is model else model.classifier(feature)

    def run(batch: Tensor) -> Tensor:
        output = model(input_values=batch, return_dict=True)
        return output.pooler_output if trunk is model else output.logits

    def resized(other: Size) -> ViTAnatomy:
        raise InputError(
            f"{type(model).__name__} takes spectrograms (batch, time {size[1]}, frequency {size[0]}) only, got (batch, "
            f"time {other[1]}, frequency {other[0]})"
        )

    return ViTAnatomy(
        library=LIBRARY,
        tower=model,
        run=run,
        blocks=tuple(trunk.layers),
        image_size=size,
        patch_size=(config.patch_size, config.patch_size),
        stride=(config.frequency_stride, config.time_stride),
        grid=trunk.embeddings.get_shape(config),
        axes=("frequency", "time"),
        shape=(config.max_length, config.num_mel_bins),
        num_prefix_tokens=2,
        readouts={"native": Readout(native)},
        output="feature" if trunk is model else "logits",
        resized=resized,
        switches=(*switches(model), *answers(model)),
        notes=("the published read-out averages all patches, also those of the padding behind a short sound",),
    )


def transform(anatomy: ViTAnatomy, extractor: Any) -> Callable[[Size | None, str], Any]:
    """``Adapter.transform`` of a feature extractor: itself, ``sounds.features`` calls it."""

    def chosen(size: Size | None, fit: str) -> Any:
        if size is not None or fit != "model":
            raise InputError(f"sounds take neither size nor fit, got size={size}, fit={fit!r}")
        return extractor

    return chosen


# class -> its anatomy
FAMILIES: dict[str, Callable[[Any], ViTAnatomy]] = {"ASTForAudioClassification": ast, "ASTModel": ast}
