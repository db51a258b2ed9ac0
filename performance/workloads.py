"""Models with random weights, their inputs, and their bare forward: what is measured."""

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
class Workload:
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
        """The lower bound: one forward without gradients, with fused attention.

        The fast path of ``nn.MultiheadAttention`` is switched off: on the CPU it materialises the attention maps, which
        is as fast at 224 px and half as fast at 1022 px.
        """
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                return self.forward(self.images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def single(self) -> "Workload":
        """The workload with its first image alone, for warming up."""
        return replace(self, images=self.images[:1])

    def copy(self) -> "Workload":
        """The workload with a copy of the model, for contenders that change it."""
        model = copy.deepcopy(self.model)
        return replace(self, model=model, forward=_forward(model))


def build(case: Case, device: torch.device) -> Workload:
    """The case's model with random weights, and an input."""
    torch.manual_seed(0)
    dtype: torch.dtype = getattr(torch, case.dtype)
    library, _, name = case.model.partition("/")
    default = torch.get_default_dtype()
    # built in its final dtype: a float32 copy of the largest towers would not fit
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = _BUILDERS[library](name, None if case.resized else case.size).eval()
    finally:
        torch.set_default_dtype(default)
    images = torch.randn(case.batch, 3, case.size, case.size, dtype=dtype, device=device)
    targets: Any = list(range(case.prompts))
    if library == "open_clip":
        targets = torch.nn.functional.normalize(torch.randn(case.prompts, _width(name)), dim=-1)
        targets = targets.to(device, dtype)
    return Workload(model, _forward(model), images, targets)


def weights(workload: Workload) -> int:
    """Bytes of the model's parameters."""
    return sum(p.numel() * p.element_size() for p in workload.model.parameters())


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
    # torchvision initialises the head with zeros, through which all gradients are zero
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
