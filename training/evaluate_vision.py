"""How good is an embedded model, and does LeGrad find its objects? ``python -m training.evaluate_vision``.

Held-out scenes only (seeds outside ``TRAINING_SEEDS``). Three questions, each with a 95 % interval (bootstrap over
scenes):

- recall@k: of a scene's k objects, how many are among the k best-scoring of all concepts ("a photo of a NAME");
- pointing game: does the maximum of an object's map lie inside its mask;
- prompt-swap: for every ordered pair of objects A, B of a scene, is the map of A higher, in the mean, over A's mask
  than over B's.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import legrad
from legrad.atomic import write_atomically
from legrad.core import hooks, state
from legrad.embedded import model
from legrad.embedded.concepts import NAMES
from legrad.embedded.rendering import TRAINING_SEEDS, Scene, scene
from legrad.inputs import geometry

PROMPT = "a photo of a {}"
_BATCH = 20
_RESAMPLES = 2000
# name for ``legrad.load`` -> its weights and the file of its published numbers in docs/
MODELS = {
    "embedded": (model.WEIGHTS, "embedded-model.json"),
    "embedded:map": (model.MAP_WEIGHTS, "embedded-map-model.json"),
}


def interval(hits: Sequence[float], totals: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of sums with its 95 % bootstrap interval over scenes: (value, low, high)."""
    counts = np.asarray([hits, totals], np.float64)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, counts.shape[1], (_RESAMPLES, counts.shape[1]))
    sums = counts[:, draws].sum(-1)
    low, high = np.percentile(sums[0] / sums[1], [2.5, 97.5])
    return float(counts[0].sum() / counts[1].sum()), float(low), float(high)


def points(maps: Tensor, masks: Tensor) -> tuple[int, int]:
    """Pointing game of one scene: maps and masks (K, H, W) -> (hits, K)."""
    best = maps.flatten(1).argmax(1)
    return int(masks.flatten(1)[torch.arange(len(best)), best].sum()), len(best)


def swaps(maps: Tensor, masks: Tensor) -> tuple[int, int]:
    """Prompt-swap of one scene: maps and masks (K, H, W) -> (ordered pairs won, ordered pairs)."""
    weights = masks.flatten(1).to(maps.dtype)
    means = maps.flatten(1) @ weights.T / weights.sum(1)  # (map, mask)
    won = means.diagonal()[:, None] > means
    return int(won.sum()), len(maps) * (len(maps) - 1)


def recall_at_k(similarity: Tensor, names: Sequence[str]) -> tuple[int, int]:
    """Similarity of one scene with all concepts (concepts,) -> (found among the k best, k)."""
    best = similarity.topk(len(names)).indices.tolist()
    return len({NAMES[i] for i in best} & set(names)), len(names)


def _raw_attention(explainer: legrad.Explainer, images: Tensor) -> Tensor:
    """The attention that makes the image feature, mean over heads: (images, rows, cols).

    It goes from the class token in the last block, or from the pooler's query, to the patches.
    """
    anatomy = explainer.anatomy
    with state.evaluation_mode(explainer.model), hooks.record(anatomy.blocks) as outputs:
        anatomy.run(images)
        if anatomy.route == "pooler":
            attention = _pooler_attention(anatomy.tower, outputs[-1])
        else:
            block: Any = anatomy.blocks[-1]
            tokens = block.ln_1(outputs[-2])
            attention = block.attn(tokens, tokens, tokens, need_weights=True)[1][:, 0, anatomy.num_prefix_tokens :]
    return attention.unflatten(1, anatomy.grid)


def _pooler_attention(tower: Any, tokens: Tensor) -> Tensor:
    """What timm's pooler attends to, mean over heads: the last block's tokens (B, N, D) -> (B, N)."""
    pool = tower.trunk.attn_pool
    keys = pool.kv(tower.trunk.norm(tokens)).chunk(2, -1)[0].unflatten(-1, (pool.num_heads, pool.head_dim))
    query = pool.q(pool.latent)[0, 0].unflatten(-1, (pool.num_heads, pool.head_dim))
    attention: Tensor = torch.einsum("hd,bnhd->bhn", query * pool.scale, keys).softmax(-1).mean(1)
    return attention


