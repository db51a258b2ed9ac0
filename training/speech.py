"""Train the speech tower on synthesised speech: ``python -m training.speech``.

Every utterance is matched against the frozen text embeddings of all concepts: cross entropy over cosines, plus the
distance to its own one. The image-text model is not touched. Needs espeak-ng and about an hour on one CPU core.
"""

import json
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from torch import Tensor

from legrad.atomic import draft_of
from legrad.embedded import model as embedded
from legrad.embedded.concepts import NAMES
from legrad.embedded.speech import model as speech
from legrad.embedded.speech import synthesis
from legrad.errors import LeGradError
from training.augmentation import Augmenter
from training.vision import PROMPT


@dataclass(frozen=True)
class Recipe:
    """All that training depends on, besides the code and the frozen text embeddings."""

    utterances: int = 20_000
    clips: int = 281_600  # drawn in all
    batch: int = 128
    pool: int = 4096  # distorted clips that batches are drawn from
    renewed: int = 32  # of them, every step
    learning_rate: float = 1e-3
    muon_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100  # steps
    temperature: float = speech.TEMPERATURE
    pull: float = 4.0  # weight of the distance to the own text
    seed: int = 0


def text_targets(device: torch.device) -> Tensor:
    """What the tower learns to say: the text embeddings of all concepts, (concepts, features), normalised."""
    model, tokenizer = embedded.load()
    with torch.no_grad():
        return F.normalize(model.encode_text(tokenizer([PROMPT.format(name) for name in NAMES])), dim=-1).to(device)


def loss_of(embeddings: Tensor, concepts: Tensor, texts: Tensor, temperature: float, pull: float) -> Tensor:
    """Cross entropy of (clips, features) over all texts' cosines, plus ``pull`` times the distance to the own one."""
    cosines = F.normalize(embeddings, dim=-1) @ texts.T
    own = cosines.gather(1, concepts[:, None]).mean()
    return F.cross_entropy(cosines / temperature, concepts) + pull * (1 - own)


