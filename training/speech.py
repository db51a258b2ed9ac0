"""Train the speech tower on synthesised speech: ``python -m training.speech``.

Every utterance is matched against the frozen text embeddings of all concepts: cross entropy over cosines, plus the
distance to the right one. The image-text model does not change. Needs espeak-ng and about an hour on one CPU core.
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

import legrad
from legrad.embedded import model as embedded
from legrad.embedded.concepts import NAMES
from legrad.embedded.speech import model as speech
from legrad.embedded.speech import synthesis
from legrad.errors import LeGradError
from training import steps
from training.augmentation import Augmenter
from training.vision import PROMPT


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on, besides the code and the frozen text embeddings."""

    utterances: int = 20_000
    clips: int = 281_600  # in all steps together
    batch: int = 128
    pool: int = 4096  # distorted clips that batches are drawn from
    renewed: int = 32  # of them, in every step
    learning_rate: float = 1e-3
    muon_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100  # steps
    temperature: float = speech.TEMPERATURE
    pull: float = 4.0  # weight of the distance to the right text
    seed: int = 0


def text_targets(device: torch.device) -> Tensor:
    """The tower's targets: the text embeddings of all concepts, (concepts, features), normalised."""
    prompts = [PROMPT.format(name) for name in NAMES]
    return legrad.load("embedded").embed(prompts).embeddings.to(device)


def loss_of(embeddings: Tensor, concepts: Tensor, texts: Tensor, temperature: float, pull: float) -> Tensor:
    """Cross entropy of (clips, features) over all texts' cosines, plus ``pull`` times the distance to the right one."""
    cosines = F.normalize(embeddings, dim=-1) @ texts.T
    right = cosines.gather(1, concepts[:, None]).mean()
    return F.cross_entropy(cosines / temperature, concepts) + pull * (1 - right)


def optimizers(tower: speech.SpeechTower, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest, as for the image-text model."""
    parameters = tower.named_parameters()
    return steps.optimizers(parameters, ("blocks.",), recipe.learning_rate, recipe.muon_rate, recipe.weight_decay)


@torch.no_grad()
def retrieved(tower: speech.SpeechTower, waveforms: Sequence[NDArray[np.float32]], texts: Tensor) -> Tensor:
    """The concept whose text is nearest to each waveform, (waveforms,)."""
    similarities = [tower.hear(waveforms[first : first + 100]) @ texts.T for first in range(0, len(waveforms), 100)]
    return torch.cat(similarities).argmax(1).cpu()


class ClipPool:
    """The distorted clips that batches are drawn from; every step renews a part of them.

    The clips of a step depend on the seed and the step alone, so a resumed run has the pool of an uninterrupted one.

    Args:
        data: the utterances.
        recipe: for the sizes and the seed.
        tower: computes the spectrograms.
        step: the step that training starts with.
    """

    def __init__(self, data: synthesis.Cache, recipe: Recipe, tower: speech.SpeechTower, step: int) -> None:
        self._data, self._recipe, self._tower = data, recipe, tower
        self._augmenter = Augmenter(recipe.seed)
        length = recipe.pool // recipe.renewed
        self._parts = deque((self._distorted(earlier) for earlier in range(step + 1 - length, step)), length)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Spectrograms (batch, FRAMES, MELS) and concepts (batch,) of a step; steps come in order."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, 1, step])
        self._parts.append(self._distorted(step))
        parts = rng.integers(len(self._parts), size=recipe.batch)
        rows = rng.integers(recipe.renewed, size=recipe.batch)
        spectrograms, concepts = (
            torch.stack([self._parts[part][column][row] for part, row in zip(parts, rows, strict=True)])
            for column in range(2)
        )
        return self._augmenter.masked(spectrograms, rng), concepts

    def _distorted(self, step: int) -> tuple[Tensor, Tensor]:
        """Spectrograms and concepts of the clips that are new at a step."""
        rng = np.random.default_rng([self._recipe.seed, 0, step % 2**32])
        indices = rng.integers(len(self._data), size=self._recipe.renewed)
        recordings = self._augmenter.recorded([self._data[i] for i in indices], rng)
        clips = torch.from_numpy(np.stack([speech.window_of(recording) for recording in recordings]))
        device = self._tower.mel_filters.device
        with torch.no_grad():
            spectrograms = self._tower.spectrograms(clips.to(device))
        return spectrograms, torch.tensor([self._data.utterances[i].concept for i in indices], device=device)


def rate_factor(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rates: half a cosine from 1 to 0, after a linear warm-up."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)))


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
        recipe: sizes and rates.
        device: where to train.
        log: gets lines of progress.
        save_every: seconds between checkpoints.
    """
    data = synthesis.Cache(folder / "utterances", recipe.seed, recipe.utterances)
    texts = text_targets(device)
    torch.manual_seed(recipe.seed)
    tower = speech.build().to(device).train()
    tower.texts.copy_(texts.half())  # rounded as in the file
    optims = optimizers(tower, recipe)
    rates = steps.learning_rates(optims)
    checkpoint = folder / "checkpoint.pt"
    step, seconds = 0, 0.0
    if (saved := steps.read_checkpoint(checkpoint)) is not None:
        step, seconds = saved["step"], saved["seconds"]
        tower.load_state_dict(saved["tower"])
        for optimizer, state in zip(optims, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        log(f"resumed at step {step}")

    def save() -> dict[str, Any]:
        weights, states = tower.state_dict(), [optimizer.state_dict() for optimizer in optims]
        state = {"tower": weights, "optimizers": states, "step": step, "seconds": seconds}
        steps.write_checkpoint(checkpoint, state)
        return state

    pool = ClipPool(data, recipe, tower, step)
    total = recipe.clips // recipe.batch
    clock = last_save = time.monotonic()
    losses: list[float] = []
    while step < total:
        spectrograms, concepts = pool.batch(step)
        loss = loss_of(tower.predict(spectrograms), concepts, texts, recipe.temperature, recipe.pull)
        steps.update(tower, loss, optims, rates, rate_factor(step, total, recipe.warmup))
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        seconds, clock = seconds + now - clock, now
        if step % 20 == 0 or step == total:
            log(f"step {step}/{total} loss {np.mean(losses[-20:]):.3f} seconds {seconds:.0f}")
        if now - last_save > save_every:
            save()
            last_save = now
    return tower.eval(), save()


def main(
    folder: Annotated[
        Path, typer.Option(help="For speech and checkpoints; an interrupted run goes on from there.")
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
    concepts = retrieved(tower, synthesis.synthesise(held_out), text_targets(torch.device(device)))
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
        "held_out_retrieval": float(
            (concepts == torch.tensor([utterance.concept for utterance in held_out])).float().mean()
        ),
    }
    speech.save(tower, output, card)
    print(json.dumps(speech.card(output), indent=2))


if __name__ == "__main__":
    try:
        typer.run(main)
    except LeGradError as error:
        sys.exit(f"error: {error}")
