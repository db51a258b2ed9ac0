"""Tiny random image models of transformers: every class of its image maps, and some that no map names."""

from typing import Any

import torch
from torch import nn

from helpers.tiny import randomised

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 16,
}
LABELS = {"num_labels": 5}
DUAL = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 24}
_NAFLEX = {**{key: value for key, value in VISION.items() if key != "image_size"}, "num_patches": 16}
_BEIT = {**VISION, "use_relative_position_bias": True, "layer_scale_init_value": 0.3}

# class -> (configuration class, arguments)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIPModel": ("CLIPConfig", DUAL),
    "CLIPVisionModel": ("CLIPVisionConfig", VISION),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {**VISION, "projection_dim": 24}),
    "CLIPForImageClassification": ("CLIPConfig", {**DUAL, **LABELS}),
    "AltCLIPModel": ("AltCLIPConfig", {**DUAL, "text_config": {**TEXT, "project_dim": 24, "pad_token_id": 0}}),
    "AltCLIPVisionModel": ("AltCLIPVisionConfig", VISION),
    "ChineseCLIPModel": ("ChineseCLIPConfig", DUAL),
    "ChineseCLIPVisionModel": ("ChineseCLIPVisionConfig", VISION),
    "MetaClip2Model": ("MetaClip2Config", {**DUAL, "text_config": {**TEXT, "eos_token_id": 63}}),
    "MetaClip2VisionModel": ("MetaClip2VisionConfig", VISION),
    "MetaClip2VisionModelWithProjection": ("MetaClip2VisionConfig", {**VISION, "projection_dim": 24}),
    "MetaClip2ForImageClassification": ("MetaClip2Config", {**DUAL, **LABELS}),
    "CLIPSegModel": ("CLIPSegConfig", DUAL),
    "CLIPSegVisionModel": ("CLIPSegVisionConfig", VISION),
    "CLIPSegForImageSegmentation": (
        "CLIPSegConfig",
        {**DUAL, "extract_layers": [0, 1, 2], "reduce_dim": 16, "decoder_intermediate_size": 32},
    ),
    "SiglipModel": ("SiglipConfig", {"vision_config": VISION, "text_config": {**TEXT, "projection_size": 32}}),
    "SiglipVisionModel": ("SiglipVisionConfig", VISION),
    "SiglipVisionModel headless": ("SiglipVisionConfig", {**VISION, "vision_use_head": False}),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": VISION, **LABELS}),
    "Siglip2Model": ("Siglip2Config", {"vision_config": _NAFLEX, "text_config": {**TEXT, "projection_size": 32}}),
    "Siglip2VisionModel": ("Siglip2VisionConfig", _NAFLEX),
    "Siglip2VisionModel headless": ("Siglip2VisionConfig", {**_NAFLEX, "vision_use_head": False}),
    "Siglip2ForImageClassification": ("Siglip2Config", {"vision_config": _NAFLEX, **LABELS}),
    "Aimv2Model": ("Aimv2Config", {**DUAL, "vision_config": {**VISION, "use_head": True, "qkv_bias": True}}),
    "Aimv2VisionModel": ("Aimv2VisionConfig", {**VISION, "use_head": True, "is_native": True}),
    "Aimv2VisionModel headless": ("Aimv2VisionConfig", {**VISION, "use_head": False}),
    "BlipModel": ("BlipConfig", {**DUAL, "image_text_hidden_size": 24}),
    "BlipVisionModel": ("BlipVisionConfig", VISION),
    "BlipForImageTextRetrieval": ("BlipConfig", {**DUAL, "image_text_hidden_size": 24}),
    "Blip2VisionModel": ("Blip2VisionConfig", {**VISION, "qkv_bias": True}),
    "FlavaModel": (
        "FlavaConfig",
        {
            "image_config": VISION,
            "text_config": TEXT,
            "multimodal_config": {
                key: TEXT[key]
                for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
            },
            "projection_dim": 24,
        },
    ),
    "FlavaImageModel": ("FlavaImageConfig", VISION),
    "Tipsv2Model": (
        "Tipsv2Config",
        {
            "vision_config": {**VISION, "num_register_tokens": 1},
            "text_config": {**TEXT, "num_attention_heads": 2},
        },
    ),
    "Tipsv2VisionModel": ("Tipsv2VisionConfig", {**VISION, "num_register_tokens": 2}),
    "Owlv2Model": ("Owlv2Config", DUAL),
    "Owlv2VisionModel": ("Owlv2VisionConfig", VISION),
    "Owlv2ForObjectDetection": ("Owlv2Config", DUAL),
    "OwlViTModel": ("OwlViTConfig", DUAL),
    "OwlViTVisionModel": ("OwlViTVisionConfig", VISION),
    "OwlViTForObjectDetection": ("OwlViTConfig", DUAL),
    "MLCDVisionModel": ("MLCDVisionConfig", VISION),
    "ViTModel": ("ViTConfig", VISION),
    "ViTForImageClassification": ("ViTConfig", {**VISION, **LABELS}),
    "ViTMSNModel": ("ViTMSNConfig", VISION),
    "ViTMSNForImageClassification": ("ViTMSNConfig", {**VISION, **LABELS}),
    "ViTMAEModel": ("ViTMAEConfig", VISION),
    "DeiTModel": ("DeiTConfig", VISION),
    "DeiTForImageClassification": ("DeiTConfig", {**VISION, **LABELS}),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {**VISION, **LABELS}),
    "Dinov2Model": ("Dinov2Config", VISION),
    "Dinov2ForImageClassification": ("Dinov2Config", {**VISION, **LABELS}),
    "Dinov2ForImageClassification swiglu": ("Dinov2Config", {**VISION, **LABELS, "use_swiglu_ffn": True}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {**VISION, "num_register_tokens": 3}),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        {**VISION, **LABELS, "num_register_tokens": 3},
    ),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**VISION, "num_register_tokens": 4}),
    "Sapiens2Model": (
        "Sapiens2Config",
        {**VISION, "num_attention_heads": 4, "num_key_value_heads": 2, "num_register_tokens": 2},
    ),
    "BeitModel": ("BeitConfig", _BEIT),
    "BeitForImageClassification": ("BeitConfig", {**_BEIT, **LABELS}),
    "BeitForImageClassification class token": (
        "BeitConfig",
        {**VISION, **LABELS, "use_mean_pooling": False, "use_absolute_position_embeddings": True},
    ),
    "Data2VecVisionModel": ("Data2VecVisionConfig", {**_BEIT, "use_shared_relative_position_bias": True}),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", {**_BEIT, **LABELS}),
    "IJepaModel": ("IJepaConfig", VISION),
    "IJepaForImageClassification": ("IJepaConfig", {**VISION, **LABELS}),
    "InternVLVisionModel": ("InternVLVisionConfig", {**VISION, "use_absolute_position_embeddings": True}),
    "PixioModel": ("PixioConfig", {**VISION, "n_cls_tokens": 3}),
    "RadioModel": ("RadioConfig", {**VISION, "mlp_ratio": 2.0, "max_img_size": 64, "num_registers": 2}),
    "YolosModel": (
        "YolosConfig",
        {**VISION, "image_size": [32, 40], "num_detection_tokens": 5, "use_mid_position_embeddings": False},
    ),
    "TimmWrapperModel": ("TimmWrapperConfig", {}),
    "TimmWrapperForImageClassification": ("TimmWrapperConfig", LABELS),
}


