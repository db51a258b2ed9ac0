"""Values of an anatomy that cannot be right, functions that return something else, weights without data: one line."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.zoo import timm as zoo_timm
from torch import nn

import legrad
from legrad.models.checks import holds_matrix

IMAGES = torch.randn(1, 3, 32, 32)
EMBEDDING = torch.randn(32)


@pytest.fixture
def known():
    return legrad.wrap(tiny.clip()).anatomy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tower": None}, r"tower is the vision tower, a torch\.nn\.Module, got NoneType"),
        ({"tower": nn.Identity()}, "tower is the module with the weights, and this Identity has none"),
        ({"run": None}, "run is a function, got NoneType"),
        ({"library": 5}, "library is a name, got int"),
        ({"notes": 5}, "notes are sentences, got 5"),
        ({"explained_attentions": (1,)}, r"indices, from 0 to 0 \(a block has attentions=1\), each once, got \(1,\)"),
        ({"explained_attentions": ()}, r"explained_attentions are indices"),
        ({"explained_attentions": (0, 0), "attentions": 2}, r"explained_attentions are indices"),
        ({"explained_attentions": 5}, "explained_attentions are indices"),
        ({"attentions": 0}, "attentions is a whole number, from 1, got 0"),
        ({"num_suffix_keys": None}, "num_suffix_keys is a whole number, from 0, got None"),
        ({"readouts": None}, "readouts maps names to read-outs, got NoneType"),
        ({"readouts": {"native": legrad.Readout(None)}}, "'native' is a legrad.Readout or a function, got NoneType"),
        ({"blocks": None}, "blocks holds .* got a NoneType of none"),
        ({"to_tokens": None}, "to_tokens is a function, got NoneType"),
        ({"at_size": 5}, "at_size is a function, got int"),
        ({"keys_to_grid": "x"}, "keys_to_grid is a function, got str"),
        ({"axes": np.int64(1)}, "axes is one of"),
        ({"output": np.array(["logits", "feature"])}, "output is one of"),
        ({"call_settings": 5}, r"call_settings holds \(owner, attribute, value\), got 5"),
        ({"call_settings": ((IMAGES, "nothing", 1),)}, "call_settings: Tensor has no attribute 'nothing'"),
        ({"shape": "x"}, "shape is that of one input"),
        ({"output": None}, "output is one of"),
        ({"axes": None}, "axes is one of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_fields(known, change, message):
    with pytest.raises(legrad.InputError, match=message) as told:
        dataclasses.replace(known, **change)
    assert "\n" not in str(told.value)


def test_numbers_of_numpy_are_numbers(known):
    import numpy as np

    changed = dataclasses.replace(known, num_prefix_tokens=np.int64(1), shape=tuple(np.array([3, 32, 32])))
    assert legrad.wrap(known.tower, anatomy=changed).explain(IMAGES, EMBEDDING).relevance.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"readouts": {"native": lambda z: None}}, r"native read-out returned None, .*\(batch, features\)"),
        (lambda v: {"readouts": {"native": lambda z: z}}, r"read-out returned a tensor of shape \(1, 17, 64\)"),
        (lambda v: {"readouts": {"native": lambda z: 1 / 0}}, r"read-out fails on .*\(1, 17, 64\): division by zero"),
        (
            lambda v: {"readouts": {"native": lambda z: v.ln_post(z[..., :3])}},
            r"read-out fails on .*normalized_shape",
        ),
        (lambda v: {"run": lambda images: None}, r"run returned None, it has to return \(batch, features\)"),
        (lambda v: {"run": lambda images: v(images)[0]}, r"run returned a tensor of shape \(32,\)"),
        (lambda v: {"run": lambda images: v(images, "more")}, "model's own forward fails on an input .* of float32: "),
        (lambda v: {"to_tokens": lambda output: output["x"]}, "to_tokens fails on what a block returned, a tensor"),
        (
            lambda v: {"to_tokens": lambda output: output[0]},
            r"to_tokens gives a tensor of shape \(17, 64\) of what block",
        ),
        (lambda v: {"to_tokens": lambda output: 5}, "in which there are no tokens; give the anatomy to_tokens"),
        (lambda v: {"keys_to_grid": lambda keys, index: None}, r"keys_to_grid returned None, .*\(batch, 4, 4\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_what_functions_return(known, change, message):
    wrong = dataclasses.replace(known, **change(known.tower))
    with pytest.raises(legrad.InputError, match=message) as told:
        legrad.wrap(known.tower, anatomy=wrong).explain(IMAGES, EMBEDDING)
    assert "\n" not in str(told.value)


def test_an_anatomy_of_another_model_at_another_size(known):
    """``at_size`` of a backbone would explain the backbone, not the classifier around it."""
    head = nn.Linear(32, 3)
    native = known.readouts["native"].function
    wrong = dataclasses.replace(
        known,
        run=lambda images: head(known.run(images)),
        output="logits",
        readouts={"native": legrad.Readout(lambda z: head(native(z)))},
    )
    with pytest.raises(legrad.InputError, match=r"at_size gives .* output is 'logits'; .* needs at_size=None"):
        legrad.wrap(known.tower, anatomy=wrong).explain(torch.randn(1, 3, 32, 48), 1)


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights_without_data():
    with pytest.raises(legrad.InputError, match=r"parameters without data \(on the device 'meta', first: positional"):
        legrad.wrap(tiny.clip().to("meta"))
    model = tiny.clip()
    explainer = legrad.wrap(model)
    model.visual.transformer.resblocks[1].to("meta")
    with pytest.raises(legrad.InputError, match=r"first: transformer\.resblocks\.1\.ln_1\.weight"):
        explainer.explain(IMAGES, EMBEDDING)
    lazy = zoo_timm.build("vit_tiny_patch16_224")
    lazy.head = nn.LazyLinear(3)
    with pytest.raises(legrad.InputError, match=r"head\.weight of VisionTransformer is not initialised"):
        legrad.wrap(lazy)


@pytest.mark.parametrize("target", [1, legrad.PREDICTED])
def test_one_block_of_another_type(target):
    model = zoo_timm.build("vit_tiny_patch16_224")
    model.head = nn.Linear(48, 3)
    model.pretrained_cfg = {}
    model.blocks[1].double()
    with pytest.raises(legrad.InputError, match=r"float32 \(first: cls_token\), float64 \(first: blocks\.1\.norm1\.w"):
        legrad.wrap(model).explain(torch.randn(1, 3, 64, 64), target)


@pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization is deprecated", "ignore:.*are deprecated and will be removed"
)
def test_heads_with_and_without_a_matrix():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("texts", torch.randn(4, 3))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = torch.randn(4, 3)

    for head in (nn.Linear(4, 3), nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), Product(), Prototypes(), Plain()):
        assert holds_matrix(head)
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})
    assert holds_matrix(quantised[0])
    assert holds_matrix(nn.Parameter(torch.randn(4, 3)))
    for head in (
        None,
        nn.Identity(),
        nn.Sequential(),
        nn.Sequential(nn.Dropout(), nn.LayerNorm(4)),
        nn.Parameter(EMBEDDING),
    ):
        assert not holds_matrix(head)
