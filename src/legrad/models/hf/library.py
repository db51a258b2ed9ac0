"""Hugging Face transformers: models are recognised by the name of their class.

Each module of ``MODULES`` has ``FAMILIES``, class name -> (model -> ViTAnatomy), and ``transform(anatomy, processor)``,
which makes ``Adapter.transform`` of a processor: (size or None, fit) -> an ``inputs.transforms.Preprocessing``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from legrad.errors import UnsupportedModelError
from legrad.models.adapter import Adapter
from legrad.models.anatomy import ViTAnatomy
from legrad.models.hf import audio, image, naflex, text, video

MODULES = (image, naflex, video, audio)

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
        "is a detector or depth estimator around another backbone",
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
    "Blip2": "reads its images through a Q-Former",
}


def adapt(model: nn.Module) -> Adapter | None:
    """An adapter for any known model of transformers, None for models of other libraries.

    Raises:
        UnsupportedModelError: a model of transformers that no family describes, or that cannot be explained.
    """
    if not _class_names(type(model)):
        return None  # without the slow import of transformers' models
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    family = find(type(model))
    if family is None:
        raise UnsupportedModelError(f"transformers' {type(model).__name__} {reason(_class_names(type(model))[0])}")
    anatomy = family(model)
    return Adapter(
        model=model,
        anatomy=anatomy,
        encode_text=text.encoder(model) if anatomy.output == "embedding" else None,
        labels=_labels(model.config) if anatomy.output == "logits" else None,
        unpack=naflex.unpacking(model) if set(_class_names(type(model))) & set(naflex.FAMILIES) else None,
        name=f"transformers {type(model).__name__}",
    )


def _class_names(kind: type) -> list[str]:
    """Names of a class and its bases, as far as they are of transformers: users' subclasses have names of their own."""
    return [base.__name__ for base in kind.__mro__ if base.__module__.startswith("transformers.")]


def find(kind: type) -> Callable[[Any], ViTAnatomy] | None:
    """The function that describes models of a class; None if there is none."""
    for name in _class_names(kind):
        for module in MODULES:
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
        "is not a classifier, image-text model or vision tower that we know; describe it with legrad.wrap(model, "
        "anatomy=legrad.ViTAnatomy(...))"
    )


def _labels(config: Any) -> tuple[str, ...] | None:
    """Names of a classifier's classes; None for the library's placeholders."""
    names = [config.id2label[index] for index in sorted(config.id2label)]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else tuple(names)


def tools(adapter: Adapter, transform: Any, tokenizer: Any) -> tuple[Adapter, Any, Any]:
    """Put the library's processors and tokenizers into an adapter.

    Args:
        adapter: of any model; its anatomy's axes say what a processor is for.
        transform: anything; only processors of transformers are put in.
        tokenizer: anything; only tokenizers of transformers are put in.

    Returns:
        The adapter, and the transform and tokenizer, None where they were put in.
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
    if type(processor).__name__.startswith("Siglip2ImageProcessor"):
        return naflex.transform(anatomy, processor)
    by_axis = {"rows": image.transform, "frames": video.transform, "frequency": audio.transform}
    return by_axis[anatomy.axes[0]](anatomy, processor)


def available() -> list[tuple[str, str]]:
    """The classes whose repositories and folders can be named; there is no list of repositories."""
    names = [name for module in MODULES for name in module.FAMILIES]
    return [(f"hf:REPOSITORY of a {name}", "") for name in sorted(dict.fromkeys(names))]
