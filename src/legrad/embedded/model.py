"""The embedded model: a small genuine open_clip ``CLIP``, and how it is built, saved and loaded."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from legrad.embedded.tokenizer import CONTEXT_LENGTH, WordTokenizer

if TYPE_CHECKING:
    from open_clip import CLIP

WEIGHTS = Path(__file__).parent / "data" / "model.safetensors"
IMAGE_SIZE = 192
EMBED_DIM = 128
VISION = {"layers": 6, "width": 256, "head_width": 64, "patch_size": 16}
TEXT = {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 2}
# pixels in [0, 1] -> (x - mean) / std
PREPROCESS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}


def build(vocab_size: int, image_size: int = IMAGE_SIZE) -> "CLIP":
    """A model with random weights for pictures of ``image_size`` pixels."""
    from open_clip import CLIP

    return CLIP(
        EMBED_DIM,
        vision_cfg={**VISION, "image_size": image_size},
        text_cfg={**TEXT, "vocab_size": vocab_size},
        init_logit_bias=-5.0,
    )


def save(model: "CLIP", path: Path, card: dict[str, Any]) -> None:
    """Write half-precision weights with the model card in the file's metadata, atomically."""
    weights = {name: value.detach().half().contiguous().clone() for name, value in model.state_dict().items()}
    draft = path.with_suffix(".tmp")
    save_file(weights, draft, metadata={"card": json.dumps(card)})
    draft.chmod(0o644)
    draft.replace(path)


def load(path: Path = WEIGHTS) -> tuple["CLIP", WordTokenizer]:
    """The model in float32 eval mode, and its tokenizer."""
    tokenizer = WordTokenizer.shipped()
    model = build(tokenizer.vocab_size)
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
