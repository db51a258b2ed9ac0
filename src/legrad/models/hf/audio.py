"""Audio transformers of transformers.

AST takes a spectrogram, (batch, time, frequency); wav2vec 2.0 and its like take the waveform, (batch, samples).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from legrad.errors import InputError, UnsupportedModelError
from legrad.inputs.geometry import Size
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.checks import holds_matrix
from legrad.models.hf.family import LIBRARY, first, output_settings, sdpa_settings

_TOKENS = 50  # of the waveform, about a second, that an anatomy is described with; any other length works too


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

    def at_size(other: Size) -> ViTAnatomy:
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
        readouts={"native": Readout(native), "published": Readout(published(native, 2))},
        output="logits" if holds_matrix(getattr(model, "classifier", None)) else "feature",
        at_size=at_size,
        call_settings=(*sdpa_settings(model), *output_settings(model)),
        notes=("the published read-out averages all patches, also those of the padding behind a short sound",),
    )


def waveform(model: Any) -> ViTAnatomy:
    """wav2vec 2.0 and HuBERT: tokens of a convolution along the waveform, one row of them; their mean is classified."""
    trunk, config = model.base_model, model.config
    name = type(model).__name__
    if config.use_weighted_layer_sum:
        raise UnsupportedModelError(
            f"{name} with use_weighted_layer_sum mixes the tokens of all blocks into its answer, which is not supported"
        )
    stride, patch = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        patch += (kernel - 1) * stride
        stride *= step

    def native(tokens: Tensor) -> Tensor:
        if getattr(config, "do_stable_layer_norm", False):
            tokens = trunk.encoder.layer_norm(tokens)
        logits: Tensor = model.classifier(model.projector(tokens).mean(1))
        return logits

    def run(batch: Tensor) -> Tensor:
        logits: Tensor = model(input_values=batch, return_dict=True).logits
        return logits

    def of_length(samples: int) -> ViTAnatomy:
        return ViTAnatomy(
            library=LIBRARY,
            tower=model,
            run=run,
            blocks=tuple(trunk.encoder.layers),
            image_size=(1, samples),
            patch_size=(1, patch),
            stride=(1, stride),
            grid=(1, (samples - patch) // stride + 1),
            axes=("frequency", "time"),
            shape=(samples,),
            num_prefix_tokens=0,
            readouts={"native": Readout(native), "published": Readout(published(native, 0))},
            default_readout="native",
            output="logits" if holds_matrix(model.classifier) else "feature",
            to_tokens=first,
            at_size=lambda size: of_length(size[1]),
            call_settings=(*sdpa_settings(model), *output_settings(model)),
            notes=("a waveform's tokens stand in one row: maps say when, not at which frequencies",),
        )

    return of_length(patch + (_TOKENS - 1) * stride)


def transform(anatomy: ViTAnatomy, extractor: Any) -> Callable[[Size | None, str], Any]:
    """``Adapter.transform`` of a feature extractor: the extractor, which ``inputs.spectrograms.features`` calls."""

    def make_transform(size: Size | None, fit: str) -> Any:
        if size is not None or fit != "model":
            raise InputError(f"sounds take neither size nor fit, got size={size}, fit={fit!r}")
        return extractor

    return make_transform


# class -> the function that describes its models
FAMILIES: dict[str, Callable[[Any], ViTAnatomy]] = {
    "ASTForAudioClassification": ast,
    "ASTModel": ast,
    "Wav2Vec2ForSequenceClassification": waveform,
    "HubertForSequenceClassification": waveform,
    "UniSpeechForSequenceClassification": waveform,
    "UniSpeechSatForSequenceClassification": waveform,
    "Data2VecAudioForSequenceClassification": waveform,
}
