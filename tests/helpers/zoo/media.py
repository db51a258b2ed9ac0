"""Tiny random video and audio models of transformers: every family and variant that is explained."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from helpers.tiny import randomised

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}


def videomae(kind: str = "VideoMAEForVideoClassification", **changes: Any) -> nn.Module:
    """2 x 2 x 3 tubes."""
    import transformers

    config = transformers.VideoMAEConfig(
        image_size=(16, 24), patch_size=8, num_frames=4, tubelet_size=2, **SHAPE, **changes
    )
    return getattr(transformers, kind)(config)


def vivit(kind: str = "VivitForVideoClassification", **changes: Any) -> nn.Module:
    """2 x 2 x 3 tubes and a class token."""
    import transformers

    config = transformers.VivitConfig(image_size=(16, 24), tubelet_size=[2, 8, 8], num_frames=4, **SHAPE, **changes)
    return getattr(transformers, kind)(config)


def vjepa2(kind: str = "VJEPA2ForVideoClassification", **changes: Any) -> nn.Module:
    """2 x 3 x 3 tubes."""
    import transformers

    config = transformers.VJEPA2Config(
        crop_size=24,
        patch_size=8,
        frames_per_clip=4,
        tubelet_size=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        mlp_ratio=2,
        **{"num_pooler_layers": 2, **SHAPE, **changes},
    )
    return getattr(transformers, kind)(config)


def timesformer(kind: str = "TimesformerForVideoClassification", **changes: Any) -> nn.Module:
    """4 frames of 3 x 3 patches and a class token."""
    import transformers

    config = transformers.TimesformerConfig(image_size=24, patch_size=8, num_frames=4, **SHAPE, **changes)
    return getattr(transformers, kind)(config)


def ast(kind: str = "ASTForAudioClassification", **changes: Any) -> nn.Module:
    """Patches of 8 x 8 every 5 (frequency) and 6 (time) pixels: 3 x 6 of them behind two tokens."""
    import transformers

    sides = {"frequency_stride": 5, "time_stride": 6, "num_mel_bins": 20, "max_length": 40}
    config = transformers.ASTConfig(patch_size=8, **{**sides, **SHAPE, **changes})
    return getattr(transformers, kind)(config)


def waveform(kind: str = "Wav2Vec2", **changes: Any) -> nn.Module:
    """A token every 6 samples, out of 17: kernels of 5 and 5, strides of 3 and 2."""
    import transformers

    convolutions = {"conv_dim": (16, 16), "conv_kernel": (5, 5), "conv_stride": (3, 2)}
    others = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16}
    config = getattr(transformers, f"{kind}Config")(**{**convolutions, **others, **SHAPE, **changes})
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "videomae": videomae,
    "videomae-first-token": lambda: videomae(use_mean_pooling=False),
    "videomae-feature": lambda: videomae("VideoMAEModel"),
    "videomae-eager": lambda: videomae(attn_implementation="eager"),
    "vivit": vivit,
    "vivit-feature": lambda: vivit("VivitModel"),
    "vjepa2": vjepa2,
    "vjepa2-one-pooler-layer": lambda: vjepa2(num_pooler_layers=1),
    "vjepa2-feature": lambda: vjepa2("VJEPA2Model"),
    "timesformer": timesformer,
    "timesformer-joint": lambda: timesformer(attention_type="joint_space_time"),
    "timesformer-feature": lambda: timesformer("TimesformerModel"),
    "ast": ast,
    "ast-side-by-side": lambda: ast(frequency_stride=8, time_stride=8),
    "ast-feature": lambda: ast("ASTModel"),
    "waveform-wav2vec2": waveform,
    "waveform-wav2vec2-norm-first": lambda: waveform(do_stable_layer_norm=True, feat_extract_norm="layer"),
    "waveform-hubert": lambda: waveform("Hubert"),
    "waveform-unispeech": lambda: waveform("UniSpeech"),
    "waveform-unispeech-sat": lambda: waveform("UniSpeechSat"),
    "waveform-data2vec": lambda: waveform("Data2VecAudio"),
}
_REFUSED: dict[str, Callable[[], nn.Module]] = {
    "timesformer-space-only": lambda: timesformer(attention_type="space_only"),
}


def names() -> list[str]:
    """Variants of the explained families; the refused classes of the library's maps are in zoo_transformers."""
    return [*_BUILDERS, *_REFUSED]


def not_applicable(name: str) -> str:
    """Why a model is not explained, or "" if it is."""
    return "attention_type='space_only' answers for every frame alone" if name in _REFUSED else ""


def build(name: str) -> nn.Module:
    """The same model every time; no parameter is zero or one."""
    torch.manual_seed(0)
    return randomised({**_BUILDERS, **_REFUSED}[name](), seed=1)
