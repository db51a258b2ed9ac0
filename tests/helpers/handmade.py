"""Explanations without a model: what the tests of showing and saving need."""

from typing import Any

import numpy as np
import torch

import legrad
from legrad.inputs.geometry import PatchGrid, Placement, Size

PICTURES = [(64, 64), (97, 211), (211, 97), (33, 250), (250, 41), (7, 5)]  # (height, width)


def cells(grid: Size, covered: Size) -> PatchGrid:
    """Patches side by side that cover some pixels."""
    side: Any = tuple(pixels / count for pixels, count in zip(covered, grid, strict=True))
    return PatchGrid(grid, side, side)


def explanation(
    count: int = 1,
    targets: int = 2,
    grid: Size = (3, 4),
    covered: Size | None = None,
    placements: list[Placement] | None = None,
    layers: tuple[int, ...] = (0, 2),
    **changes: Any,
) -> legrad.Explanation:
    """Random relevance on 8-pixel patches; by default the original images are the model's input."""
    generator = torch.Generator().manual_seed(0)
    covered = covered or (8 * grid[0], 8 * grid[1])
    placements = placements or [Placement(covered, covered)] * count
    per_layer = torch.rand(count, targets, len(layers), *grid, generator=generator) + 0.1
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "relevance": per_layer.mean(2),
        "layer_relevance": per_layer,
        "layers": layers,
        "scores": torch.rand(count, targets, generator=generator),
        "valid": torch.ones(count, targets, dtype=torch.bool),
        "labels": [[f"target {t}" for t in range(targets)] for _ in range(count)],
        "prompt_independent": torch.zeros(count, targets, dtype=torch.bool),
        "placements": placements,
        "patch_grids": [cells(grid, covered)] * count,
        "images": [rng.integers(0, 255, (*placement.original, 3), np.uint8) for placement in placements],
        "names": [f"folder/image {i}.jpg" for i in range(count)],
        "settings": {"model": "none", "method": "legrad", "layers": list(layers), "versions": {"legrad": "0"}},
    }
    return legrad.Explanation(**{**values, **changes})
