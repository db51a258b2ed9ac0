"""Hugging Face transformers: models are recognised by the name of their class.

``FAMILIES`` of the modules below says how a class is described (class name -> (model -> ViTAnatomy)). Their
``transform(anatomy, processor)`` makes ``Adapter.transform`` of a processor: (size or None, fit) -> a
``geometry.Preprocessing``.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from legrad.errors import UnsupportedModelError
from legrad.models.adapter import Adapter
from legrad.models.anatomy import ViTAnatomy
from legrad.models.hf import naflex, text

MODULES = ("image", "naflex", "video", "audio")

# start of a class name -> why models of that kind cannot be explained
_REASONS = {
    **dict.fromkeys(("Swin", "DonutSwin", "MaskFormerSwin"), "attends inside shifted windows and merges its patches"),
    **dict.fromkeys(
        (
            *("ConvNext", "DINOv3ConvNext", "Bit", "ResNet", "RegNet", "EfficientNet", "MobileNet", "HGNetV2"),
            *("PPLCNet", "TextNet", "PoolFormer", "FocalNet", "Align", "SuperPoint"),
        ),
        "is a convolutional network, without attention between patches",
    ),
    **dict.fromkeys(
        ("Cvt", "Hiera", "Levit", "MobileViT", "Pvt", "Segformer", "SwiftFormer", "Dinat", "GLPN", "VitDet"),
        "is hierarchical or attends inside windows: there is no one grid of patches that every block sees",
    ),
    **dict.fromkeys(
        ("Detr", "ConditionalDetr", "DeformableDetr", "DabDetr", "TableTransformer", "DepthPro", "DPT"),
        "is a detector or depth estimator around another backbone; wrap that backbone",
    ),
    **dict.fromkeys(("Perceiver", "ImageGPT"), "is no vision transformer over a grid of patches"),
    **dict.fromkeys(
        ("PeVideo", "PeAudioVideo"),
        "gives every frame one token before sounds and images meet: their joint space has no grid of patches; "
        "its frame tower (the encoder's embedder.vision_model) can be wrapped alone",
    ),
    **dict.fromkeys(
        ("Wav2Vec2", "WavLM", "Hubert", "SEW", "UniSpeech", "Data2VecAudio", "Whisper", "PeAudio"),
        "hears waveforms, but is none of the classifiers built like wav2vec 2.0 and HuBERT, which are supported",
    ),
    **dict.fromkeys(
        ("Cohere2Vision", "Llama4Vision", "MllamaVision", "ShieldGemma2"),
        "is part of a language model, and nothing is scored without that",
    ),
    "VideoPrism": "caps its attention before the softmax and has two encoders in a row, which is not supported",
    "TimmBackbone": "returns feature maps; build the timm model itself",
    "GroupViT": "groups its patches into segments between the stages",
    "Blip2": "reads its images through a Q-Former; wrap its vision_model (Blip2VisionModel) alone",
}


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for any known model of transformers, None for models of other libraries.

    Raises:
        UnsupportedModelError: a model of transformers that is not known, or cannot be explained.
    """
    if not _own_names(type(model)):
        return None  # without the slow import of transformers' models
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    family = find(type(model))
    if family is None:
        raise UnsupportedModelError(f"transformers' {type(model).__name__} {reason(_own_names(type(model))[0])}")
    anatomy = family(model)
    return Adapter(
        model=model,
        anatomy=anatomy,
        encode_text=text.encoder(model) if anatomy.output == "embedding" else None,
        labels=_labels(model.config) if anatomy.output == "logits" else None,
        unpack=naflex.unpacking(model) if set(_own_names(type(model))) & set(naflex.FAMILIES) else None,
        name=f"transformers {type(model).__name__}",
    )


def _modules() -> list[ModuleType]:
    names = [f"{__package__}.{module}" for module in MODULES]
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]


def _own_names(kind: type) -> list[str]:
    """A user's subclass is known by the library's class that it derives from."""
    return [one.__name__ for one in kind.__mro__ if one.__module__.startswith("transformers.")]


def find(kind: type) -> Callable[[Any], ViTAnatomy] | None:
    """What describes the models of a class; None if it is not known."""
    for name in _own_names(kind):
        for module in _modules():
            if name in module.FAMILIES:
                family: Callable[[Any], ViTAnatomy] = module.FAMILIES[name]
                return family
    return None


def not_supported(name: str) -> str:
    """Why a class of transformers cannot be explained, a sentence; "" if it can. Nothing is built."""
    import transformers

    return "" if find(getattr(transformers, name)) else f"transformers' {name} {reason(name)}"


def reason(name: str) -> str:
    """Why a class of transformers is not supported, as the end of a sentence."""
    for start, why in _REASONS.items():
        if name.startswith(start):
            return why
    return (
        "is not a classifier, image-text model or vision tower that we know; wrap its vision tower alone, or describe "
        "it with legrad.wrap(model, anatomy=legrad.ViTAnatomy(...))"
    )


def _labels(config: Any) -> tuple[str, ...] | None:
    """Class names, unless they are the library's placeholders."""
    names = [config.id2label[index] for index in sorted(config.id2label)]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else tuple(names)


def tools(adapter: Adapter, transform: Any, tokenizer: Any) -> tuple[Adapter, Any, Any]:
    """Put the library's processors and tokenizers into an adapter.

    Args:
        adapter: of any model; its anatomy tells what a processor is for.
        transform: anything; processors of transformers are taken.
        tokenizer: anything; tokenizers of transformers are taken.

    Returns:
        The adapter, and the transform and tokenizer, None where they were taken.
    """
    from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(transform, ProcessorMixin):
        tokenizer = tokenizer or getattr(transform, "tokenizer", None)
        names = ("video_processor", "image_processor", "feature_extractor")
        transform = next((getattr(transform, name) for name in names if hasattr(transform, name)), None)
    if isinstance(transform, ImageProcessingMixin | FeatureExtractionMixin):
        adapter = replace(adapter, transform=_transform(adapter.anatomy, transform))
        transform = None
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        adapter = replace(adapter, tokenize=text.tokenizer(adapter.model, tokenizer))
        tokenizer = None
    return adapter, transform, tokenizer


def _transform(anatomy: ViTAnatomy, processor: Any) -> Any:
    kind = {"rows": "image", "frames": "video"}.get(anatomy.axes[0], "audio")
    if type(processor).__name__.startswith("Siglip2ImageProcessor"):
        kind = "naflex"
    module = importlib.import_module(f"{__package__}.{kind}")
    return module.transform(anatomy, processor)


def load(name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Adapter:
    """A repository of the Hugging Face hub (from the cache when offline), or a folder."""
    from legrad.models.hf import loading

    return loading.load(name, device, dtype)


def available() -> list[tuple[str, str]]:
    """The classes whose repositories and folders can be named; there is no list of repositories."""
    names = [name for module in _modules() for name in module.FAMILIES]
    return [(f"hf:REPOSITORY of a {name}", "") for name in sorted(dict.fromkeys(names))]