def names() -> list[str]:
    """Every class of the image maps, and those of ``CONFIGS``; a variant has a word behind the class name."""
    from transformers.models.auto import modeling_auto as auto

    from legrad.models.hf import audio, video

    maps = (
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    )
    # the others of this map have no head, or one that is in the maps above
    joint = [name for name in auto.MODEL_MAPPING_NAMES.values() if str(name).startswith(("PeAudio", "PeVideo"))]
    found = [kinds if isinstance(kinds, tuple) else (kinds,) for kind in maps for kinds in kind.values()]
    listed = dict.fromkeys([*CONFIGS, *(name for kinds in found for name in kinds), *joint])
    return [name for name in listed if name not in {**audio.FAMILIES, **video.FAMILIES}]  # see zoo_media


def not_applicable(name: str) -> str:
    """Why a class is not explained, or ""."""
    from legrad.models.hf import not_supported

    return not_supported(name.split()[0])


def build(name: str, **changes: Any) -> nn.Module:
    """A tiny random model in eval mode; ``changes`` go into its configuration."""
    import transformers

    torch.manual_seed(0)
    if name.startswith("TimmWrapper"):
        return randomised(_timm_wrapper(name, changes))
    kind, arguments = CONFIGS[name]
    config = getattr(transformers, kind)(**{**arguments, **changes})
    model = randomised(getattr(transformers, name.split()[0])(config))
    # the library starts so small that biases decide everything, and a head's values are all of one sign
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _timm_wrapper(name: str, changes: dict[str, Any]) -> nn.Module:
    import transformers

    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    config = transformers.TimmWrapperConfig(
        architecture="vit_base_patch16_224", model_args=size, **CONFIGS[name][1], **changes
    )
    return getattr(transformers, name)(config)


WORDS = ["<pad>", "<unk>", "a", "red", "bus", "two", "cats", "on", "mat"]


def tokenizer() -> Any:
    """A tokenizer of the library with a handful of words; it ends every text with the largest id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(WORDS)} | {"<eos>": 63}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 63)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=16
    )
