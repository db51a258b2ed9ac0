"""How good is the embedded ear, and does LeGrad find what it hears? ``python -m training.evaluate_speech``.

Held-out voices and held-out scenes only; needs espeak-ng. Every number has a 95 % interval (bootstrap over utterances
or scenes):

- retrieval: is the text of the spoken concept the nearest of all 200 texts; for new speakers with the trained accents
  and with new accents, as they come and in noisy rooms;
- pointing game, prompt-swap and mIoU of LeGrad's default maps, prompted by a held-out voice and by text.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import legrad
from legrad.atomic import write_atomically
from legrad.embedded.concepts import NAMES
from legrad.embedded.rendering import TRAINING_SEEDS, scene
from legrad.embedded.speech import model as speech
from legrad.embedded.speech import synthesis
from legrad.errors import LeGradError
from legrad.metrics import segmentation
from legrad.metrics.bootstrap import intervals, mean_of, ratio_of
from training.augmentation import Augmenter
from training.evaluate_vision import points, swaps
from training.speech import retrieved, text_targets
from training.vision import PROMPT

SNR = 10.0  # dB, of the noisy condition
_NOISE_SEED = 1  # rooms and noises that training did not have
_BATCH = 20
_MIOU = segmentation.RATIOS.index("miou")
HELD_OUT: tuple[synthesis.Split, ...] = ("variants", "accents")
KINDS = {"variants": "new voices", "accents": "new voices, new accents"}
Interval = dict[str, float | None]


def noisy(waveforms: Sequence[NDArray[np.float32]], seed: int = _NOISE_SEED) -> list[NDArray[np.float32]]:
    """The same utterances in rooms and noise that training did not have, at SNR dB, clips of full length."""
    augment, rng = Augmenter(seed), np.random.default_rng(seed)
    found: list[NDArray[np.float32]] = []
    for first in range(0, len(waveforms), 100):
        clips = augment.placed(waveforms[first : first + 100], rng)
        found += list(augment.heard(clips, rng, (SNR, SNR), quiet=0).numpy())
    return found


def retrieval(tower: speech.SpeechTower, split: synthesis.Split, n: int, seed: int) -> dict[str, Interval]:
    """Share of utterances whose own text is the nearest of all, {"clean" | "noisy": interval}."""
    said = [synthesis.utterance(split, seed, index) for index in range(n)]
    waveforms = synthesis.spoken(said)
    concepts, texts = torch.tensor([one.concept for one in said]), text_targets(torch.device("cpu"))
    conditions = {"clean": waveforms, "noisy": noisy(waveforms)}
    hits = {name: (retrieved(tower, heard, texts) == concepts).tolist() for name, heard in conditions.items()}
    return intervals({name: mean_of(values) for name, values in hits.items()}, n)


def localisation(
    explainer: legrad.Explainer, split: synthesis.Split, n: int, seed: int, progress: Callable[..., Any] = track
) -> dict[str, dict[str, Interval]]:
    """LeGrad's default maps on scenes of 2 to 4 objects, {question: {"text" | "speech": interval}}.

    "ratio" has one more entry: the mIoU of speech as a share of that of text, on the same draws of scenes.
    """
    if seed in TRAINING_SEEDS:
        raise legrad.InputError("this seed was trained on; take another")
    rows: dict[str, list[dict[str, Any]]] = {"text": [], "speech": []}
    for start in progress(range(0, n, _BATCH), description=f"localisation, {KINDS[split]}"):
        made = [scene(seed, i, objects=(2, 4)) for i in range(start, min(start + _BATCH, n))]
        said = [
            synthesis.utterance(split, seed, NAMES.index(name) + len(NAMES) * (start + row))
            for row, one in enumerate(made)
            for name in one.names
        ]
        waveforms = iter(synthesis.spoken(said))
        targets: list[list[Any]] = [
            [PROMPT.format(name) for name in one.names]
            + [legrad.Audio(next(waveforms), speech.RATE) for _ in one.names]
            for one in made
        ]
        maps = explainer.explain([one.image for one in made], targets).saliency()
        for one, own in zip(made, maps, strict=True):
            count, masks = len(one.names), torch.from_numpy(one.masks)
            rows["text"].append(_measured(own[:count], masks))
            rows["speech"].append(_measured(own[count : 2 * count], masks))
    return _summary(rows, n)


def _measured(maps: Tensor, masks: Tensor) -> dict[str, Any]:
    """One scene: maps and masks (K, H, W) -> its counts."""
    confusions = [
        segmentation.confusion(segmentation.foreground(one.numpy()), mask.numpy())
        for one, mask in zip(maps, masks, strict=True)
    ]
    total = {name: sum(one[name] for one in confusions) for name in ("tp", "fp", "fn", "tn")}
    return {"pointing": points(maps, masks), "swap": swaps(maps, masks), **total}


def _summary(rows: Mapping[str, list[dict[str, Any]]], n: int) -> dict[str, dict[str, Interval]]:
    def share(sums: Any) -> float:
        return float(sums[0] / sums[1])

    result: dict[str, dict[str, Interval]] = {}
    for question in ("pointing", "swap"):
        counts = {name: np.array([row[question] for row in found]) for name, found in rows.items()}
        result[question] = intervals({name: ratio_of(share, table) for name, table in counts.items()}, n)
    pixels = {name: segmentation.counts_of(found) for name, found in rows.items()}
    miou = {name: ratio_of(lambda sums: segmentation.ratios(sums)[_MIOU], table) for name, table in pixels.items()}
    both = ratio_of(
        lambda sums: segmentation.ratios(sums[4:])[_MIOU] / segmentation.ratios(sums[:4])[_MIOU],
        np.concatenate([pixels["text"], pixels["speech"]], 1),
    )
    result["miou"] = intervals(miou, n)
    result["ratio"] = intervals({"speech": both}, n)
    return result


def evaluate(
    explainer: legrad.Explainer, utterances: int, scenes: int, seed: int, progress: Callable[..., Any] = track
) -> dict[str, dict[str, Any]]:
    """All numbers: {"variants" | "accents": {"retrieval": ..., "pointing": ..., "swap": ..., "miou": ..., ...}}."""
    hearing = explainer.adapter.audio_encoder
    if hearing is None or not isinstance(hearing.tower, speech.SpeechTower):
        raise legrad.InputError("this is about legrad.load('embedded:speech')")
    return {
        split: {
            "retrieval": retrieval(hearing.tower, split, utterances, seed),
            **localisation(explainer, split, scenes, seed, progress),
        }
        for split in HELD_OUT
    }


def main(
    utterances: Annotated[int, typer.Option(help="Held-out utterances per kind of voice.")] = 1000,
    scenes: Annotated[int, typer.Option(help="Held-out scenes per kind of voice.")] = 200,
    seed: Annotated[int, typer.Option(help="Of utterances and scenes.")] = 2,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the numbers; a page (.md) comes beside it.")
    ] = None,
) -> None:
    """Print retrieval, pointing game, prompt-swap and mIoU for held-out voices, with 95 % intervals."""
    results = evaluate(legrad.load("embedded:speech"), utterances, scenes, seed)
    table = Table(*HEADER, title=f"embedded:speech, {utterances} utterances and {scenes} scenes per kind of voice")
    for row in rows(results):
        table.add_row(*row)
    Console(width=110).print(table)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "utterances": utterances,
            "scenes": scenes,
            "seed": seed,
            "card": speech.card(),
            "held out": {"accents": synthesis.HELD_OUT_ACCENTS, "variants": synthesis.HELD_OUT_VARIANTS},
            "espeak-ng": synthesis.version(),
            "results": results,
        }
        write_atomically(output, json.dumps(content, indent=2).encode())
        write_atomically(output.with_suffix(".md"), markdown(content).encode())


HEADER = ("what", *KINDS.values())
_ROWS = {
    "retrieval among 200": ("retrieval", "clean"),
    f"retrieval among 200, noisy rooms, {SNR:.0f} dB": ("retrieval", "noisy"),
    "pointing game, speech": ("pointing", "speech"),
    "pointing game, text": ("pointing", "text"),
    "prompt-swap, speech": ("swap", "speech"),
    "prompt-swap, text": ("swap", "text"),
    "mIoU, speech": ("miou", "speech"),
    "mIoU, text": ("miou", "text"),
    "mIoU, speech / text": ("ratio", "speech"),
}


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows: name, one cell per kind of voice."""
    return [
        [name, *[_cell(results[split][question][asked]) for split in KINDS]]
        for name, (question, asked) in _ROWS.items()
    ]


