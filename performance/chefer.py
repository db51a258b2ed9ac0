"""CheferCAM on a timm ViT, from the paper: no package on PyPI offers it."""

from typing import Any

import torch
from torch import Tensor, nn


class CheferCAM:
    """Generic attention explainability (Chefer, Gur and Wolf, ICCV 2021, arXiv:2103.15679), self-attention only.

    Equations 5 and 6: R starts as the identity; every block adds mean over heads of (dlogit/dA * A)+, times R. The
    class token's row of R is the map. Attention has to be written out, so fused attention is switched off: give it a
    model of its own.

    Args:
        model: a timm ``VisionTransformer`` with a class token.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._attention: list[Tensor] = []
        module: Any
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
                # its dropout does nothing in evaluation, and is handed the probabilities
                module.attn_drop.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: tuple[Tensor, ...], attention: Tensor) -> None:
        self._attention.append(attention)

    def __call__(self, images: Tensor, label: int) -> Tensor:
        """Relevance of every patch for one class: images (B, 3, H, W) -> (B, patches)."""
        self._attention.clear()
        with torch.enable_grad():
            logits = self.model(images)
            gradients = torch.autograd.grad(logits[:, label].sum(), self._attention)
        batch, _, tokens, _ = self._attention[0].shape
        relevance = torch.eye(tokens, dtype=images.dtype, device=images.device).expand(batch, -1, -1)
        for attention, gradient in zip(self._attention, gradients, strict=True):
            relevance = relevance + (gradient * attention.detach()).clamp(min=0).mean(1) @ relevance
        return relevance[:, 0, getattr(self.model, "num_prefix_tokens", 1) :]