def _maps(explainer: legrad.Explainer, made: Sequence[Scene]) -> Iterator[tuple[str, list[Tensor]]]:
    """(method, maps (K, rows, cols) of every scene) for all that is compared."""
    pictures = [one.image for one in made]
    targets = [[PROMPT.format(name) for name in one.names] for one in made]
    counts = [len(one.names) for one in made]
    default = explainer.anatomy.default_readout
    for readout in ("published", "native"):
        found = explainer.explain(pictures, targets, readout=readout, keep_layers=True)
        assert found.layer_relevance is not None
        depth = found.layer_relevance.shape[2]
        for last in range(1, depth + 1):
            merged = found.layer_relevance[:, :, -last:].mean(2)
            name = f"LeGrad, {readout}, last {last} of {depth} layers"
            if last == depth and readout == default:
                name += " (default)"
            yield name, [maps[:count] for maps, count in zip(merged, counts, strict=True)]
    images = explainer.prepare(list(pictures)).tensor.to(explainer.anatomy.device)
    attention = _raw_attention(explainer, images).cpu()
    yield "raw attention", [one.expand(count, -1, -1) for one, count in zip(attention, counts, strict=True)]
    rows, cols = explainer.anatomy.grid
    generator = torch.Generator().manual_seed(len(pictures[0]) + int(pictures[0].sum()))
    yield "random", [torch.rand(count, rows, cols, generator=generator) for count in counts]
    y, x = torch.linspace(-1, 1, rows)[:, None], torch.linspace(-1, 1, cols)[None, :]
    yield "centre prior", [(-(y**2) - x**2).expand(count, -1, -1) for count in counts]


def evaluate(explainer: legrad.Explainer, n: int, seed: int, progress: Callable[..., Any] = track) -> dict[str, Any]:
    """All numbers, as {name: {"recall" | "pointing" | "swap": (value, low, high)}}."""
    if seed in TRAINING_SEEDS or seed + 1 in TRAINING_SEEDS:
        raise legrad.InputError("this seed was trained on; take another")
    texts = explainer.embed([PROMPT.format(name) for name in NAMES]).embeddings.cpu()
    results: dict[str, Any] = {}
    found: list[tuple[int, int]] = []
    for start in progress(range(0, n, _BATCH), description="recognition"):
        made = [scene(seed, i) for i in range(start, min(start + _BATCH, n))]
        features = explainer.predict([m.image for m in made])
        found += [recall_at_k(row, m.names) for row, m in zip(features @ texts.T, made, strict=True)]
    results["model"] = {"recall": interval(*zip(*found, strict=True))}
    counts: dict[str, dict[str, list[tuple[int, int]]]] = {}
    cells = explainer.anatomy.patch_grid
    for start in progress(range(0, n, _BATCH), description="localisation"):
        made = [scene(seed + 1, i, objects=(2, 4)) for i in range(start, min(start + _BATCH, n))]
        for name, maps in _maps(explainer, made):
            entry = counts.setdefault(name, {"pointing": [], "swap": []})
            for one, m in zip(maps, made, strict=True):
                size = m.image.shape[:2]
                placed = geometry.place(one.contiguous(), geometry.Placement(size, size), cells, size)
                masks = torch.from_numpy(m.masks)
                entry["pointing"].append(points(placed, masks))
                entry["swap"].append(swaps(placed, masks))
    for name, entry in counts.items():
        results[name] = {question: interval(*zip(*pairs, strict=True)) for question, pairs in entry.items()}
    return results


