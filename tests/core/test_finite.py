"""NaN is told where it comes from: weights, input, precision."""

from dataclasses import replace

import pytest
import timm
import torch
from helpers import tiny

import legrad
from legrad.core import finite


def images(scale=1.0):
    return torch.randn(1, 3, 32, 32) * scale


@pytest.mark.parametrize("weight", ["transformer.resblocks.2.mlp.c_fc.weight", "conv1.weight", "proj"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_weight_is_named(weight, value):
    model = tiny.clip()
    explainer = legrad.wrap(model)
    explainer.explain(images(), torch.randn(32))
    with torch.no_grad():
        dict(model.visual.named_parameters())[weight].view(-1)[0] = value
    for method in ("legrad", "gradcam", "occlusion"):
        with pytest.raises(legrad.TruthCheckError, match=rf"model's own output holds NaN.*its weight {weight}"):
            explainer.explain(images(), torch.randn(32), method=method)


@pytest.mark.parametrize("method", ["legrad", "gradcam", "occlusion"])
def test_an_input_far_out_of_range_is_told(method):
    torch.manual_seed(0)
    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL))
    explainer = legrad.wrap(model)
    for _ in range(2):  # at the first use, and after it
        with pytest.raises(legrad.InputError, match="far out of range"):
            explainer.explain(torch.ones(1, 3, 32, 32) * 1e30, 1, method=method)
        explainer.explain(images(), 1)


def test_an_overflow_inside_the_model_is_told():
    torch.manual_seed(0)
    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL))
    anatomy = legrad.wrap(model).anatomy
    with torch.no_grad(), pytest.raises(legrad.InputError, match="far out of range, it reaches 1e"):
        finite.check_output(anatomy, torch.ones(1, 3, 32, 32) * 1e30)
    with torch.no_grad(), pytest.raises(legrad.TruthCheckError, match="it arises inside the model"):
        finite.check_output(replace(anatomy, run=lambda batch: batch.sum((1, 2, 3))[:, None] / 0), images())


def test_masks_of_minus_infinity_are_no_fault():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert finite.nonfinite_weight(module) is None
    module.mask[0, 0] = torch.nan
    assert finite.nonfinite_weight(module) == "mask"
