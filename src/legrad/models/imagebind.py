"""Models in the structure of ImageBind (Girdhar et al., CVPR 2023): one space for images, sounds and texts.

A model is recognised by its modules; users bring its code and its weights, which are for non-commercial use.
"""

import functools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from legrad.errors import InputError, UnsupportedModelError
from legrad.models import transforms
from legrad.models.adapter import Adapter, AudioEncoder
from legrad.models.anatomy import Readout, ViTAnatomy, published
from legrad.models.openai_clip import CONFIG

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PARTS = ("modality_preprocessors", "modality_trunks", "modality_heads", "modality_postprocessors")
RATE = 16_000  # Hz
CLIPS, SECONDS, STEPS, BINS = 3, 2, 204, 128  # of a sound: number and length of its clips, shape of a spectrogram


class _Tower(nn.Module):
    """The modules that an image passes through, without those of the other modalities."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        for part in _PARTS:
            self.add_module(part, getattr(model, part)["vision"])


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for a model in the structure of ImageBind; None for anything else.

    Raises:
        UnsupportedModelError: its patch embedding or table of positions is not as published.
    """
    dictionaries = [getattr(model, part, None) for part in _PARTS]
    if not all(isinstance(modules, nn.ModuleDict) and "vision" in modules for modules in dictionaries):
        return None
    anatomy = _anatomy(model)

    def encode_text(tokens: Tensor) -> Tensor:
        return _embedding(model, "text", tokens)

    def transform(size: Any, fit: str) -> Any:
        return transforms.transform(CONFIG, size or anatomy.image_size, fit)

    trunks: Any = model.modality_trunks
    return Adapter(
        model=model,
        anatomy=anatomy,
        tokenize=_tokenizer(),
        encode_text=encode_text if "text" in trunks else None,
        transform=transform,
        audio_encoder=AudioEncoder(RATE, functools.partial(_encode_audio, model)) if "audio" in trunks else None,
        name="ImageBind",
    )


def _embedding(model: Any, modality: str, batch: Tensor) -> Tensor:
    """(inputs, features) of one modality, by the model's plain forward."""
    embedding: Tensor = model({modality: batch})[modality]
    return embedding


def _anatomy(model: Any) -> ViTAnatomy:
    """One class token; the blocks take tokens as (tokens, batch, dim). An image is repeated as two frames."""
    tower = _Tower(model)
    stems = [module for module in tower.modules() if isinstance(module, nn.Conv3d)]
    tables = [table for name, table in tower.named_parameters() if name.endswith("pos_embed") and table.ndim == 3]
    side = math.isqrt(tables[0].shape[1] - 1) if tables else 0
    if len(stems) != 1 or len(tables) != 1 or side**2 + 1 != tables[0].shape[1]:
        raise UnsupportedModelError(
            f"{type(model).__name__} looks like ImageBind, but images should pass one Conv3d and one table of "
            f"positions for a class token and a square of patches; found {len(stems)} and "
            f"{', '.join(str(tuple(table.shape)) for table in tables) or 'none'}"
        )
    _, *sides = stems[0].kernel_size
    patch = (sides[0], sides[1])
    head, post = model.modality_heads["vision"], model.modality_postprocessors["vision"]

    def native(tokens: Tensor) -> Tensor:
        embedding: Tensor = post(head(tokens))
        return embedding

    return ViTAnatomy(
        library="imagebind",
        tower=tower,
        run=functools.partial(_embedding, model, "vision"),
        blocks=tuple(model.modality_trunks["vision"].blocks),
        image_size=(side * patch[0], side * patch[1]),
        patch_size=patch,
        num_prefix_tokens=1,
        readouts={"native": Readout(native), "published": Readout(published(native, 1))},
        output="embedding",
        to_tokens=lambda output: output.transpose(0, 1),
        notes=("the sounds' own trunk appends a learned key to its attention, so sounds are targets only",),
    )


def _tokenizer() -> Callable[[Sequence[str]], Tensor] | None:
    """The package's tokenizer if it is imported; any tokenizer of CLIP does the same."""
    data: Any = sys.modules.get("imagebind.data")
    if not hasattr(data, "load_and_transform_text"):
        return None
    return lambda texts: data.load_and_transform_text(list(texts), "cpu")


def _encode_audio(model: Any, waveforms: "Sequence[NDArray[np.float32]]") -> Tensor:
    """Embeddings (waveforms, features): the model scales those of a sound's clips and averages them."""
    batch = torch.stack([spectrograms(waveform) for waveform in waveforms])
    weight = next(model.modality_trunks["audio"].parameters())
    return _embedding(model, "audio", batch.to(weight))


def spectrograms(waveform: "NDArray[np.float32]") -> Tensor:
    """Log-mel spectrograms (clips, 1, bins, steps) of clips that are spread evenly over a sound.

    The published code subtracts the clip's mean first; the extractor subtracts that of every window, so it is left out.

    Args:
        waveform: (samples,) at ``RATE``; of one that is shorter than a clip every clip is the whole.
    """
    extract = _extractor()
    length = SECONDS * RATE
    spare = max(len(waveform) - length, 0)
    clips = []
    for index in range(CLIPS):
        start = index * spare // (CLIPS - 1)
        clip = waveform[start : start + length]
        spectrogram = extract(clip, sampling_rate=RATE, return_tensors="pt")["input_values"]
        clips.append(spectrogram.transpose(1, 2))
    return torch.stack(clips)


@functools.cache
def _extractor() -> Any:
    """Kaldi's log-mel spectrograms, normalised with AudioSet's mean and deviation, which ImageBind has from AST."""
    try:
        from transformers import ASTFeatureExtractor
    except ImportError as error:
        raise InputError("ImageBind hears through spectrograms of transformers: pip install 'legrad[audio]'") from error
    with warnings.catch_warnings():
        # the lowest filters are narrower than a frequency bin
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        return ASTFeatureExtractor(num_mel_bins=BINS, max_length=STEPS, mean=-4.268, std=9.138 / 2)


def available() -> list[tuple[str, str]]:
    """Nothing: build the model with its own package and give it to ``legrad.wrap``."""
    return []
