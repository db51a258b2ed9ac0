"""The models that are explained, with random weights, and their bare forward."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from performance.cases import Case

# the text tower is never run: a tiny one saves time and memory
_TEXT = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1}


@dataclass(frozen=True)
class Subject:
    """A model with its input.

    Attributes:
        model: in evaluation mode.
        forward: images (B, 3, H, W) -> the image feature (B, D) or the logits (B, C).
        images: (batch, 3, size, size), normalised.
        targets: embeddings (prompts, D), or class indices where the model is a classifier.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    images: Tensor
    targets: Any

    def bare(self) -> Tensor:
        """The physical limit: one forward without gradients, fused attention on.

        ``nn.MultiheadAttention`` has a fast path of its own, which writes the attention maps out on the processor: as
        quick at 224 px, half as quick at 1022 px.
        """
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                return self.forward(self.images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def small(self) -> "Subject":
        """The same with a single image, for warming up."""
        return replace(self, images=self.images[:1])

    def copied(self) -> "Subject":
        """With a model of its own, for contenders that change theirs."""
        model = copy.deepcopy(self.model)
        return replace(self, model=model, forward=_forward(model))


def build(case: Case, device: torch.device) -> Subject:
    """The case's model with random weights, and an input."""
    torch.manual_seed(0)
    dtype: torch.dtype = getattr(torch, case.dtype)
    library, _, name = case.model.partition("/")
    before = torch.get_default_dtype()
    # made in its final dtype: a float32 copy of the largest towers would not fit
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = _BUILDERS[library](name, None if case.resized else case.size).eval()
    finally:
        torch.set_default_dtype(before)
    images = torch.randn(case.batch, 3, case.size, case.size, dtype=dtype, device=device)
    targets: Any = list(range(case.prompts))
    if library == "open_clip":
        targets = torch.nn.functional.normalize(torch.randn(case.prompts, _width(name)), dim=-1)
        targets = targets.to(device, dtype)
    return Subject(model, _forward(model), images, targets)


def weights(subject: Subject) -> int:
    """Bytes of the model's parameters."""
    return sum(p.numel() * p.element_size() for p in subject.model.parameters())


def _forward(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return getattr(model, "encode_image", model)


def _width(name: str) -> int:
    import open_clip

    return open_clip.get_model_config(name)["embed_dim"]


def _open_clip(name: str, size: int | None) -> nn.Module:
    import open_clip

    config = open_clip.get_model_config(name)
    vision = dict(config["vision_cfg"])
    trunk = "timm_model_name" in vision
    if size is not None and not trunk:
        vision["image_size"] = size
    kind = open_clip.CustomTextCLIP if trunk else open_clip.CLIP
    model = kind(config["embed_dim"], vision, _TEXT, quick_gelu=config.get("quick_gelu", False))
    if size is not None and trunk:
        model.visual.set_input_size(size)
    return model


def _torchvision(name: str, size: int | None) -> nn.Module:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, image_size=size or 224)
    # torchvision begins with a head of zeros, through which nothing can be explained
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


def _timm(name: str, size: int | None) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, img_size=size or 224)


_BUILDERS: dict[str, Callable[[str, int | None], nn.Module]] = {
    "open_clip": _open_clip,
    "torchvision": _torchvision,
    "timm": _timm,
}
