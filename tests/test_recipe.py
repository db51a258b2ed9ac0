"""Explainers are made, copied, pickled, compiled around; arguments of another type; the random state."""

import copy
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import limits, tiny
from torch import nn

import legrad
from legrad.models import registry

IMAGES = torch.randn(1, 3, 32, 32)


@pytest.fixture(scope="module")
def embedded():
    return legrad.load("embedded")


@pytest.fixture(scope="module")
def wrapped():
    return legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer)


def pickled(explainer):
    return pickle.loads(pickle.dumps(explainer))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_of_a_loaded_model(embedded, copied):
    images = torch.randn(1, 3, 192, 192)
    again = copied(embedded)
    assert again.model is not embedded.model
    assert torch.equal(again.explain(images, "a cow").relevance, embedded.explain(images, "a cow").relevance)
    assert len(pickle.dumps(embedded)) < 1000
    tuned = legrad.load("embedded")
    with torch.no_grad():
        tuned.model.visual.proj.add_(0.1)
    expected = tuned.explain(images, "a cow").relevance
    assert torch.equal(copied(tuned).explain(images, "a cow").relevance, expected)
    assert not torch.equal(expected, embedded.explain(images, "a cow").relevance)


def test_a_copy_of_a_model_in_memory(wrapped):
    again = copy.deepcopy(wrapped)
    assert again.model is not wrapped.model
    assert torch.equal(again.explain(IMAGES, "a cow").relevance, wrapped.explain(IMAGES, "a cow").relevance)
    with torch.no_grad():
        again.model.visual.proj.add_(1.0)
    assert not torch.equal(again.model.visual.proj, wrapped.model.visual.proj)


def test_a_wrapped_model_is_not_pickled(wrapped):
    with pytest.raises(legrad.InputError, match=r"of legrad\.wrap holds a model in memory and cannot be pickled: make"):
        pickle.dumps(wrapped)


def test_an_explainer_in_another_process(embedded, tmp_path):
    """Loaded again by its name, by an interpreter that knows nothing of this one."""
    images = torch.randn(1, 3, 192, 192)
    torch.save(images, tmp_path / "images.pt")
    (tmp_path / "explainer.pkl").write_bytes(pickle.dumps(embedded))
    code = (
        "import pickle, sys, torch; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "explainer = pickle.loads((folder / 'explainer.pkl').read_bytes())\n"
        "images = torch.load(folder / 'images.pt')\n"
        "torch.save(explainer.explain(images, 'a cow').relevance, folder / 'maps.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert limits.close(torch.load(tmp_path / "maps.pt"), embedded.explain(images, "a cow").relevance, maps=True)


@pytest.mark.parametrize(
    ("cuda", "mps", "dtype", "expected"),
    [
        (True, True, None, "cuda"),
        (False, True, None, "mps"),
        (False, True, torch.float64, "cpu"),
        (False, False, None, "cpu"),
    ],
    ids=["cuda", "mps", "mps-float64", "cpu"],
)
def test_the_device_is_chosen(monkeypatch, cuda, mps, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert registry.automatic_device(dtype) == torch.device(expected, 1 if cuda else None)


def test_loading_asks_for_the_device(monkeypatch, embedded):
    monkeypatch.setattr(registry, "automatic_device", lambda dtype=None: torch.device("meta"))
    for arguments in ({}, {"device": "auto"}, {"device": None}):
        with pytest.raises(legrad.InputError, match="a model on the device 'meta' has no weights"):
            legrad.load("embedded", **arguments)
    assert legrad.load("embedded", device="cpu").anatomy.device.type == "cpu"
    monkeypatch.setattr(registry, "automatic_device", lambda dtype=None: torch.device("cpu"))
    assert embedded.__reduce__()[1][2][1] == "auto"  # the other process chooses anew


def test_a_shallow_copy_shares_the_model(wrapped):
    assert copy.copy(wrapped).model is wrapped.model


def test_what_cannot_be_copied(wrapped):
    own = legrad.wrap(wrapped.model, anatomy=wrapped.anatomy)
    with pytest.raises(legrad.InputError, match=r"anatomy of your own cannot be copied or pickled.*wrap it$"):
        copy.deepcopy(own)
    with pytest.raises(legrad.InputError, match=r"only an explainer of legrad\.load or legrad\.wrap"):
        copy.deepcopy(legrad.Explainer(wrapped.adapter))
    rebuilt = legrad.load("embedded")
    rebuilt.model.visual.proj = nn.Parameter(torch.randn(128, 5))
    with pytest.raises(legrad.InputError, match="'embedded' cannot be copied: its model was rebuilt"):
        copy.deepcopy(rebuilt)


def test_compiled_around(wrapped):
    expected = wrapped.explain(IMAGES, "a cow").relevance
    compiled = torch.compile(lambda x: wrapped.explain(x, "a cow").relevance, backend="eager")
    assert torch.equal(compiled(IMAGES), expected)
    assert torch.equal(torch.compile(wrapped.predict, backend="eager")(IMAGES), wrapped.predict(IMAGES))


def test_loading_draws_no_random_numbers():
    def draw():
        return torch.randn(3).tolist(), random.random(), np.random.rand()

    def seed():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)

    seed()
    expected = draw()
    seed()
    legrad.load("embedded")
    assert draw() == expected


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("anatomy", "x", "anatomy is a legrad.ViTAnatomy, got 'x'"),
        ("anatomy", {}, "anatomy is a legrad.ViTAnatomy, got {}"),
        ("audio_encoder", "x", "audio_encoder is a legrad.AudioEncoder, got 'x'"),
        ("audio_encoder", len, "audio_encoder is a legrad.AudioEncoder, got <built-in"),
        ("transform", 5, "transform is a function or .*, got 5"),
        ("tokenizer", "x", "tokenizer is a function or .*, got 'x'"),
    ],
)
def test_arguments_of_another_type(wrapped, argument, value, message):
    with pytest.raises(legrad.InputError, match=message):
        legrad.wrap(wrapped.model, **{argument: value})


@pytest.mark.parametrize("device", [[], {}, 1.5, True, "nonsense", object()])
def test_devices_that_are_none(wrapped, device):
    for use in (lambda: legrad.load("embedded", device=device), lambda: wrapped.to(device)):
        with pytest.raises(legrad.InputError, match=r"cannot use device|device is a name|cannot be moved to") as told:
            use()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((8000, 3), "encode of legrad.AudioEncoder is a function, got 3"),
        (("x", len), "rate of legrad.AudioEncoder is a whole number from 1, got 'x'"),
        ((8000, len, "tower"), "tower of legrad.AudioEncoder is a torch.nn.Module, got 'tower'"),
        ((8000, len, None, "x"), "shortest of legrad.AudioEncoder is a number"),
        ((8000, len, None, 0.1, -1), "longest of legrad.AudioEncoder is a number"),
    ],
)
def test_an_audio_encoder_of_other_types(wrapped, fields, message):
    with pytest.raises(legrad.InputError, match=message):
        legrad.wrap(wrapped.model, audio_encoder=legrad.AudioEncoder(*fields))
