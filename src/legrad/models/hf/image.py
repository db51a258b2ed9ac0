"""Image models of transformers: ``Family`` records, and the table of classes that they describe."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from legrad.models.anatomy import ViTAnatomy
from legrad.models.hf import outputs
from legrad.models.hf.family import Family, core, describe, pooled
from legrad.models.hf.image_processors import transform as transform


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


def _averages(config: Any) -> bool:
    return True


def _averages_by_config(config: Any) -> bool:
    return bool(config.use_mean_pooling)


def _base(model: Any) -> Any:
    return model.base_model


# -- image-text models and their towers ----------------------------------------------------------------------------

CLIP = Family(
    lambda model, vision, z: model.visual_projection(vision.post_layernorm(z[:, 0])),
    "embedding",
    outputs.embedding,
    vision=core,
    heads=("visual_projection",),
)
CLIP_PROJECTED = replace(CLIP, answer=outputs.projected)
CLIP_VISION = Family(
    lambda model, vision, z: vision.post_layernorm(z[:, 0]), "feature", outputs.class_token_feature, vision=core
)
CLIP_CLASSIFIER = Family(
    # no norm at all, and the class token is left out
    lambda model, vision, z: model.classifier(z[:, 1:].mean(1)),
    "logits",
    outputs.logits,
    vision=core,
    heads=("classifier",),
    averaged=_averages,
)
MLCD = replace(CLIP_VISION, sizes="free")

SIGLIP = Family(
    lambda model, vision, z: vision.head(vision.post_layernorm(z)),
    "embedding",
    outputs.embedding,
    vision=core,
    prefix=lambda config: 0,
    pooler=lambda model, vision, z: vision.head(z),
)
SIGLIP_VISION = replace(SIGLIP, output="feature", answer=outputs.class_token_feature)
SIGLIP_HEADLESS = Family(
    lambda model, vision, z: vision.post_layernorm(z).mean(1),
    "feature",
    outputs.feature(outputs.mean),
    vision=core,
    prefix=lambda config: 0,
    averaged=_averages,
)
SIGLIP_CLASSIFIER = replace(
    SIGLIP_HEADLESS,
    native=lambda model, vision, z: model.classifier(vision.post_layernorm(z).mean(1)),
    output="logits",
    answer=outputs.logits,
    heads=("classifier",),
)

AIMV2 = Family(
    lambda model, vision, z: model.visual_projection(vision.head(vision.rms_norm(z))),
    "embedding",
    outputs.embedding,
    vision=core,
    heads=("visual_projection",),
    prefix=lambda config: 0,
    pooler=lambda model, vision, z: model.visual_projection(vision.head(z)),
    sizes="fixed",
)
AIMV2_VISION = replace(
    AIMV2,
    native=lambda model, vision, z: vision.head(vision.rms_norm(z)),
    output="feature",
    answer=outputs.class_token_feature,
    heads=(),
    pooler=lambda model, vision, z: vision.head(z),
)
AIMV2_HEADLESS = replace(
    AIMV2_VISION,
    native=lambda model, vision, z: vision.rms_norm(z).mean(1),
    answer=outputs.feature(outputs.mean),
    pooler=None,
    averaged=_averages,
)

BLIP = Family(
    # the same norm twice, as the library has it
    lambda model, vision, z: model.visual_projection(vision.post_layernorm(vision.post_layernorm(z)[:, 0])),
    "embedding",
    outputs.embedding,
    vision=core,
    heads=("visual_projection",),
)
BLIP_VISION = replace(
    BLIP,
    native=lambda model, vision, z: vision.post_layernorm(vision.post_layernorm(z)[:, 0]),
    output="feature",
    answer=outputs.class_token_feature,
    heads=(),
)
BLIP_RETRIEVAL = replace(
    BLIP,
    native=lambda model, vision, z: model.vision_proj(vision.post_layernorm(z)[:, 0]),
    answer=lambda model, images, options: model.vision_proj(
        model.vision_model(images, **options).last_hidden_state[:, 0]
    ),
    heads=("vision_proj",),
)

FLAVA = Family(
    lambda model, vision, z: model.image_projection(vision.layernorm(z)[:, 0]),
    "embedding",
    # the library projects every token; the contrastive score takes the first
    lambda model, images, options: pooled(model.get_image_features(images, **options))[:, 0],
    vision=lambda model: model.image_model,
    heads=("image_projection",),
)

TIPSV2_VISION = Family(
    lambda model, vision, z: vision.layernorm(z)[:, 0],
    "feature",
    outputs.class_token_feature,
    vision=core,
    prefix=_registers,
    sizes="table",
)
TIPSV2 = replace(TIPSV2_VISION, output="embedding", answer=outputs.embedding)


# -- one tower, with a classifier or without head ------------------------------------------------------------------


def _pool(vision: Any, tokens: Tensor, otherwise: Callable[[Tensor], Tensor] = outputs.class_token) -> Tensor:
    """The result of the tower's pooler, or ``otherwise`` for a tower without one."""
    pooler = getattr(vision, "pooler", None)
    feature: Tensor = otherwise(tokens) if pooler is None else pooler(tokens)
    return feature


