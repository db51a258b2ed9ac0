"""The embedded models, small genuine open_clip models: how they are built, saved and loaded.

Two kinds, named after what makes the image feature, in timm's words: ``"token"`` is a ``CLIP`` whose vision transformer
reads a class token; ``"map"`` is a ``CustomTextCLIP`` with a timm trunk and an attentional pooler, like SigLIP.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from legrad.atomic import draft_of
from legrad.embedded.tokenizer import CONTEXT_LENGTH, WordTokenizer

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP

Kind = Literal["token", "map"]
_DATA = Path(__file__).parent / "data"
WEIGHTS = _DATA / "model.safetensors"
MAP_WEIGHTS = _DATA / "model-map.safetensors"
FILES: dict[Kind, Path] = {"token": WEIGHTS, "map": MAP_WEIGHTS}
IMAGE_SIZE = 192
EMBED_DIM = 128
VISION = {"layers": 6, "width": 256, "head_width": 64, "patch_size": 16}
# timm reads the trunk's sizes, those of VISION, from config.json in this folder; the trunk has no prefix tokens
MAP_VISION = {"timm_model_name": f"local-dir:{_DATA / 'map'}", "timm_pool": "map", "timm_proj": "linear"}
POOLER_MLP_RATIO = 1.5  # not the trunk's 4: the weights have to stay below 12 MB
TEXT = {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 2}
# pixels in [0, 1] -> (x - mean) / std
PREPROCESS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}


def build(vocab_size: int, image_size: int = IMAGE_SIZE, kind: Kind = "token") -> "CLIP | CustomTextCLIP":
    """A model with random weights for images of ``image_size`` pixels."""
    from open_clip import CLIP, CustomTextCLIP

    text = {**TEXT, "vocab_size": vocab_size}
    if kind == "token":
        return CLIP(EMBED_DIM, {**VISION, "image_size": image_size}, text, init_logit_bias=-5.0)
    model = CustomTextCLIP(EMBED_DIM, {**MAP_VISION, "image_size": IMAGE_SIZE}, text, init_logit_bias=-5.0)
    trunk = model.visual.trunk
    trunk.attn_pool = pooler(trunk.embed_dim, trunk.attn_pool.num_heads)
    model.visual.set_input_size(image_size)
    return model


def pooler(width: int, heads: int) -> torch.nn.Module:
    """timm's attentional pooler: one learnt query attends to the patches, a small MLP follows."""
    from timm.layers import AttentionPoolLatent, LayerNorm

    return AttentionPoolLatent(width, num_heads=heads, mlp_ratio=POOLER_MLP_RATIO, norm_layer=LayerNorm)


def kind_of(model: Any) -> Kind:
    """Which of the two kinds a model is."""
    return "map" if hasattr(model.visual, "trunk") else "token"


def resized(model: Any, size: int) -> Any:
    """A copy of the model for another image size, on the CPU, position embedding interpolated."""
    from open_clip.model import resize_pos_embed

    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if kind_of(model) == "map":
        copied = build(model.vocab_size, model.visual.image_size[0], "map")
        copied.load_state_dict(state)
        copied.visual.set_input_size(size)
    else:
        copied = build(model.vocab_size, size)
        resize_pos_embed(state, copied)
        copied.load_state_dict(state)
    return copied


def save(model: "CLIP | CustomTextCLIP", path: Path, card: dict[str, Any]) -> None:
    """Write half-precision weights with the model card in the file's metadata, atomically."""
    weights = {name: value.detach().half().contiguous().clone() for name, value in model.state_dict().items()}
    with draft_of(path) as draft:
        save_file(weights, draft, metadata={"card": json.dumps(card)})
        draft.chmod(0o644)


def load(path: Path = WEIGHTS) -> tuple["CLIP | CustomTextCLIP", WordTokenizer]:
    """The model in float32 eval mode, and its tokenizer; the card says which kind it is."""
    tokenizer = WordTokenizer.shipped()
    model = build(tokenizer.vocab_size, kind=card(path).get("kind", "token"))
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    model.load_state_dict(weights)
    model.visual.preprocess_cfg = {**PREPROCESS, "size": (IMAGE_SIZE, IMAGE_SIZE), "mode": "RGB", "fill_color": 0}
    return model.eval(), tokenizer


def card(path: Path = WEIGHTS) -> dict[str, Any]:
    """The model card that training wrote: data, steps, time, scores."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["card"])


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> the model's input (B, 3, H, W) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