def main(
    name: Annotated[str, typer.Option("--model", help=f"One of {', '.join(MODELS)}.")] = "embedded",
    n: Annotated[int, typer.Option(help="Held-out scenes per question.")] = 2000,
    seed: Annotated[int, typer.Option(help="Their seed; localisation uses the next one.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the numbers; a page (.md) comes beside it.")
    ] = None,
) -> None:
    """Print recall@k, pointing game and prompt-swap on held-out scenes, with 95 % intervals."""
    if name not in MODELS:
        raise typer.BadParameter(f"unknown model {name!r}; expected one of {', '.join(MODELS)}", param_hint="--model")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)  # now, not when minutes of work are done
    results = evaluate(legrad.load(name, device=device), n, seed)
    table = Table("what", *QUESTIONS.values(), title=f"{name}, {n} held-out scenes, 95 % intervals")
    for row, cells in rows(results):
        table.add_row(row, *cells)
    Console(width=110).print(table)
    if output is not None:
        weights, _ = MODELS[name]
        content = {"model": name, "scenes": n, "seed": seed, "card": model.card(weights), "results": results}
        write_atomically(output, json.dumps(content, indent=2).encode())
        write_atomically(output.with_suffix(".md"), markdown(content).encode())


QUESTIONS = {"recall": "recall@k", "pointing": "pointing game", "swap": "prompt-swap"}


def rows(results: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(name, one cell per question) of every row of the table."""
    for name, numbers in results.items():
        found = [numbers.get(question) for question in QUESTIONS]
        yield name, ["" if c is None else f"{c[0]:.3f} [{c[1]:.3f}, {c[2]:.3f}]" for c in found]


_ABOUT = {
    "embedded": """# The embedded model

Made by `python -m training.evaluate_vision --output docs/{page}`; do not edit.
Its attention-pooled sibling: [embedded-map-model.md](embedded-map-model.md).

An open_clip `CLIP`: class-token ViT of""",
    "embedded:map": """# The embedded model with an attentional pooler

Made by `python -m training.evaluate_vision --model embedded:map --output docs/{page}`; do not edit.
The model with a class token: [embedded-model.md](embedded-model.md).

`legrad.load("embedded:map")` judges the pooler route on trained weights. Trained by
`python -m training.vision --kind map`, which resumes from `runs/embedded-map`. Its trunk was **not** trained from
random weights but from those of the class-token model (see Start): the two models are relatives, not independent
witnesses.

An open_clip `CustomTextCLIP` with a timm trunk that SigLIP's are made of (no prefix tokens, MAP head, whose MLP is
narrower than SigLIP's to stay below 12 MB): ViT of""",
}


def markdown(content: dict[str, Any]) -> str:
    """The page about an embedded model: its card and its scores."""
    card, name = content["card"], content["model"]
    _, page = MODELS[name]
    stages = "\n".join(
        f"| {s['size']} | {s['objects'][0]} to {s['objects'][1]} | {s['pictures']:,} | "
        f"{s['rate'][0]} to {s['rate'][1]} | {'head' if s.get('head_only') else 'all'} |"
        for s in card["recipe"]["stages"]
    )
    scores = "\n".join(f"| {row} | {' | '.join(cells)} |" for row, cells in rows(content["results"]))
    return f"""{_ABOUT[name].format(page=page)} {model.VISION["layers"]} blocks,
width {model.VISION["width"]}, patches of {model.VISION["patch_size"]} pixels on
{model.IMAGE_SIZE} x {model.IMAGE_SIZE}; a text transformer of {model.TEXT["layers"]} layers with a word-and-byte
tokenizer. It knows {len(NAMES)} concepts as emoji draw them, and nothing of photographs.

- Start: {card.get("start", "random weights")}.
- Data: {card["data"]}.
- Training: {card["pictures"]:,} images in {card["steps"]:,} steps, {card["seconds"] / 60:.0f} minutes
  ({card["machine"]}, torch {card["torch"]}); sigmoid loss of every image against the texts of all concepts.
- Note: {card.get("note", "none")}.

| canvas | objects | images | learning rate, relative | learns |
| --- | --- | --- | --- | --- |
{stages}

## Scores

{content["scenes"]:,} held-out scenes per question (seed {content["seed"]} for recognition, the next one for
localisation on scenes of 2 to 4 objects), 95 % intervals. recall@k: the k objects among the k best of all concepts.
Pointing game: the map's maximum lies in the object's mask. Prompt-swap: the map of A is higher over A's mask than over
B's, for every ordered pair.

| what | {" | ".join(QUESTIONS.values())} |
| --- | --- | --- | --- |
{scores}
"""


if __name__ == "__main__":
    typer.run(main)