VIT = Family(lambda model, vision, z: _pool(vision, vision.layernorm(z)), "feature", outputs.class_token_feature)
VIT_CLASSIFIER = Family(
    lambda model, vision, z: model.classifier(vision.layernorm(z)[:, 0]),
    "logits",
    outputs.logits,
    vision=_base,
    heads=("classifier",),
)
VIT_MSN_CLASSIFIER = replace(VIT_CLASSIFIER, vision=lambda model: model.vit)
DEIT = replace(VIT, prefix=lambda config: 2)
DEIT_CLASSIFIER = replace(VIT_CLASSIFIER, prefix=lambda config: 2)


def _two_teachers(model: Any, vision: Any, tokens: Tensor) -> Tensor:
    tokens = vision.layernorm(tokens)
    logits: Tensor = (model.cls_classifier(tokens[:, 0]) + model.distillation_classifier(tokens[:, 1])) / 2
    return logits


DEIT_TWO_HEADS = replace(DEIT_CLASSIFIER, native=_two_teachers, heads=("cls_classifier", "distillation_classifier"))

DINOV2 = replace(VIT, sizes="table")
DINOV2_REGISTERS = replace(DINOV2, prefix=_registers)


def _class_token_and_patches(model: Any, vision: Any, tokens: Tensor) -> Tensor:
    tokens = vision.layernorm(tokens)
    start = 1 + getattr(vision.config, "num_register_tokens", 0)
    logits: Tensor = model.classifier(torch.cat([tokens[:, 0], tokens[:, start:].mean(1)], dim=1))
    return logits


DINOV2_CLASSIFIER = replace(VIT_CLASSIFIER, native=_class_token_and_patches, sizes="table")
DINOV2_REGISTERS_CLASSIFIER = replace(DINOV2_CLASSIFIER, prefix=_registers)
DINOV3 = Family(
    lambda model, vision, z: vision.norm(z)[:, 0],
    "feature",
    outputs.class_token_feature,
    prefix=_registers,
    sizes="free",
)


def _mean_or_class_token(vision: Any, tokens: Tensor) -> Tensor:
    return _pool(
        vision,
        vision.layernorm(tokens),
        outputs.mean_of_patches if vision.config.use_mean_pooling else outputs.class_token,
    )


BEIT = Family(
    lambda model, vision, z: _mean_or_class_token(vision, z),
    "feature",
    lambda model, images, options: outputs.feature(
        outputs.mean_of_patches if model.config.use_mean_pooling else outputs.class_token
    )(model, images, options),
    averaged=_averages_by_config,
    sizes="table",
)
BEIT_CLASSIFIER = Family(
    lambda model, vision, z: model.classifier(vision.pooler(vision.layernorm(z))),
    "logits",
    outputs.logits,
    vision=_base,
    heads=("classifier",),
    averaged=_averages_by_config,
    sizes="table",
)

IJEPA = Family(
    lambda model, vision, z: _pool(vision, vision.layernorm(z), outputs.mean),
    "feature",
    outputs.feature(outputs.mean),
    prefix=lambda config: 0,
    averaged=_averages,
)
IJEPA_CLASSIFIER = replace(
    VIT_CLASSIFIER,
    native=lambda model, vision, z: model.classifier(vision.layernorm(z).mean(1)),
    prefix=lambda config: 0,
    averaged=_averages,
)

MAE = replace(
    VIT,
    # the tower hides and shuffles patches by this noise: keep all, in order
    options=lambda vision, images: {"noise": _in_order(vision, images)},
    call_settings=lambda vision: ((vision.config, "mask_ratio", 0.0),),
)


