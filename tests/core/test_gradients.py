"""What computes a block in fewer bits, or hands on no gradient, is noticed and named."""

import functools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from torch import nn

import legrad
from legrad import doctor

WITHOUT_GRADIENTS = ("raw-attention", "rollout", "maskclip", "rise", "occlusion")


@functools.cache
def classifier():
    import timm

    torch.manual_seed(0)
    model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    return tiny.randomised(model)


def int8(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def explain(model, method="legrad", count=2):
    explainer = legrad.wrap(model)
    features = 5 if explainer.anatomy.output == "logits" else 32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 32, 32, generator=generator)
    return explainer.explain(x, torch.randn(1, features, generator=generator) if features == 32 else 0, method=method)


@pytest.mark.parametrize("method", ["legrad", "gradcam", "chefercam", "lrp", "legrad-norelu"])
@pytest.mark.parametrize("build", [tiny.clip, classifier])
def test_int8_layers_are_named_once(build, method):
    with pytest.raises(legrad.TruthCheckError) as told:
        explain(int8(build()), method)
    sentence = str(told.value)
    assert "(DynamicQuantizedLinear) hands on no gradient" in sentence
    assert "block 0's" in sentence or "blocks.0" in sentence or "resblocks.0" in sentence
    assert "raw-attention, rollout" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("method", WITHOUT_GRADIENTS)
@pytest.mark.parametrize("build", [tiny.clip, classifier])
def test_methods_without_gradients_explain_int8_models(build, method):
    exact, rounded = (explain(model, method).relevance.flatten(1) for model in (build(), int8(build())))
    for a, b in zip(exact, rounded, strict=True):
        # a single patch changes the scores of a tiny model little more than rounding does
        assert np.corrcoef(a, b)[0, 1] > (0.5 if method == "occlusion" else 0.95)


def test_an_int8_pooler_or_head_is_named():
    model = tiny.TOWERS["siglip"]()
    model.visual.trunk.attn_pool = int8(model.visual.trunk.attn_pool)
    with pytest.raises(
        legrad.TruthCheckError, match=r"attn_pool\.\w+.* \(DynamicQuantizedLinear\) hands on no gradient"
    ):
        explain(model)
    model = classifier()
    head, model.head = model.head, int8(nn.Sequential(model.head))
    try:
        with pytest.raises(legrad.TruthCheckError, match=r"the head's head\.0 \(DynamicQuantizedLinear\) hands on no"):
            explain(model)
    finally:
        model.head = head


class Around(nn.Module):
    """An MLP with something around it."""

    def __init__(self, inner, around):
        super().__init__()
        self.inner, self.around = inner, around

    def forward(self, x):
        return self.around(self.inner, x)


def without_grad(inner, x):
    with torch.no_grad():
        return inner(x)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad  # of the identity


class RightBackward(WrongBackward):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(grad, x)


class OwnGelu(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def rounded(x, levels=127):
    scale = x.abs().amax() / levels
    return (x / scale).round() * scale


def with_mlp(change):
    model = tiny.clip()
    for block in model.visual.transformer.resblocks:
        change(block)
    return model


def around(function):
    return lambda block: setattr(block, "mlp", Around(block.mlp, function))


FAULTS = {
    "detach": (around(lambda inner, x: inner(x).detach()), r"mlp \(Around\)|block 0"),
    "no_grad": (around(without_grad), r"mlp.*hands on no gradient"),
    "rounding": (around(lambda inner, x: inner(rounded(x))), r"block \d"),
    "half of it": (around(lambda inner, x: inner(x) / 2 + (inner(x) / 2).detach()), "block 0"),
    "own backward": (
        lambda block: setattr(block.mlp, "gelu", OwnGelu(WrongBackward)),
        r"mlp\.gelu \(OwnGelu\) .*wrong",
    ),
}
FINE = {
    "straight through": around(lambda inner, x: inner(x + (rounded(x) - x).detach())),
    "own backward": lambda block: setattr(block.mlp, "gelu", OwnGelu(RightBackward)),
    "constant": around(lambda inner, x: inner(x) + torch.ones_like(x)),
    "checkpoint": around(lambda inner, x: torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_block_that_hands_on_no_gradient_or_a_wrong_one_is_refused(name):
    change, named = FAULTS[name]
    with pytest.raises(legrad.TruthCheckError, match=named) as told:
        explain(with_mlp(change))
    assert "raw-attention" in str(told.value)
    assert explain(with_mlp(change), "raw-attention").relevance.any()


@pytest.mark.parametrize("name", FINE)
def test_right_gradients_pass(name):
    found = explain(with_mlp(FINE[name])).relevance
    if name in ("own backward", "checkpoint"):
        assert twin.distance(found, explain(tiny.clip()).relevance) < limits.FLOAT32


class WeightOnly(nn.Module):
    """Weights in eight bits, arithmetic in float: gradients flow."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("scale", linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = nn.Parameter(linear.bias.detach())

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias)


def test_weight_only_schemes_work():
    def change(block):
        block.mlp.c_fc, block.mlp.c_proj = WeightOnly(block.mlp.c_fc), WeightOnly(block.mlp.c_proj)

    found, exact = explain(with_mlp(change)).relevance, explain(tiny.clip()).relevance
    for a, b in zip(found.flatten(1), exact.flatten(1), strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_passes(dtype):
    for name in ("clip", "clip-layerscale", "siglip", "eva02-clip"):
        explainer = legrad.wrap(tiny.TOWERS[name]().to(dtype))
        explainer.explain(torch.randn(1, 3, 32, 32), torch.randn(1, 32))


def test_a_tiny_layer_scale_passes_and_is_looked_through():
    def small(block):
        block.ls_2.gamma.data.fill_(1e-5)

    model = tiny.clip(ls_init_value=0.5)
    for block in model.visual.transformer.resblocks:
        small(block)
    explain(model)


def test_the_doctor_tells():
    report = doctor.examine(legrad.wrap(int8(classifier())))
    assert not report.healthy
    assert any("hands on no gradient" in finding.value for finding in report.findings)


class Prepared(nn.Module):
    """As accelerate's ``prepare`` wraps a forward: autocast inside the model, float32 out of it."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x):
        with torch.autocast("cpu", self.dtype):
            return self.model(x).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["legrad", "chefercam"])
def test_an_autocast_inside_the_model_is_no_wrong_capture(dtype, method):
    from dataclasses import replace

    model = classifier()
    exact = explain(model, method)
    anatomy = replace(legrad.wrap(model).anatomy, run=Prepared(model, dtype))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = legrad.wrap(model, anatomy=anatomy).explain(x, 0, method=method)
    for a, b in zip(found.relevance.flatten(1), exact.relevance.flatten(1), strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.98


def test_a_model_that_accelerate_prepared():
    accelerate = pytest.importorskip("accelerate")
    exact = explain(classifier())
    model = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(classifier())
    try:
        found = explain(model)
    finally:
        del classifier().forward
    for a, b in zip(found.relevance.flatten(1), exact.relevance.flatten(1), strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.98
