"""Closed-form tails: equal to autograd wherever they are used, and not used where they might not be."""

from unittest import mock

import models
import pytest
import torch
import torch.nn.functional as F
import twin
from torch import nn

import legrad
from legrad import streaming
from legrad.streaming import Plan

# class-token, averaged before and after the norm, LayerScale, QuickGELU, registers, another order of modules
COMMON = ["clip", "clip-quickgelu", "clip-layerscale", "clip-avg", "clipa", "mobileclip-b", "vit-registers"]
OTHER = ["clip-custom-blocks", "eva02-clip", "vitamin"]


def plan_of(explainer):
    (plan,) = explainer._plans.values()
    return plan


def through_autograd(model, *args, **options):
    """The same call without any closed form."""
    explainer = legrad.wrap(model)
    with mock.patch.object(explainer, "_plan", lambda *_: Plan()):
        return explainer.explain(*args, keep_layers=True, **options).layer_relevance


def compare(model, x, t, readout):
    """Closed form against autograd, for one target and for so many that the tail is folded."""
    explainer = legrad.wrap(model)
    with mock.patch.object(streaming, "closed_layer", wraps=streaming.closed_layer) as closed:
        found = [
            explainer.explain(x, targets, readout=readout, keep_layers=True).layer_relevance for targets in (t[:1], t)
        ]
    assert closed.call_count == 2 * len(explainer.anatomy.blocks)
    expected = through_autograd(model, x, t, readout=readout)
    return max(twin.distance(found[0], expected[:, :1]), twin.distance(found[1], expected))


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", COMMON)
def test_equals_autograd(name, readout):
    model, x = models.TOWERS[name](), torch.randn(2, 3, 32, 32)
    t = F.normalize(torch.randn(30, 32), dim=-1)
    assert compare(model, x, t, readout) < 1e-6
    plan = plan_of_first_use(model, x, t)
    assert all(tail.foldable for tail in plan.tails.values())


def plan_of_first_use(model, x, t):
    explainer = legrad.wrap(model)
    explainer.explain(x, t[:1])
    return plan_of(explainer)


@pytest.mark.parametrize("name", OTHER)
def test_other_blocks_keep_the_autograd_tail(name):
    model = models.TOWERS[name]()
    assert not plan_of_first_use(model, torch.randn(1, 3, 32, 32), torch.randn(1, 32)).tails


@pytest.mark.parametrize(
    ("name", "options", "gate"),
    [
        ("vit_giant_patch14_reg4_dinov2", {"embed_dim": 48, "depth": 2, "num_heads": 4}, 0),
        ("vit_base_patch16_224", {**models.THIN, "norm_layer": "rmsnorm"}, None),
        ("vit_base_patch16_224", {**models.THIN, "act_layer": "silu", "init_values": 0.3}, None),
    ],
)
def test_gated_mlps_and_other_norms(name, options, gate):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, img_size=42 if "14" in name else 32, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    explainer = legrad.wrap(model)
    t = [lambda feature, i=i: feature[:, i % 7].sin() * (i + 1) for i in range(40)]
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    tails = plan_of(explainer).tails
    assert set(tails) == set(range(len(explainer.anatomy.blocks)))
    assert {tail.gate for tail in tails.values()} == {gate}
    assert all(tail.foldable for tail in tails.values())
    expected = through_autograd(model, x, t)
    assert twin.distance(found, expected) < 2e-6
    assert twin.distance(explainer.explain(x, t[:1], keep_layers=True).layer_relevance, expected[:, :1]) < 2e-6


def test_a_wrong_closed_form_is_noticed_and_not_used():
    """LayerScale as a bare parameter of the block cannot be seen from the modules that ran."""

    class Scaled(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.gamma = block, nn.Parameter(torch.tensor(0.5))

        def forward(self, x, **options):
            x = x + self.gamma * self.block.attention(self.block.ln_1(x))
            return x + self.gamma * self.block.mlp(self.block.ln_2(x))

    model = models.clip()
    blocks = model.visual.transformer.resblocks
    for index in range(len(blocks)):
        blocks[index] = Scaled(blocks[index])
    x, t = torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert not plan_of(explainer).tails
    assert twin.distance(found, through_autograd(model, x, t)) < 1e-6


def test_a_hook_that_came_later_is_obeyed():
    model, x, t = models.clip(), torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    before = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert plan_of(explainer).tails
    handle = model.visual.transformer.resblocks[1].mlp.register_forward_hook(lambda module, args, output: output * 3)
    hooked = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert twin.distance(hooked, through_autograd(model, x, t)) < 1e-6
    assert twin.distance(hooked[:, :, 1], before[:, :, 1]) > 1e-2
    handle.remove()
    assert torch.equal(explainer.explain(x, t, keep_layers=True).layer_relevance, before)


def test_a_block_that_was_rebuilt_or_trained_on():
    model, x, t = models.clip(), torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    explainer.explain(x, t)
    block = model.visual.transformer.resblocks[2]
    block.mlp = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 64))
    with torch.no_grad():
        model.visual.transformer.resblocks[0].ln_2.weight.mul_(torch.linspace(0, 2, 64))
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(model, x, t)) < 1e-6


def test_masks_and_rows_of_a_class_token_read_out():
    """A block-diagonal attention mask, seen from the class token's row only."""
    model, x, t = models.clip(), torch.randn(3, 3, 32, 32), torch.randn(2, 32)
    mask = torch.zeros(17, 17)
    mask[0, 5:] = float("-inf")
    mask[3:, :2] = float("-inf")
    original = model.visual.transformer.forward
    model.visual.transformer.forward = lambda tokens, attn_mask=None: original(tokens, attn_mask=mask)
    for readout in ("native", "published"):
        explainer = legrad.wrap(model)
        found = explainer.explain(x, t, readout=readout, keep_layers=True).layer_relevance
        assert plan_of(explainer).tails
        assert twin.distance(found, through_autograd(model, x, t, readout=readout)) < 1e-6
        if readout == "native":
            assert not found.flatten(-2)[..., 4:].any()


def test_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        model, x, t = models.clip(), torch.randn(2, 3, 32, 32), torch.randn(40, 32)
        want = legrad.wrap(model).explain(x, t, keep_layers=True).layer_relevance
        explainer = legrad.wrap(model.to(dtype))
        for count in (1, 40):
            found = explainer.explain(x.to(dtype), t[:count], keep_layers=True).layer_relevance
            for one, expected in zip(found.flatten(0, 2), want[:, :count].flatten(0, 2), strict=True):
                assert torch.corrcoef(torch.stack([one.flatten(), expected.flatten()]))[0, 1] > 0.99
        assert plan_of(explainer).tails