def _cell(found: Interval) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def markdown(content: Mapping[str, Any]) -> str:
    """The page about the speech tower: its card and its scores."""
    card, held_out = content["card"], content["held out"]
    recipe = card["recipe"]
    scores = "\n".join(f"| {' | '.join(row)} |" for row in rows(content["results"]))
    return f"""# The embedded model that hears

Made by `python -m training.evaluate_speech --output docs/embedded-speech-model.json`; do not edit.

`legrad.load("embedded:speech")` is [the embedded model](embedded-model.md), its weights unchanged, with an ear: a small
spectrogram transformer that was trained to map a spoken name to where the model's own text tower puts the written one.
It understands the names of the {len(NAMES)} concepts, spoken by the synthesiser espeak-ng; recorded human voices were
never heard or tested.

- Input: mono at {speech.RATE // 1000} kHz, {speech.SAMPLES / speech.RATE} s, laid so that they end
  shortly after the last loud sound. {speech.MELS} mel bands, {speech.FRAMES} frames of {speech.WINDOW} samples,
  {speech.HOP} apart, as decades below the loudest cell: how loud a sound is plays no part.
- Model: timm's `VisionTransformer`, {speech.TRUNK["depth"]} blocks, width {speech.TRUNK["embed_dim"]}, patches of
  {speech.TRUNK["patch_size"][0]} bands x {speech.TRUNK["patch_size"][1]} frames ({speech.TOKENS} tokens),
  a linear head on all tokens;
  {speech.WEIGHTS.stat().st_size / 1e6:.1f} MB in half precision.
- Data: {card["data"]}. {recipe["utterances"]:,} utterances ({card["espeak-ng"]}), from which
  {card["steps"] * recipe["renewed"] + recipe["pool"]:,} distorted clips were made.
- Accents: {", ".join(card["accents"])}. Variants: {", ".join(card["variants"])}.
- Phrases: {", ".join(f"“{one.format('NAME')}”" for one in card["phrases"])}; one in five says another word for the same
  thing (“puppy”).
- Targets: {card["targets"]}. Cross entropy over the cosines with all {len(NAMES)} texts (temperature
  {recipe["temperature"]}) plus {recipe["pull"]:g} times the cosine distance to the own one.
- The result is the mean of all texts, weighted by the softmax of these cosines at the same temperature: for a word that
  is understood, nearly the written one's embedding.
- Training: {card["steps"]:,} steps of {recipe["batch"]} clips, {card["seconds"] / 60:.0f} minutes ({card["machine"]},
  torch {card["torch"]}).
- Note: {card.get("note", "none.")}

## Scores

{content["utterances"]:,} utterances and {content["scenes"]:,} scenes of 2 to 4 objects per kind of voice (seed
{content["seed"]}), 95 % intervals. None of these voices was trained on: variants {", ".join(held_out["variants"])},
with the trained accents (left) and with {" and ".join(held_out["accents"])} (right). Retrieval: the text of the spoken
concept is the nearest of all {len(NAMES)}. Localisation is LeGrad with default settings: the map's maximum lies in the
object's mask; the map of A is higher over A's mask than over B's; mIoU of object and background, where the object is
what exceeds the map's own mean, pixels summed over all scenes.

| {" | ".join(HEADER)} |
| --- | --- | --- |
{scores}
"""


if __name__ == "__main__":
    try:
        typer.run(main)
    except LeGradError as error:
        sys.exit(f"error: {error}")
