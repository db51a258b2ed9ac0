"""What has to be known about a model to explain it: data plus small functions, filled in by the adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legrad.errors import InputError


def _same(tokens: Tensor) -> Tensor:
    return tokens


@dataclass(frozen=True)
class Readout:
    """Tokens -> the vector that is scored.

    Attributes:
        function: (batch, tokens, dim) -> (batch, features), made of the model's own modules.
        normalize: L2-normalise the result (image-text models).
    """

    function: Callable[[Tensor], Tensor]
    normalize: bool

    def __call__(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, features)."""
        feature = self.function(tokens)
        return F.normalize(feature, dim=-1) if self.normalize else feature


@dataclass(frozen=True)
class ViTAnatomy:
    """Where things are in one vision transformer, for one input size.

    Attributes:
        library: name for humans, e.g. "open_clip".
        tower: the vision tower; all modules named below live in it.
        run: (batch, 3, height, width) -> (batch, features), the tower's own plain output, before any L2.
        blocks: the transformer blocks in order.
        image_size: (height, width) that the tower takes as it is.
        patch_size: (height, width) of a patch in pixels; patches are laid side by side.
        grid: (rows, cols) of patches at ``image_size``.
        num_prefix_tokens: class and register tokens in front of the patches.
        readouts: "native" (the model's own head) and "published" (as the authors' code pools).
        default_readout: what ``readout="auto"`` means.
        output: "embedding" (compared with texts by cosine similarity), "logits" or "feature" (no head at all).
        route: "self-attention" inside the blocks, or "pooler": the attentional pooler on each block's tokens.
        attentions: how many attentions fire in a block (or in the pooler).
        taps: which of them enter the map, as indices; their relevances are averaged.
        key_prefix: keys in front of the patches in the explained attention.
        to_tokens: block output -> (batch, tokens, dim).
        switches: (owner, attribute, value) set during a call and put back: checkpointing off, fused attention on.
        resized: (height, width) -> the same weights for another input size; raises ``InputError`` if impossible.
    """

    library: str
    tower: nn.Module
    run: Callable[[Tensor], Tensor]
    blocks: Sequence[nn.Module]
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    num_prefix_tokens: int
    readouts: Mapping[str, Readout]
    default_readout: Literal["native", "published"]
    output: Literal["embedding", "logits", "feature"]
    resized: Callable[[tuple[int, int]], "ViTAnatomy"]
    route: Literal["self-attention", "pooler"] = "self-attention"
    attentions: int = 1
    taps: tuple[int, ...] = (0,)
    key_prefix: int = 0
    to_tokens: Callable[[Any], Tensor] = _same
    switches: tuple[tuple[Any, str, Any], ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the tower lives."""
        return next(self.tower.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type that pictures are cast to: that of the tower's patch embedding (its convolution, else any matrix)."""
        matrices = [p for p in self.tower.parameters() if p.ndim > 1]
        return next((p.dtype for p in matrices if p.ndim == 4), matrices[0].dtype)

    def at(self, size: tuple[int, int]) -> "ViTAnatomy":
        """The anatomy for an input size: this one if it fits, else one with resampled positions.

        Raises:
            InputError: smaller than one patch, or a size that the architecture does not allow.
        """
        if size == self.image_size:
            return self
        if size[0] < self.patch_size[0] or size[1] < self.patch_size[1]:
            raise InputError(f"an input of {size[0]} x {size[1]} pixels is smaller than one patch of {self.patch_size}")
        return self.resized(size)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"ViTAnatomy({self.library} {type(self.tower).__name__}: {len(self.blocks)} x "
            f"{type(self.blocks[0]).__name__}, {height} x {width} px, grid {self.grid[0]} x {self.grid[1]}, "
            f"{self.num_prefix_tokens} prefix tokens, route {self.route}, auto = {self.default_readout})"
        )