def optimizers(tower: speech.SpeechTower, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest, as for the image-text model."""
    named = list(tower.named_parameters())
    muon = [p for n, p in named if p.ndim == 2 and "blocks." in n]
    chosen = {id(p) for p in muon}
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2 and id(p) not in chosen], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True),
        torch.optim.Muon(muon, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
    ]


@torch.no_grad()
def retrieved(tower: speech.SpeechTower, waveforms: Sequence[NDArray[np.float32]], texts: Tensor) -> Tensor:
    """The concept whose text is nearest to each waveform, (waveforms,)."""
    found = [tower.hear(waveforms[first : first + 100]) @ texts.T for first in range(0, len(waveforms), 100)]
    return torch.cat(found).argmax(1).cpu()


def train(
    folder: Path,
    recipe: Recipe,
    device: torch.device,
    log: Callable[[str], Any] = print,
    save_every: float = 60,
) -> tuple[speech.SpeechTower, dict[str, Any]]:
    """Train, or go on from ``folder/checkpoint.pt``; returns the tower and its state, leaves the checkpoint.

    Args:
        folder: holds the checkpoint and the synthesised utterances.
        recipe: what to do.
        device: where to do it.
        log: gets lines of progress.
        save_every: seconds between checkpoints.
    """
    data = synthesis.Cache(folder / "utterances", recipe.seed, recipe.utterances)
    augment = Augmenter(recipe.seed)
    texts = text_targets(device)
    torch.manual_seed(recipe.seed)
    tower = speech.build().to(device).train()
    tower.texts.copy_(texts.half())  # rounded as the file will hold them
    optims = optimizers(tower, recipe)
    rates = [[group["lr"] for group in optim.param_groups] for optim in optims]
    checkpoint = folder / "checkpoint.pt"
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        step, seconds = state["step"], state["seconds"]
        tower.load_state_dict(state["tower"])
        for optim, saved in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(saved)
        log(f"resumed at step {step}")

    def save() -> dict[str, Any]:
        state = {
            "tower": tower.state_dict(),
            "optimizers": [optim.state_dict() for optim in optims],
            "step": step,
            "seconds": seconds,
        }
        with draft_of(checkpoint) as draft:
            torch.save(state, draft)
        return state

    def distorted(step: int) -> tuple[Tensor, Tensor]:
        """Spectrograms and concepts of what comes new at a step."""
        rng = np.random.default_rng([recipe.seed, 0, step % 2**32])
        chosen = rng.integers(len(data), size=recipe.renewed)
        heard = augment.recorded([data[i] for i in chosen], rng)
        clips = torch.from_numpy(np.stack([speech.window_of(one) for one in heard]))
        with torch.no_grad():
            spectrograms = tower.spectrograms(clips.to(device))
        return spectrograms, torch.tensor([data.utterances[i].concept for i in chosen], device=device)

    # what the steps before this one would have left
    pool = deque(
        (distorted(past) for past in range(step + 1 - recipe.pool // recipe.renewed, step)),
        recipe.pool // recipe.renewed,
    )
    steps = recipe.clips // recipe.batch
    clock = last_save = time.monotonic()
    losses: list[float] = []
    while step < steps:
        rng = np.random.default_rng([recipe.seed, 1, step])
        pool.append(distorted(step))
        parts, rows = rng.integers(len(pool), size=recipe.batch), rng.integers(recipe.renewed, size=recipe.batch)
        pairs = [(pool[part][0][row], pool[part][1][row]) for part, row in zip(parts, rows, strict=True)]
        spectrograms = augment.masked(torch.stack([one for one, _ in pairs]), rng)
        concepts = torch.stack([one for _, one in pairs])
        factor = min((step + 1) / recipe.warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for optim, base in zip(optims, rates, strict=True):
            for group, rate in zip(optim.param_groups, base, strict=True):
                group["lr"] = rate * factor
        loss = loss_of(tower.guess(spectrograms), concepts, texts, recipe.temperature, recipe.pull)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        seconds, clock = seconds + now - clock, now
        if step % 20 == 0 or step == steps:
            log(f"step {step}/{steps} loss {np.mean(losses[-20:]):.3f} seconds {seconds:.0f}")
        if now - last_save > save_every:
            save()
            last_save = now
    return tower.eval(), save()


def main(
    folder: Annotated[
        Path, typer.Option(help="Where speech and checkpoints go; an interrupted run goes on from there.")
    ] = Path("runs/speech"),
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cuda" if torch.cuda.is_available() else "cpu",
    scale: Annotated[float, typer.Option(help="Multiplies the number of clips.")] = 1.0,
    output: Annotated[Path, typer.Option(help="Where the weights go; default into the package.")] = speech.WEIGHTS,
) -> None:
    """Train the speech tower and write weights and model card."""
    recipe = Recipe()
    recipe = replace(recipe, clips=int(recipe.clips * scale))
    tower, state = train(folder, recipe, torch.device(device), log=lambda line: print(line, flush=True))
    held_out = [synthesis.utterance("variants", 0, index) for index in range(600)]
    found = retrieved(tower, synthesis.spoken(held_out), text_targets(torch.device(device)))
    card = {
        "data": "names of the concepts, synthesised by espeak-ng and distorted: pace, rooms, microphones, noise",
        "espeak-ng": synthesis.version(),
        "accents": synthesis.ACCENTS,
        "variants": synthesis.VARIANTS,
        "phrases": sorted(set(synthesis.PHRASES)),
        "targets": f"text embeddings of {PROMPT.format('NAME')!r} by {embedded.WEIGHTS.name}",
        "recipe": asdict(recipe),
        "steps": state["step"],
        "seconds": round(state["seconds"]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}",
        "torch": torch.__version__,
        "held_out_retrieval": float((found == torch.tensor([one.concept for one in held_out])).float().mean()),
    }
    speech.save(tower, output, card)
    print(json.dumps(speech.card(output), indent=2))


if __name__ == "__main__":
    try:
        typer.run(main)
    except LeGradError as error:
        sys.exit(f"error: {error}")
