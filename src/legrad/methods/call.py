"""What a method gets: the model, the images and the scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from legrad.core.score import PerImage, ResolvedTarget
from legrad.core.truth import final_answer
from legrad.errors import UnsupportedModelError
from legrad.models.anatomy import ViTAnatomy


@dataclass
class MethodInput:
    """One method on some images of one size. Use it inside ``state.evaluation_mode``.

    Attributes:
        anatomy: for the size of ``batch``.
        batch: (images, *anatomy.shape) in the model's dtype.
        scores: the targets.
        layers: ascending block indices.
        readout: a key of ``anatomy.readouts``, for methods with layer features.
        output: of the tower; methods that run it set this, so that it need not run again for the scores.
        known_scores: the model's own scores, (images, targets); methods that compute them set this, and
        known_answer: what they are scores of, (images, features).
    """

    anatomy: ViTAnatomy
    batch: Tensor
    scores: Sequence[ResolvedTarget]
    layers: Sequence[int]
    readout: str
    output: Tensor | None = None
    known_scores: Tensor | None = None
    known_answer: Tensor | None = None

    def answer(self) -> Tensor:
        """The model's own scores, (images, targets)."""
        if self.known_scores is not None:
            return self.known_scores
        feature = self.feature()
        return torch.stack([score(feature) for score in self.scores], 1)

    def feature(self) -> Tensor:
        """The model's own answer, (images, features)."""
        if self.known_answer is not None:
            return self.known_answer
        if self.output is None:
            self.output = self.anatomy.run(self.batch)
        return final_answer(self.anatomy, self.output)

    def scores_of(self, image: int, outputs: Tensor) -> Tensor:
        """Scores of several outputs of the tower, all taken for one image: (n, features) -> (n, targets)."""
        feature = final_answer(self.anatomy, outputs)
        return torch.stack([_of_image(score, image, feature) for score in self.scores], 1)

    def same_for_all_targets(self, maps: Tensor) -> Tensor:
        """(images, *grid) -> (images, targets, 1, *grid)."""
        return maps[:, None, None].expand(-1, len(self.scores), -1, *maps.shape[1:]).contiguous()


def require_images(call: MethodInput, method: str) -> None:
    """Raise ``UnsupportedModelError``, in the name of the method, for videos and sounds."""
    if call.anatomy.axes != ("rows", "cols") or call.batch.ndim != 4:
        raise UnsupportedModelError(
            f"{method} is for images (batch, channels, height, width), this model's grid is "
            f"{' x '.join(call.anatomy.axes)}"
        )


def mean_over_patches(call: MethodInput, pixels: Tensor) -> Tensor:
    """Mean over each patch's pixels, (n, height, width) -> (n, rows, cols)."""
    patches = call.anatomy.patch_grid
    stride = tuple(int(side) for side in patches.stride)
    size = tuple(int(side) for side in patches.patch)
    means = F.avg_pool2d(pixels[:, None], size, stride)[:, 0]
    return means[:, : patches.grid[0], : patches.grid[1]]


def _of_image(score: ResolvedTarget, image: int, feature: Tensor) -> Tensor:
    """A target's score for one image, on several features."""
    of_image = score.rows([image])
    if isinstance(of_image, PerImage):
        target = of_image.targets[0]
        # an image without this target: zeros that depend on the feature, so that they can be differentiated
        return feature.sum(-1) * 0 if target is None else target(feature)
    return of_image(feature)
