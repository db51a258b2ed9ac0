"""Train the embedded model from image-level names: ``python -m training.vision``.

Every image is matched against the texts of all concepts with a sigmoid loss (Zhai et al., arXiv:2303.15343). The
model is never given a mask, a box or the position of an object. Stages go from small canvases with one object to full
scenes; position embeddings are interpolated in between. Needs about four hours on two CPU cores, minutes on a GPU.

``--kind map`` trains the attention-pooled model, from the weights of the class-token model (``warm_start``).
"""

import json
import math
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from legrad.embedded import model as embedded
from legrad.embedded.concepts import CONCEPTS, NAMES
from legrad.embedded.rendering import scene as render
from legrad.embedded.tokenizer import VOCABULARY, WordTokenizer
from training import steps
from training.batches import Batches, Replay, mirrored_at_random
from training.recipes import RECIPES, Recipe, Stage
from training.warm_start import ORIGIN, warm_start

Log = Callable[[str], object]
PROMPT = "a photo of a {}"
TEMPLATES = (PROMPT, "{}", "a {}", "the {}", "a picture of a {}", "a picture of the {}", "there is a {} in the scene")


def vocabulary() -> list[str]:
    """All words of names, aliases and templates, sorted, plus the plural s."""
    texts = [text for concept in CONCEPTS for text in (concept.name, *concept.aliases)]
    texts += [template.format("") for template in TEMPLATES]
    return sorted({word for text in texts for word in text.lower().split()} | {"s"})


def prompts(rng: random.Random) -> list[str]:
    """One text per concept: the plain prompt half of the time, else another template, alias or plural."""
    texts = []
    for concept in CONCEPTS:
        template, name = PROMPT, concept.name
        if rng.random() < 0.5:
            template = rng.choice(TEMPLATES)
        if concept.aliases and rng.random() < 0.25:
            name = rng.choice(concept.aliases)
        if not name.endswith("s") and rng.random() < 0.05:
            name += "s"
        texts.append(template.format(name))
    return texts


def text_features(model: Any, tokens: Tensor) -> Tensor:
    """``model.encode_text`` without the columns of padding: the texts are short and the mask is causal."""
    tower = getattr(model, "text", model)
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(1)] @ tower.text_projection


