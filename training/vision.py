"""Train the embedded model from image-level names: ``python -m training.vision``.

Every image is matched against the texts of all concepts with a sigmoid loss (Zhai et al., arXiv:2303.15343). The
model never sees a mask, a box or where an object was pasted. Stages go from small canvases with one object to full
scenes; position embeddings are interpolated in between. Needs about four hours on two CPU cores, minutes on a GPU.

``--kind map`` trains the attention-pooled sibling, from the weights of the first model (``warm_start``).
"""

import json
import math
import os
import platform
import random
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from legrad.atomic import draft_of
from legrad.embedded import model as embedded
from legrad.embedded.concepts import CONCEPTS, NAMES
from legrad.embedded.rendering import TRAINING_SEED, scene
from legrad.embedded.tokenizer import VOCABULARY, WordTokenizer
from training.warm_start import ORIGIN, warm_start

PROMPT = "a photo of a {}"
TEMPLATES = (PROMPT, "{}", "a {}", "the {}", "an image of a {}", "an image of the {}", "there is a {} in the scene")


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Attributes:
        size: canvas in pixels.
        objects: smallest and largest number of objects per scene.
        images: how many.
        reference: image size in pixels that the objects' sizes are relative to.
        rate: factor on the learning rates at the stage's beginning and end; half a cosine in between.
        head_only: only the attentional pooler and what follows it learn.
    """

    size: int
    objects: tuple[int, int]
    pictures: int
    reference: int
    rate: tuple[float, float]
    head_only: bool = False


# Small canvases filled with objects teach most per second; the last stage settles on full scenes.
STAGES = (
    Stage(96, (1, 1), 100_000, 160, (1.0, 0.7)),
    Stage(144, (1, 3), 110_000, 160, (0.7, 0.12)),
    Stage(192, (1, 4), 15_000, 160, (0.12, 0.08)),
    Stage(128, (1, 3), 70_000, 160, (0.5, 0.25)),
    Stage(192, (1, 4), 40_000, 192, (0.25, 0.0)),
    # the second half, from the weights of the first: crowds of smaller objects, then full scenes again
    Stage(128, (1, 4), 115_200, 150, (0.6, 0.25)),
    Stage(192, (1, 4), 54_400, 184, (0.25, 0.0)),
)
# The attention-pooled sibling, from the weights that the stages above have made: its new head first.
MAP_STAGES = (
    Stage(128, (1, 4), 19_200, 150, (1.0, 0.5), head_only=True),
    Stage(128, (1, 4), 19_200, 150, (0.35, 0.28)),
    Stage(192, (1, 4), 8_960, 184, (0.2, 0.0)),
    Stage(192, (1, 4), 9_600, 192, (0.35, 0.0)),
)


@dataclass(frozen=True)
class Recipe:
    """All that training depends on, besides the code and the weights it starts from."""

    kind: embedded.Kind = "token"
    stages: tuple[Stage, ...] = STAGES
    batch: int = 64
    learning_rate: float = 1.5e-3
    muon_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100  # steps, at the start of every stage
    replays: int = 2  # each rendered batch is used that often, mirrored at random
    seed: int = TRAINING_SEED


# the sibling's scenes are not those that its trunk has seen already
RECIPES: dict[embedded.Kind, Recipe] = {
    "token": Recipe(),
    "map": Recipe("map", MAP_STAGES, seed=TRAINING_SEED + 10),
}


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch number -> images (B, H, W, 3) uint8 and labels (B, concepts) float in {0, 1}."""

    def __init__(self, stage: Stage, batch: int, seed: int, first: int, count: int) -> None:
        self.stage, self.batch, self.seed, self.first, self.count = stage, batch, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = (self.first + index) * self.batch
        labels = torch.zeros(self.batch, len(NAMES))
        images = []
        for row in range(self.batch):
            stage = self.stage
            made = scene(self.seed, start + row, stage.size, stage.objects, reference=stage.reference)
            labels[row, [NAMES.index(name) for name in made.names]] = 1
            images.append(torch.from_numpy(made.image))
        return torch.stack(images), labels


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
    """``model.encode_text`` on the used columns only: the texts are short and the mask is causal."""
    tower = getattr(model, "text", model)
    used = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :used]
    x = tower.token_embedding(tokens) + tower.positional_embedding[:used]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:used, :used]))
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
        made = [
            scene(seed, first + i, stage.size, stage.objects, reference=stage.reference)
            for i in range(min(50, n - first))
        ]
        images = embedded.normalise(torch.from_numpy(np.stack([s.image for s in made]))).to(device)
        order = (F.normalize(model.encode_image(images), dim=-1) @ text.T).argsort(descending=True).tolist()
        for s, ranked in zip(made, order, strict=True):
            best = {NAMES[i] for i in ranked[: len(s.names)]}
            hits += len(best & set(s.names))
            total += len(s.names)
    model.train()
    return hits / total


def optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and pooler (half the images of AdamW for the same loss), AdamW for the rest."""
    named = list(model.named_parameters())
    muon = [p for n, p in named if recipe.muon_rate and p.ndim == 2 and ("blocks." in n or "attn_pool." in n)]
    chosen = {id(p) for p in muon}
    matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in chosen]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    ]
    if muon:
        result.append(
            torch.optim.Muon(
                muon, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return result


def set_learning(model: Any, head_only: bool) -> None:
    """Let all weights learn, or only those behind the trunk; no gradient is computed for the others."""
    for name, parameter in model.named_parameters():
        behind = name.startswith(("visual.trunk.attn_pool.", "visual.head.", "logit_"))
        parameter.requires_grad_(behind or not head_only)


def start(recipe: Recipe, initial: Path | None, size: int) -> Any:
    """The model before the first step: random weights, or those of a file, of either kind."""
    if initial is None:
        return embedded.build(WordTokenizer(vocabulary()).vocab_size, size, recipe.kind)
    model, _ = embedded.load(initial)
    if embedded.kind_of(model) != recipe.kind:
        stage = replace(recipe.stages[0], size=embedded.IMAGE_SIZE, reference=embedded.IMAGE_SIZE)
        images, _ = Batches(stage, recipe.batch, recipe.seed, 0, 1)[0]
        model = warm_start(model, embedded.normalise(images))
    return embedded.resized(model, size)


def train(
    folder: Path,
    recipe: Recipe,
    device: torch.device,
    workers: int = 1,
    log: Any = print,
    save_every: float = 120,
    validation: int = 500,
    initial: Path | None = None,
    first_stage: int = 0,
) -> Any:
    """Train, or go on from ``folder/checkpoint.pt``; returns the model and leaves the checkpoint.

    Args:
        folder: holds the checkpoint.
        recipe: what to do.
        device: where to do it.
        workers: processes that draw scenes.
        log: gets lines of progress.
        save_every: seconds between checkpoints.
        validation: held-out scenes that are looked at after each stage.
        initial: weights to start from; default random ones. The sibling can start from the class-token model's.
        first_stage: the stage to begin with, counted from 0; for weights that have seen the ones before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    torch.manual_seed(recipe.seed)
    tokenizer = WordTokenizer(vocabulary())
    model = start(recipe, initial, recipe.stages[first_stage].size)
    model = model.to(device).train()
    optims = optimizers(model, recipe)
    stage_index, step, stage_step = first_stage, 0, 0
    seconds = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stage_index, step, stage_step, seconds = (state[k] for k in ("stage", "step", "stage_step", "seconds"))
        model = embedded.resized(model, recipe.stages[stage_index].size)
        model.load_state_dict(state["model"])
        model = model.to(device).train()
        optims = optimizers(model, recipe)
        for optim, saved in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(saved)
        log(f"resumed at stage {stage_index}, step {step}")

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizers": [optim.state_dict() for optim in optims],
            "stage": stage_index,
            "step": step,
            "stage_step": stage_step,
            "seconds": seconds,
        }
        with draft_of(checkpoint) as draft:
            torch.save(state, draft)

    total = sum(stage.pictures // recipe.batch for stage in recipe.stages[first_stage:])
    rates = [[group["lr"] for group in optim.param_groups] for optim in optimizers(model, recipe)]
    while stage_index < len(recipe.stages):
        stage = recipe.stages[stage_index]
        set_learning(model, stage.head_only)
        steps = stage.pictures // recipe.batch
        rendered = -(-steps // recipe.replays)
        # after an odd number of steps the last batch is drawn again: a resumed run starts with an empty ring
        done = stage_step // recipe.replays
        stage_seed = recipe.seed + stage_index
        data = Batches(stage, recipe.batch, stage_seed, done, rendered - done)
        loader = iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))
        ring: deque[tuple[Tensor, Tensor]] = deque(maxlen=128)
        clock = last_save = time.monotonic()
        running = None
        while stage_step < steps:
            rng = random.Random(recipe.seed * 1_000_003 + step)
            if stage_step % recipe.replays == 0 or not ring:
                ring.append(next(loader))
                pictures, labels = ring[-1]
            else:
                # rows of several old batches, so that no batch comes back whole
                parts = [rng.choice(ring) for _ in range(4)]
                rows = [slice(i * recipe.batch // 4, (i + 1) * recipe.batch // 4) for i in range(4)]
                pictures = torch.cat([part[0][r] for part, r in zip(parts, rows, strict=True)])
                labels = torch.cat([part[1][r] for part, r in zip(parts, rows, strict=True)])
            images = embedded.normalise(pictures.to(device))
            mirrored = torch.tensor([rng.random() < 0.5 for _ in range(len(images))], device=device)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            first, last = stage.rate
            factor = last + (first - last) * 0.5 * (1 + math.cos(math.pi * stage_step / steps))
            factor *= min(1.0, (stage_step + 1) / recipe.warmup)
            for optim, base in zip(optims, rates, strict=True):
                for group, rate in zip(optim.param_groups, base, strict=True):
                    group["lr"] = rate * factor
            loss = loss_of(model, images, labels.to(device), tokenizer(prompts(rng)).to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optim in optims:
                optim.step()
                optim.zero_grad()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            step += 1
            stage_step += 1
            now = time.monotonic()
            seconds, clock = seconds + now - clock, now
            if step % 50 == 0:
                log(f"stage {stage_index} step {step}/{total} loss {running:.3f} seconds {seconds:.0f}")
            if now - last_save > save_every:
                save()
                last_save = now
        log(f"stage {stage_index} done: held-out recall@k {recall(model, tokenizer, device, stage, validation):.3f}")
        stage_index, stage_step = stage_index + 1, 0
        if stage_index < len(recipe.stages) and recipe.stages[stage_index].size != stage.size:
            model = embedded.resized(model, recipe.stages[stage_index].size).to(device).train()
            optims = optimizers(model, recipe)
        save()
    return model


def main(
    kind: Annotated[
        embedded.Kind, typer.Option(help="What makes the image feature: class token or MAP head.")
    ] = "token",
    folder: Annotated[
        Path | None,
        typer.Option(help="Where checkpoints go, an interrupted run goes on from there; default runs/embedded[-map]."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cuda" if torch.cuda.is_available() else "cpu",
    scale: Annotated[float, typer.Option(help="Multiplies the number of images of every stage.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes that draw scenes.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Where the weights go; default into the package.")] = None,
    initial: Annotated[
        Path | None,
        typer.Option(help="Weights to start from; default none, for `--kind map` the shipped class-token model's."),
    ] = None,
    first_stage: Annotated[int, typer.Option(help="The stage to begin with; for --initial.")] = 0,
) -> None:
    """Train the embedded model, or its sibling, and write weights, vocabulary and model card."""
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
    """Where the first weights came from, for the card."""
    card = embedded.card(initial)
    told = f"the weights of {initial.name}, trained on {card['pictures']:,} images"
    return told if card.get("kind", "token") == kind else f"{told}; {ORIGIN}"


if __name__ == "__main__":
    typer.run(main)