def _in_order(vision: Any, images: Tensor) -> Tensor:
    patch = vision.config.patch_size
    patches = (images.shape[-2] // patch) * (images.shape[-1] // patch)
    return torch.arange(patches, device=images.device, dtype=torch.float32).expand(len(images), -1)


PIXIO = Family(
    lambda model, vision, z: vision.layernorm(z)[:, : vision.config.n_cls_tokens].mean(1),
    "feature",
    outputs.class_token_feature,
    prefix=lambda config: int(config.n_cls_tokens),
    sizes="table",
)
RADIO = Family(
    lambda model, vision, z: z[:, vision.summary_idxs].flatten(1),
    "feature",
    lambda model, images, options: model(images, **options).summary,
    prefix=lambda config: int(config.num_summary_tokens),
    sizes="whole",
)
YOLOS = replace(VIT, sizes="free", suffix=lambda config: int(config.num_detection_tokens))


# -- what depends on more than the class ---------------------------------------------------------------------------


def siglip_vision(model: Any) -> ViTAnatomy:
    """SigLIP's tower, which may come without its pooler."""
    return describe(SIGLIP_VISION if core(model).use_head else SIGLIP_HEADLESS, model)


def aimv2(with_text: bool, model: Any) -> ViTAnatomy:
    """AIMv2: "native" checkpoints compute their positions, the others have a table and one size."""
    config = core(model).config
    family = AIMV2 if with_text else AIMV2_VISION if config.use_head else AIMV2_HEADLESS
    return describe(replace(family, sizes="free" if config.is_native else "fixed"), model)


def data2vec(family: Family, model: Any) -> ViTAnatomy:
    """Data2Vec chooses its kind of attention when it is built."""
    eager = not any("Sdpa" in type(module).__name__ for module in model.modules())
    return describe(replace(family, eager=eager), model)


def timm_wrapper(model: Any) -> ViTAnatomy:
    """A timm model wrapped by transformers: described as a model of timm."""
    from legrad.models.timm import library

    adapter = library.adapt(model.timm_model)
    assert adapter is not None
    return adapter.anatomy


_ROWS = {
    "CLIPModel": CLIP,
    "AltCLIPModel": CLIP,
    "ChineseCLIPModel": CLIP,
    "MetaClip2Model": CLIP,
    "CLIPSegModel": CLIP,
    "Owlv2Model": CLIP,
    "OwlViTModel": CLIP,
    "CLIPVisionModelWithProjection": CLIP_PROJECTED,
    "MetaClip2VisionModelWithProjection": CLIP_PROJECTED,
    "CLIPVisionModel": CLIP_VISION,
    "AltCLIPVisionModel": CLIP_VISION,
    "ChineseCLIPVisionModel": CLIP_VISION,
    "MetaClip2VisionModel": CLIP_VISION,
    "CLIPSegVisionModel": CLIP_VISION,
    "Owlv2VisionModel": CLIP_VISION,
    "OwlViTVisionModel": CLIP_VISION,
    "MLCDVisionModel": MLCD,
    "CLIPForImageClassification": CLIP_CLASSIFIER,
    "MetaClip2ForImageClassification": CLIP_CLASSIFIER,
    "SiglipModel": SIGLIP,
    "SiglipForImageClassification": SIGLIP_CLASSIFIER,
    "BlipModel": BLIP,
    "BlipVisionModel": BLIP_VISION,
    "BlipForImageTextRetrieval": BLIP_RETRIEVAL,
    "Blip2VisionModel": BLIP_VISION,
    "FlavaModel": FLAVA,
    "FlavaImageModel": VIT,
    "Tipsv2Model": TIPSV2,
    "Tipsv2VisionModel": TIPSV2_VISION,
    "ViTModel": VIT,
    "ViTForImageClassification": VIT_CLASSIFIER,
    "ViTMSNModel": VIT,
    "ViTMSNForImageClassification": VIT_MSN_CLASSIFIER,
    "ViTMAEModel": MAE,
    "DeiTModel": DEIT,
    "DeiTForImageClassification": DEIT_CLASSIFIER,
    "DeiTForImageClassificationWithTeacher": DEIT_TWO_HEADS,
    "Dinov2Model": DINOV2,
    "Dinov2ForImageClassification": DINOV2_CLASSIFIER,
    "Dinov2WithRegistersModel": DINOV2_REGISTERS,
    "Dinov2WithRegistersForImageClassification": DINOV2_REGISTERS_CLASSIFIER,
    "DINOv3ViTModel": DINOV3,
    "Sapiens2Model": DINOV3,
    "BeitModel": BEIT,
    "BeitForImageClassification": BEIT_CLASSIFIER,
    "IJepaModel": IJEPA,
    "IJepaForImageClassification": IJEPA_CLASSIFIER,
    "InternVLVisionModel": BEIT,
    "PixioModel": PIXIO,
    "RadioModel": RADIO,
    "YolosModel": YOLOS,
}

# class -> the function that describes its models
FAMILIES: dict[str, Callable[[Any], ViTAnatomy]] = {
    **{name: partial(describe, family) for name, family in _ROWS.items()},
    "SiglipVisionModel": siglip_vision,
    "Aimv2Model": partial(aimv2, True),
    "Aimv2VisionModel": partial(aimv2, False),
    "Data2VecVisionModel": partial(data2vec, BEIT),
    "Data2VecVisionForImageClassification": partial(data2vec, BEIT_CLASSIFIER),
    "CLIPSegForImageSegmentation": lambda model: describe(CLIP, model.clip),
    "OwlViTForObjectDetection": lambda model: describe(CLIP, model.owlvit),
    "Owlv2ForObjectDetection": lambda model: describe(CLIP, model.owlv2),
    "FlavaForPreTraining": lambda model: describe(FLAVA, model.flava),
    # heads of pretraining and detection: the tower alone
    "ViTForMaskedImageModeling": lambda model: describe(VIT, model.vit),
    "DeiTForMaskedImageModeling": lambda model: describe(DEIT, model.deit),
    "BeitForMaskedImageModeling": lambda model: describe(BEIT, model.beit),
    "ViTMAEForPreTraining": lambda model: describe(MAE, model.vit),
    "YolosForObjectDetection": lambda model: describe(YOLOS, model.vit),
    "TimmWrapperModel": timm_wrapper,
    "TimmWrapperForImageClassification": timm_wrapper,
}
