"""Batches of rendered scenes with the names of their objects."""

import random
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from legrad.embedded.concepts import NAMES
from legrad.embedded.rendering import scene as render
from training.recipes import Recipe, Stage

Batch = tuple[Tensor, Tensor]  # images (B, H, W, 3) uint8, labels (B, concepts) float in {0, 1}
_RING = 128  # batches that are kept for replays
_PARTS = 4  # batches that a replayed one is mixed from


class Batches(Dataset[Batch]):
    """Batch number -> images (B, H, W, 3) uint8 and labels (B, concepts) float in {0, 1}."""

    def __init__(self, stage: Stage, batch: int, seed: int, first: int, count: int) -> None:
        self.stage, self.batch, self.seed, self.first, self.count = stage, batch, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        start = (self.first + index) * self.batch
        labels = torch.zeros(self.batch, len(NAMES))
        images = []
        for row in range(self.batch):
            stage = self.stage
            scene = render(self.seed, start + row, stage.size, stage.objects, reference=stage.reference)
            labels[row, [NAMES.index(name) for name in scene.names]] = 1
            images.append(torch.from_numpy(scene.image))
        return torch.stack(images), labels


class Replay:
    """The batches of a stage; each rendered one is used ``Recipe.replays`` times.

    Replayed batches are mixed from rows of several earlier ones, so that no batch comes back whole.

    Args:
        recipe: for batch size, seed and number of replays.
        stage_index: the stage.
        stage_step: the first step; after an odd number of steps the last batch is rendered again, as nothing is kept.
        workers: processes that render.
    """

    def __init__(self, recipe: Recipe, stage_index: int, stage_step: int, workers: int) -> None:
        self._recipe = recipe
        stage = recipe.stages[stage_index]
        count, first = -(-(stage.pictures // recipe.batch) // recipe.replays), stage_step // recipe.replays
        data = Batches(stage, recipe.batch, recipe.seed + stage_index, first, count - first)
        self._rendered: Iterator[Batch] = iter(
            DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
        )
        self._ring: deque[Batch] = deque(maxlen=_RING)

    def batch(self, stage_step: int, rng: random.Random) -> Batch:
        """The batch of a step; steps come in order."""
        size = self._recipe.batch
        if stage_step % self._recipe.replays == 0 or not self._ring:
            self._ring.append(next(self._rendered))
            return self._ring[-1]
        parts = [rng.choice(self._ring) for _ in range(_PARTS)]
        rows = [slice(i * size // _PARTS, (i + 1) * size // _PARTS) for i in range(_PARTS)]
        images, labels = (
            torch.cat([part[column][span] for part, span in zip(parts, rows, strict=True)]) for column in range(2)
        )
        return images, labels


def mirrored_at_random(images: Tensor, rng: random.Random) -> Tensor:
    """Images (B, 3, H, W), each flipped left to right with probability 1/2."""
    flipped = torch.tensor([rng.random() < 0.5 for _ in range(len(images))], device=images.device)
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)
