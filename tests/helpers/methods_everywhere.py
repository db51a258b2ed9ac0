"""Every method on any model: a map, a flat one, or why there is none; run as a program, it counts them."""

import importlib
import math
import warnings
from collections import Counter
from typing import Any

import torch

import legrad
from legrad.core import state
from legrad.core.positions import random_input
from legrad.methods import METHODS

TARGETS = 4  # the positive part of the evidence for a single random one may be nothing


def outcome(explainer: legrad.Explainer, method: str) -> str:
    """ "map", "flat" (the same value everywhere, for every target), or the sentence of an ``UnsupportedModelError``.

    Raises:
        AssertionError: a map of the wrong shape, or that is not finite.
    """
    anatomy = explainer.anatomy
    batch = random_input(anatomy)
    with (
        torch.no_grad(),
        state.evaluation_mode(explainer.model),
        state.evaluation_mode(anatomy.tower, anatomy.call_settings),
    ):
        features = anatomy.run(batch).shape[-1]
    directions = torch.randn(TARGETS, features, generator=torch.Generator().manual_seed(0))
    targets: Any = [lambda feature, one=one: feature @ one.to(feature) for one in directions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # maps of tiny random models are flat, or look alike
        try:
            found = explainer.explain(batch, targets, method=method).relevance
        except legrad.UnsupportedModelError as error:
            return str(error)
    assert found.shape[:2] == (1, TARGETS)
    assert math.prod(found.shape[2:]) == math.prod(anatomy.grid)
    assert bool(torch.isfinite(found).all())
    maps = found.flatten(2)
    return "map" if bool((maps.amax(-1) > maps.amin(-1)).any()) else "flat"


def main() -> None:
    """How many kinds of models in the support matrix each method gives a map for."""
    from helpers.matrix_rows import SAMPLE
    from tools import support_matrix

    counts: Counter[str] = Counter()
    for row in SAMPLE:
        explainer = legrad.wrap(importlib.import_module(support_matrix.ZOOS[row.library]).build(row.name))
        counts.update(name for name in METHODS if outcome(explainer, name) in ("map", "flat"))
    print(f"of {len(SAMPLE)} kinds: " + ", ".join(f"{name} {counts[name]}" for name in METHODS))


if __name__ == "__main__":
    main()
