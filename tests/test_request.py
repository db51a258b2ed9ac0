"""Arguments of a wrong type: one line each, and numpy's numbers where Python's are."""

import numpy as np
import pytest
import torch
from helpers import tiny

import legrad
from legrad import heads

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend")


@pytest.fixture(scope="module")
def explainer():
    return legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer)


@pytest.fixture(scope="module")
def x():
    return torch.randn(1, 3, 32, 32)


ODD = (None, 7.5, [], {}, b"x", object(), np.zeros((2, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["method", "readout", "fit", "memory", "null_threshold", "keep_layers"])
@pytest.mark.parametrize("value", ODD, ids=[type(value).__name__ for value in ODD])
def test_odd_values_of_every_argument(explainer, x, name, value):
    with pytest.raises(legrad.InputError, match=name) as told:
        explainer.explain(x, "cat", **{name: value})
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", True),
        ("memory", -1),
        ("memory", 1e9),
        ("memory", np.zeros(1, int)),
        ("keep_layers", "no"),
        ("keep_layers", 1),
        ("null_threshold", True),
        ("null_threshold", "0.5"),
        ("null_threshold", float("nan")),
        ("layers", True),
        ("layers", [True]),
        ("layers", 1.0),
        ("layers", "1"),
        ("layers", [0.0]),
        ("layers", [[0]]),
        ("layers", {}),
        ("layers", object()),
        ("layers", np.zeros((0,), int)),
        ("size", True),
        ("size", "x"),
        ("fit", "crop"),
    ],
)
def test_values_that_are_not_guessed(explainer, x, name, value):
    with pytest.raises(legrad.InputError, match=name):
        explainer.explain(x, "cat", **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("memory", np.int64(1 << 30), 1 << 30),
        ("layers", np.int32(2), 2),
        ("layers", np.arange(2), [0, 1]),
        ("layers", torch.tensor([0, 1]), [0, 1]),
        ("layers", torch.tensor([2]), [2]),
        ("layers", torch.tensor(2), 2),
        ("keep_layers", np.True_, True),
        ("null_threshold", np.float32(0.5), 0.5),
    ],
)
def test_numbers_of_numpy_and_torch(explainer, x, name, value, same):
    found, expected = (explainer.explain(x, "cat", null_target="a", **{name: given}) for given in (value, same))
    assert torch.equal(found.relevance, expected.relevance)
    assert found.layers == expected.layers
    assert (found.layer_relevance is None) == (expected.layer_relevance is None)


@pytest.mark.parametrize("value", [np.arange(2), torch.tensor([0, 1]), (0, 1), range(2), {0, 1}, iter([0, 1])])
def test_heads_in_any_collection(value):
    assert heads.of_heads(value).name == "legrad:heads=0+1"


@pytest.mark.parametrize("value", [None, 1.5, [1.0], [True], True, [], {}, "some", [-1], [0, 0], object()])
def test_heads_that_are_none(value):
    with pytest.raises(legrad.InputError, match="heads="):
        heads.of_heads(value)


def test_something_else_than_an_explainer(x):
    with pytest.raises(legrad.InputError, match="head_relevance takes what"):
        heads.head_relevance("embedded", x, "cat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": 5}, "labels"),
        ({"labels": [1]}, "labels"),
        ({"anatomy": "x"}, r"anatomy is a legrad\.ViTAnatomy, got 'x'"),
        ({"anatomy": {}}, "anatomy"),
        ({"audio_encoder": "x"}, r"audio_encoder is a legrad\.AudioEncoder"),
        ({"audio_encoder": len}, "audio_encoder"),
        ({"audio_encoder": legrad.AudioEncoder("fast", len)}, "rate of legrad.AudioEncoder"),
        ({"audio_encoder": legrad.AudioEncoder(8000, "x")}, "encode of legrad.AudioEncoder"),
        ({"transform": 7}, "transform is a function"),
        ({"tokenizer": "x"}, "tokenizer is a function"),
    ],
)
def test_wrong_parts_of_a_model(arguments, message):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL)
    with pytest.raises(legrad.InputError, match=message):
        legrad.wrap(model, **arguments)
    with pytest.raises(legrad.InputError, match="Module"):
        legrad.wrap("model", anatomy=legrad.wrap(model).anatomy)


@pytest.mark.parametrize("device", [[], {}, 1.5, "nowhere"])
def test_devices_that_are_none(explainer, device):
    for call in (explainer.to, lambda value: legrad.load("embedded", device=value)):
        with pytest.raises(legrad.InputError, match="device"):
            call(device)


@pytest.mark.parametrize("maps", [None, 7, torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 1, 4, 4)])
def test_methods_that_give_no_maps(explainer, x, maps):
    from dataclasses import replace

    method = replace(legrad.methods.METHODS["gradcam"], name="mine", function=lambda call: maps)
    with pytest.raises(legrad.InputError, match=r"method 'mine': its function returns .*\(1, 1, layers, 4, 4\), got"):
        explainer.explain(x, "cat", method=method)


@pytest.mark.parametrize(
    "setting", [{"masks": 0}, {"masks": 1.5}, {"side": 0}, {"keep": 2}, {"window": 0}, {"window": 99}], ids=str
)
def test_settings_of_methods(explainer, x, setting):
    from dataclasses import replace
    from functools import partial

    from legrad.methods import METHODS, black_box

    name = "occlusion" if "window" in setting else "rise"
    method = replace(METHODS[name], function=partial(getattr(black_box, name), **setting))
    with pytest.raises(legrad.InputError, match=f"{name}: {next(iter(setting))}"):
        explainer.explain(x, "cat", method=method)
