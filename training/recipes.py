"""What the image-text models are trained on, in which order, and how fast."""

from dataclasses import dataclass

from legrad.embedded import model as embedded
from legrad.embedded.rendering import TRAINING_SEED


@dataclass(frozen=True)
class Stage:
    """A part of training with one kind of scenes.

    Attributes:
        size: canvas in pixels.
        objects: smallest and largest number of objects per scene.
        pictures: number of images; model cards have this key.
        reference: image size in pixels that the objects' sizes are relative to.
        rate: factor on the learning rates at the stage's beginning and end; half a cosine in between.
        head_only: train only the attentional pooler and the layers after it.
    """

    size: int
    objects: tuple[int, int]
    pictures: int
    reference: int
    rate: tuple[float, float]
    head_only: bool = False


# Small canvases filled with objects are learnt from fastest; the last stage has full scenes.
STAGES = (
    Stage(96, (1, 1), 100_000, 160, (1.0, 0.7)),
    Stage(144, (1, 3), 110_000, 160, (0.7, 0.12)),
    Stage(192, (1, 4), 15_000, 160, (0.12, 0.08)),
    Stage(128, (1, 3), 70_000, 160, (0.5, 0.25)),
    Stage(192, (1, 4), 40_000, 192, (0.25, 0.0)),
    # the second half, from the weights of the first: more and smaller objects, then full scenes again
    Stage(128, (1, 4), 115_200, 150, (0.6, 0.25)),
    Stage(192, (1, 4), 54_400, 184, (0.25, 0.0)),
)
# The attention-pooled model, from the weights that the stages above produce: its new head first.
MAP_STAGES = (
    Stage(128, (1, 4), 19_200, 150, (1.0, 0.5), head_only=True),
    Stage(128, (1, 4), 19_200, 150, (0.35, 0.28)),
    Stage(192, (1, 4), 8_960, 184, (0.2, 0.0)),
    Stage(192, (1, 4), 9_600, 192, (0.35, 0.0)),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on, besides the code and the initial weights."""

    kind: embedded.Kind = "token"
    stages: tuple[Stage, ...] = STAGES
    batch: int = 64
    learning_rate: float = 1.5e-3
    muon_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100  # steps, at the start of every stage
    replays: int = 2  # how often each rendered batch is used, mirrored at random
    seed: int = TRAINING_SEED


# the attention-pooled model's scenes are not those that its trunk was trained on
RECIPES: dict[embedded.Kind, Recipe] = {
    "token": Recipe(),
    "map": Recipe("map", MAP_STAGES, seed=TRAINING_SEED + 10),
}