def loss_of(model: Any, images: Tensor, labels: Tensor, tokens: Tensor) -> Tensor:
    """Sigmoid loss, summed over the concepts and averaged over the images."""
    image = F.normalize(model.encode_image(images), dim=-1)
    text = F.normalize(text_features(model, tokens), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T + model.logit_bias
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()


@torch.no_grad()
def recall(model: Any, tokenizer: WordTokenizer, device: torch.device, stage: Stage, n: int, seed: int = 1) -> float:
    """recall@k on ``n`` held-out scenes: the share of the k present objects among the k best-scoring concepts."""
    model.eval()
    text = F.normalize(model.encode_text(tokenizer([PROMPT.format(name) for name in NAMES]).to(device)), dim=-1)
    hits = total = 0
    for first in range(0, n, 50):
        scenes = [
            render(seed, first + i, stage.size, stage.objects, reference=stage.reference)
            for i in range(min(50, n - first))
        ]
        images = embedded.normalise(torch.from_numpy(np.stack([scene.image for scene in scenes]))).to(device)
        order = (F.normalize(model.encode_image(images), dim=-1) @ text.T).argsort(descending=True).tolist()
        for scene, ranking in zip(scenes, order, strict=True):
            best = {NAMES[i] for i in ranking[: len(scene.names)]}
            hits += len(best & set(scene.names))
            total += len(scene.names)
    model.train()
    return hits / total


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and pooler, AdamW for the rest."""
    return steps.optimizers(
        model.named_parameters(),
        ("blocks.", "attn_pool."),
        recipe.learning_rate,
        recipe.muon_rate,
        recipe.weight_decay,
    )


def set_learning(model: Any, head_only: bool) -> None:
    """Train all weights, or only those after the trunk; no gradient is computed for the others."""
    for name, parameter in model.named_parameters():
        after_trunk = name.startswith(("visual.trunk.attn_pool.", "visual.head.", "logit_"))
        parameter.requires_grad_(after_trunk or not head_only)


def start(recipe: Recipe, initial: Path | None, size: int) -> Any:
    """The model before the first step: random weights, or those of a file of either kind."""
    if initial is None:
        return embedded.build(WordTokenizer(vocabulary()).vocab_size, size, recipe.kind)
    model, _ = embedded.load(initial)
    if embedded.kind_of(model) != recipe.kind:
        stage = replace(recipe.stages[0], size=embedded.IMAGE_SIZE, reference=embedded.IMAGE_SIZE)
        images, _ = Batches(stage, recipe.batch, recipe.seed, 0, 1)[0]
        model = warm_start(model, embedded.normalise(images))
    return embedded.at_size(model, size)


class Training:
    """A model in training, with its optimizers, its progress and its checkpoint.

    Args:
        folder: holds the checkpoint.
        recipe: stages and rates.
        device: of the model.
        initial: weights to start from, see ``train``.
        first_stage: the stage to begin with.

    Attributes:
        model: in training mode.
        stage: index of the current stage; the number of stages when training is complete.
        step: steps so far.
        stage_step: of them, in the current stage.
        seconds: time that these steps took, interrupted runs included.
        total: steps of all stages from the first one on.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, device: torch.device, initial: Path | None, first_stage: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.device = recipe, device
        self.stage, self.step, self.stage_step, self.seconds = first_stage, 0, 0, 0.0
        self.total = sum(stage.pictures // recipe.batch for stage in recipe.stages[first_stage:])
        torch.manual_seed(recipe.seed)
        self.model = start(recipe, initial, recipe.stages[first_stage].size).to(device).train()
        self.optimizers = optimizers(self.model, recipe)
        self._rates = steps.learning_rates(self.optimizers)
        self._checkpoint = folder / "checkpoint.pt"

    def resume(self) -> bool:
        """Go on from the checkpoint; False if there is none."""
        state = steps.read_checkpoint(self._checkpoint)
        if state is None:
            return False
        self.stage, self.step, self.stage_step, self.seconds = (
            state[key] for key in ("stage", "step", "stage_step", "seconds")
        )
        # the checkpoint of a complete run has no next stage
        self.resize(self.recipe.stages[min(self.stage, len(self.recipe.stages) - 1)].size)
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        return True

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stage": self.stage,
            "step": self.step,
            "stage_step": self.stage_step,
            "seconds": self.seconds,
        }
        steps.write_checkpoint(self._checkpoint, state)

    def resize(self, size: int) -> None:
        """Bring the model to another image size; the optimizers start anew."""
        self.model = embedded.at_size(self.model, size).to(self.device).train()
        self.optimizers = optimizers(self.model, self.recipe)

    def learn(self, images: Tensor, labels: Tensor, tokens: Tensor, factor: float) -> float:
        """One step; returns the loss.

        Args:
            images: (B, 3, H, W) inputs.
            labels: (B, concepts) in {0, 1}.
            tokens: (concepts, context_length), a text for every concept.
            factor: on the learning rates.
        """
        loss = loss_of(self.model, images, labels, tokens)
        steps.update(self.model, loss, self.optimizers, self._rates, factor)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        self.step += 1
        self.stage_step += 1
        return loss.item()


def rate_factor(stage: Stage, stage_step: int, stage_steps: int, warmup: int) -> float:
    """Factor on the learning rates: half a cosine between the stage's two rates, after a linear warm-up."""
    first, last = stage.rate
    factor = last + (first - last) * 0.5 * (1 + math.cos(math.pi * stage_step / stage_steps))
    return factor * min(1.0, (stage_step + 1) / warmup)


def train_stage(training: Training, tokenizer: WordTokenizer, workers: int, log: Log, save_every: float) -> None:
    """Train for the rest of the current stage.

    Args:
        training: is changed.
        tokenizer: of the texts.
        workers, log, save_every: see ``train``.
    """
    recipe = training.recipe
    stage = recipe.stages[training.stage]
    set_learning(training.model, stage.head_only)
    stage_steps = stage.pictures // recipe.batch
    replay = Replay(recipe, training.stage, training.stage_step, workers)
    clock = last_save = time.monotonic()
    running = None
    while training.stage_step < stage_steps:
        rng = random.Random(recipe.seed * 1_000_003 + training.step)
        pixels, labels = replay.batch(training.stage_step, rng)
        images = mirrored_at_random(embedded.normalise(pixels.to(training.device)), rng)
        tokens = tokenizer(prompts(rng)).to(training.device)
        factor = rate_factor(stage, training.stage_step, stage_steps, recipe.warmup)
        loss = training.learn(images, labels.to(training.device), tokens, factor)
        running = loss if running is None else 0.98 * running + 0.02 * loss
        now = time.monotonic()
        training.seconds, clock = training.seconds + now - clock, now
        if training.step % 50 == 0:
            progress = f"stage {training.stage} step {training.step}/{training.total}"
            log(f"{progress} loss {running:.3f} seconds {training.seconds:.0f}")
        if now - last_save > save_every:
            training.save()
            last_save = now


def train(
    folder: Path,
    recipe: Recipe,
    device: torch.device,
    workers: int = 1,
    log: Log = print,
    save_every: float = 120,
    validation: int = 500,
    initial: Path | None = None,
    first_stage: int = 0,
) -> Any:
    """Train, or go on from ``folder/checkpoint.pt``; returns the model and leaves the checkpoint.

    Args:
        folder: holds the checkpoint.
        recipe: stages and rates.
        device: where to train.
        workers: processes that render scenes.
        log: gets lines of progress.
        save_every: seconds between checkpoints.
        validation: held-out scenes that are evaluated after each stage.
        initial: weights to start from; default random ones. The attention-pooled model can start from the class-token
            model's.
        first_stage: the stage to begin with, counted from 0; for weights that were trained by the ones before.
    """
    tokenizer = WordTokenizer(vocabulary())
    training = Training(folder, recipe, device, initial, first_stage)
    if training.resume():
        log(f"resumed at stage {training.stage}, step {training.step}")
    while training.stage < len(recipe.stages):
        stage = recipe.stages[training.stage]
        train_stage(training, tokenizer, workers, log, save_every)
        score = recall(training.model, tokenizer, device, stage, validation)
        log(f"stage {training.stage} done: held-out recall@k {score:.3f}")
        training.stage, training.stage_step = training.stage + 1, 0
        if training.stage < len(recipe.stages) and recipe.stages[training.stage].size != stage.size:
            training.resize(recipe.stages[training.stage].size)
        training.save()
    return training.model


def main(
    kind: Annotated[
        embedded.Kind, typer.Option(help="Where the image feature comes from: class token or MAP head.")
    ] = "token",
    folder: Annotated[
        Path | None,
        typer.Option(help="Where checkpoints go, an interrupted run goes on from there; default runs/embedded[-map]."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cuda" if torch.cuda.is_available() else "cpu",
    scale: Annotated[float, typer.Option(help="Multiplies the number of images of every stage.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes that render scenes.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Where the weights go; default into the package.")] = None,
    initial: Annotated[
        Path | None,
        typer.Option(help="Weights to start from; default none, for `--kind map` the shipped class-token model's."),
    ] = None,
    first_stage: Annotated[int, typer.Option(help="The stage to begin with; for --initial.")] = 0,
) -> None:
    """Train an embedded model and write weights, vocabulary and model card."""
    recipe = RECIPES[kind]
    recipe = replace(
        recipe, stages=tuple(replace(stage, pictures=int(stage.pictures * scale)) for stage in recipe.stages)
    )
    folder = folder or Path("runs/embedded" if kind == "token" else f"runs/embedded-{kind}")
    output = output or embedded.FILES[kind]
    if kind == "map" and initial is None:
        initial = embedded.WEIGHTS
    model = train(
        folder,
        recipe,
        torch.device(device),
        workers,
        log=lambda line: print(line, flush=True),
        initial=initial,
        first_stage=first_stage,
    )
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    words = vocabulary()
    if output == embedded.WEIGHTS:
        VOCABULARY.write_text("\n".join(words) + "\n", encoding="utf-8")
    embedded.save(
        model,
        output,
        {
            "kind": kind,
            "start": "random weights" if initial is None else _origin(initial, kind),
            "data": "scenes of emoji on textured backgrounds, image-level names only (no masks, boxes, patch labels)",
            "recipe": asdict(recipe),
            "steps": state["step"],
            "pictures": state["step"] * recipe.batch,
            "seconds": round(state["seconds"]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
            "torch": torch.__version__,
            "held_out_recall_at_k": recall(model, WordTokenizer(words), torch.device(device), recipe.stages[-1], 2000),
        },
    )
    print(json.dumps(embedded.card(output), indent=2))


def _origin(initial: Path, kind: embedded.Kind) -> str:
    """The origin of the initial weights, for the card."""
    card = embedded.card(initial)
    source = f"the weights of {initial.name}, trained on {card['pictures']:,} images"
    return source if card.get("kind", "token") == kind else f"{source}; {ORIGIN}"


if __name__ == "__main__":
    typer.run(main)
