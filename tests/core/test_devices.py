"""Another device than the processor: everything that a call needs is moved there, and the answer comes back."""

import importlib
import warnings

import pytest
import torch
from helpers import limits, other_device, tiny, twin
from helpers.matrix_rows import SAMPLE, identity

import legrad
from legrad import methods
from legrad.core.positions import random_input
from tools import support_matrix

# one name for every way through the code
ROWS = {(row.library, row.route, row.attention, row.tail): row for row in SAMPLE}


def both(model, ask):
    """What ``ask(explainer)`` gives on the processor and elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = ask(legrad.wrap(model, tokenizer=tiny.tokenizer))
        with other_device.pretend():
            model.to(other_device.DEVICE)
            there = ask(legrad.wrap(model, tokenizer=tiny.tokenizer))
    assert type(there.relevance) is torch.Tensor
    assert type(there.scores) is torch.Tensor
    return here, there


def test_a_forgotten_move_is_found_out():
    with other_device.pretend():
        weight = torch.nn.Linear(3, 3).to(other_device.DEVICE).weight
        assert weight.device == other_device.DEVICE
        with pytest.raises(RuntimeError, match="two devices"):
            weight @ torch.ones(3, 3)
        moved = weight @ torch.ones(3, 3).to(weight.device)
        assert type(moved.detach().cpu()) is torch.Tensor
        assert torch.equal(moved.detach().cpu(), weight.detach().cpu() @ torch.ones(3, 3))


@pytest.mark.parametrize("row", ROWS.values(), ids=identity)
def test_every_kind_of_model(row):
    model = importlib.import_module(support_matrix.ZOOS[row.library]).build(row.name)
    batch = random_input(legrad.wrap(model).anatomy, batch=2)
    here, there = both(model, lambda explainer: explainer.explain(batch, lambda feature: feature[:, 0]))
    assert twin.distance(there.relevance, here.relevance) < limits.FLOAT32
    assert limits.close(there.scores, here.scores)


@pytest.mark.parametrize("readout", ["published", "native"])
def test_every_kind_of_target_of_an_embedding(readout):
    batch, image = torch.randn(3, 3, 32, 32), torch.randn(1, 3, 32, 32)
    targets = [
        "cat",
        legrad.Prompts("dog", ["a {}", "{}!"]),
        legrad.ZeroShot(["cat", "dog", "bus"]),
        legrad.Similar(image),
        legrad.Contrast("cat", "dog"),
        torch.randn(32),
        lambda feature: feature[:, :3].sum(1),
    ]
    here, there = both(
        tiny.clip(),
        lambda explainer: explainer.explain(
            batch, targets, readout=readout, null_target="a", keep_layers=True, memory=1 << 24
        ),
    )
    assert twin.distance(there.relevance, here.relevance) < limits.FLOAT32
    assert twin.distance(there.layer_relevance, here.layer_relevance) < limits.FLOAT32
    assert there.labels == here.labels


def test_every_kind_of_target_of_a_classifier():
    model = importlib.import_module(support_matrix.ZOOS["timm"]).build("vit_tiny_patch16_224")
    batch = random_input(legrad.wrap(model).anatomy, batch=3)
    classes = [[0, legrad.PREDICTED], [1, 2], [legrad.Contrast(legrad.PREDICTED, 3), 4]]
    here, there = both(model, lambda explainer: explainer.explain(batch, classes, size=None))
    assert twin.distance(there.relevance, here.relevance) < limits.FLOAT32
    assert torch.equal(there.predicted, here.predicted)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("clip", method) for method in methods.METHODS if method != "uniform"),  # a map of zeros
        *(("siglip", method) for method in ("legrad", "gradcam", "chefercam", "lrp")),
    ],
)
def test_every_method(name, method):
    model, batch = tiny.TOWERS[name](), torch.randn(2, 3, 32, 32)
    here, there = both(model, lambda explainer: explainer.explain(batch, torch.ones(2, 32), method=method))
    # a difference of scores is as exact as the scores are
    of = here.scores if method == "occlusion" else None
    assert limits.close(there.relevance, here.relevance, maps=True, of=of)


def test_another_input_size():
    batch = torch.randn(1, 3, 48, 40)
    here, there = both(tiny.clip(), lambda explainer: explainer.explain(batch, torch.ones(32)))
    assert there.relevance.shape == (1, 1, 6, 5)
    assert twin.distance(there.relevance, here.relevance) < limits.FLOAT32


def test_a_sound_is_heard_where_the_model_is():
    """The ear moves along, and its own answer comes back; it is explained there, too."""
    clip, image = legrad.embedded.SPOKEN / "cow.wav", torch.randn(1, 3, 192, 192)
    explainer = legrad.load("embedded:speech")
    targets = [legrad.Audio(clip), "a photo of a bell"]
    here, ear = explainer.explain(image, targets), explainer.explain_audio(clip, "a photo of a cow")
    with other_device.pretend():
        explainer.to(other_device.DEVICE)
        there, moved = explainer.explain(image, targets), explainer.explain_audio(clip, "a photo of a cow")
    assert twin.distance(there.relevance, here.relevance) < limits.FLOAT32
    assert twin.distance(moved.relevance, ear.relevance) < limits.FLOAT32
