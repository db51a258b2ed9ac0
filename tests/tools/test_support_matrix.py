"""A sample of the support matrix is proven again: the first name of every kind, and reasons for the refused ones.

``pytest -m sweep`` (or ``python -m tools.support_matrix``, which also writes the matrix) goes through all names.
"""

import importlib
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, twin
from helpers.matrix_rows import MATRIX, REFUSED, ROWS, SAMPLE, identity, kind

import legrad
from legrad.core import hooks, state
from legrad.core.positions import random_input
from legrad.versions import versions
from tools import support_matrix


def test_the_matrix_shows_the_goal():
    exact = {
        library: sum(row.library == library and row.verdict == "exact" for row in ROWS)
        for library in support_matrix.ZOOS
    }
    assert exact["timm"] >= 290
    assert exact["open_clip"] >= 100
    assert not [row.name for row in ROWS if row.verdict == "fails"]
    assert len(SAMPLE) >= 60


def test_the_matrix_has_every_name():
    """Of the libraries as installed; a newer library asks for a new sweep."""
    current = versions(*support_matrix.LIBRARIES)
    libraries = {"open_clip": "open_clip_torch", "timm": "timm", "torchvision": "torchvision"}
    for library, distribution in libraries.items():
        if MATRIX["versions"][distribution] == current[distribution]:
            names = [row.name for row in ROWS if row.library == library]
            assert names == [name for _, name in support_matrix.everything([library])]


@pytest.mark.parametrize("row", SAMPLE, ids=identity)
def test_one_name_of_every_kind(row):
    found = support_matrix.judge(row.library, row.name)
    assert (found.verdict, kind(found)) == ("exact", kind(row)), found.reason


@pytest.mark.parametrize("row", SAMPLE, ids=identity)
def test_a_broken_anatomy_is_noticed(row):
    """Patches that start one key later, and a head that pools or normalises elsewhere than the model's."""
    model = importlib.import_module(support_matrix.ZOOS[row.library]).build(row.name)
    anatomy = legrad.wrap(model).anatomy
    batch = random_input(anatomy)

    def explain(described):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return legrad.wrap(model, anatomy=described).explain(batch, lambda feature: feature[:, 0])

    good = explain(anatomy)
    native, published = (anatomy.readouts[name].function for name in ("native", "published"))
    wrong = published
    if twin.distance(feature(anatomy, batch, published), feature(anatomy, batch, native)) < limits.DIFFERENT:
        # models that average all tokens and then normalise have one read-out under both names: a scale in front
        def wrong(tokens):
            return native(tokens * torch.linspace(0.5, 1.5, tokens.shape[-1]))

    with pytest.raises(legrad.TruthCheckError, match="native read-out"):
        explain(replace(anatomy, readouts={**anatomy.readouts, "native": legrad.Readout(wrong)}))
    if anatomy.keys_to_grid is None:
        try:
            shifted = explain(replace(anatomy, num_prefix_keys=anatomy.num_prefix_keys + 1))
        except legrad.TruthCheckError:
            return
        assert twin.distance(shifted.relevance, good.relevance) > limits.DIFFERENT


@pytest.mark.parametrize("row", SAMPLE, ids=identity)
def test_every_kind_of_target(row):
    """Each gives the map of the function of the feature that it stands for."""
    explainer = legrad.wrap(importlib.import_module(support_matrix.ZOOS[row.library]).build(row.name))
    anatomy = explainer.anatomy
    batch, other = random_input(anatomy, batch=2), random_input(anatomy, seed=1)
    with state.evaluation_mode(explainer.model), state.evaluation_mode(anatomy.tower, anatomy.call_settings):
        answer, target = anatomy.run(batch), anatomy.run(other)[0]
    if anatomy.output == "logits":
        best = answer.argmax(-1).tolist()
        pairs = [
            (2, lambda f: f[:, 2]),
            (legrad.PREDICTED, lambda f: f.gather(1, torch.tensor(best[-len(f) :])[:, None])[:, 0]),
            (legrad.Contrast(1, 0), lambda f: f[:, 1] - f[:, 0]),
        ]
    else:
        target, opposite = F.normalize(target, dim=-1), F.normalize(torch.randn_like(target), dim=-1)
        pairs = [
            (3 * target, lambda f: f @ target),
            (legrad.Similar(other), lambda f: f @ target),
            (legrad.Contrast(opposite, target), lambda f: f @ (opposite - target)),
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = explainer.explain(batch, [kind for kind, _ in pairs])
        expected = explainer.explain(batch, [function for _, function in pairs], memory=1 << 40)
        own = explainer.explain(batch, [[pairs[0][0]], [kind for kind, _ in pairs[1:]]])
    assert limits.close(found.scores, expected.scores)
    maps = (one.relevance.flatten(3)[..., None] for one in (found, expected))
    assert twin.distance(*maps) < limits.FLOAT32
    assert own.valid.tolist() == [[True, False], [True, True]]
    assert limits.close(own.relevance[0, 0], found.relevance[0, 0])
    assert limits.close(own.relevance[1], found.relevance[1, 1:])


def feature(anatomy, batch, function):
    """(1, features, 1) of the last block's tokens."""
    with state.evaluation_mode(anatomy.tower, anatomy.call_settings), hooks.record(anatomy.blocks) as outputs:
        anatomy.run(batch)
        tokens = anatomy.to_tokens(outputs[-1])
        return function(tokens)[..., None]


@pytest.mark.parametrize("row", REFUSED, ids=identity)
def test_refused_names_get_one_clear_sentence(row):
    prefix = {"open_clip": "open_clip", "timm": "timm", "torchvision": "torchvision"}.get(row.library)
    assert row.reason
    if prefix:
        with pytest.raises(legrad.UnsupportedModelError) as caught:
            legrad.load(f"{prefix}:{row.name}/some_tag" if prefix == "open_clip" else f"{prefix}:{row.name}")
        assert row.reason in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.sweep
@pytest.mark.parametrize("library", support_matrix.ZOOS)
def test_every_name(library):
    for _, name in support_matrix.everything([library]):
        found = support_matrix.judge(library, name)
        assert found.verdict != "fails", f"{name}: {found.reason}"
