"""The truth check fires when the capture or the anatomy is wrong, and says where."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny

import legrad
from legrad.core import hooks
from legrad.core.attention import AttentionTap, _mismatch

ORIGINAL = AttentionTap._attention


def explain(model, anatomy=None):
    size = legrad.wrap(model).anatomy.image_size
    return legrad.wrap(model, anatomy=anatomy).explain(torch.randn(2, 3, *size), torch.randn(32))


def wrong_scale(self, query, key, value, *args, **kwargs):
    return ORIGINAL(self, query * 1.3, key, value, *args, **kwargs)


def lost_mask(self, query, key, value, attn_mask=None, *args, **kwargs):
    return ORIGINAL(self, query, key, value, None, *args, **kwargs)


def wrong_heads_in_output(self, query, key, value, *args, **kwargs):
    return ORIGINAL(self, query, key, value, *args, **kwargs).flip(1)


def wrong_heads_in_values(self, query, key, value, *args, **kwargs):
    """The model's result is right, but V is captured in another order of heads: only the explicit rows can tell."""
    result = ORIGINAL(self, query, key, value, *args, **kwargs)
    call = self.calls[-1]
    call.value = call.value.flip(1)
    if self._verify:
        with torch.no_grad():
            call.mismatch = _mismatch(query, key, call, None, None)
    return result


@pytest.mark.parametrize("name", ["clip", "siglip", "coca", "eva02-clip"])
@pytest.mark.parametrize("fault", [wrong_scale, wrong_heads_in_output, wrong_heads_in_values])
def test_wrong_capture_is_noticed(name, fault):
    with (
        mock.patch.object(AttentionTap, "_attention", fault),
        pytest.raises(legrad.TruthCheckError, match=r"block 0|attentional pooler"),
    ):
        explain(tiny.TOWERS[name]())


class Masked(torch.nn.Module):
    """A block whose last four tokens are hidden from all others."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, attn_mask=None):
        mask = torch.zeros(x.shape[1], x.shape[1])
        mask[:, -4:] = -torch.inf
        return self.block(x, attn_mask=mask)


def masked_clip():
    model = tiny.clip()
    blocks = model.visual.transformer.resblocks
    for index in range(len(blocks)):
        blocks[index] = Masked(blocks[index])
    return model


def test_a_lost_mask_is_noticed():
    with (
        mock.patch.object(AttentionTap, "_attention", lost_mask),
        pytest.raises(legrad.TruthCheckError, match="block 0"),
    ):
        explain(masked_clip())


def test_masked_keys_get_no_relevance():
    found = explain(masked_clip())
    assert not found.relevance.flatten(-2)[..., -4:].any()
    assert bool((found.relevance.flatten(-2)[..., :-4] > 0).all())


class OwnAttention(torch.nn.Module):
    """Attention by hand, as an eager implementation does it: no call of F.scaled_dot_product_attention."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, *_, **__):
        a = self.attention
        q, k, v = a.qkv(x).unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return a.proj((weights @ v).transpose(1, 2).flatten(2))


def test_a_block_that_bypasses_sdpa_is_noticed():
    model = tiny.TOWERS["vit-registers"]()
    block = model.visual.trunk.blocks[1]
    block.attn = OwnAttention(block.attn)
    x, t = torch.randn(1, 3, 32, 32), torch.randn(32)
    with (
        tiny.left_as_found(model),
        pytest.raises(legrad.TruthCheckError, match=r"block 1 .* ran 0 .* expected 1.*bypasses"),
    ):
        legrad.wrap(model).explain(x, t)


def test_bypass_is_noticed_on_every_call_not_only_the_first():
    model = tiny.TOWERS["vit-registers"]()
    explainer, x, t = legrad.wrap(model), torch.randn(1, 3, 32, 32), torch.randn(32)
    explainer.explain(x, t)
    block = model.visual.trunk.blocks[1]
    block.attn = OwnAttention(block.attn)
    with pytest.raises(legrad.TruthCheckError, match="block 1"):
        explainer.explain(x, t)


def test_a_changed_head_is_noticed_on_every_call():
    model = tiny.clip()
    explainer, x, t = legrad.wrap(model), torch.randn(1, 3, 32, 32), torch.randn(32)
    explainer.explain(x, t)
    model.visual.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(legrad.TruthCheckError, match="native read-out"):
        explainer.explain(x, t)


def test_nan_does_not_pass_for_equal():
    model = tiny.clip()
    with torch.no_grad():
        model.visual.proj[0, 0] = torch.nan
    with pytest.raises(legrad.TruthCheckError, match="its weight proj does"):
        explain(model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("clip", {"attentions": 2}),
        ("siglip", {"route": "self-attention", "attentions": 2}),
        ("clip", {"route": "pooler"}),
    ],
)
def test_a_wrong_anatomy_is_noticed(name, change):
    model = tiny.TOWERS[name]()
    anatomy = replace(legrad.wrap(model).anatomy, **change)
    with pytest.raises(legrad.TruthCheckError):
        explain(model, anatomy)


def test_a_wrong_norm_placement_is_noticed():
    model = tiny.clip()
    good = legrad.wrap(model).anatomy
    visual = model.visual
    wrong = legrad.Readout(lambda z: visual.ln_post(z.mean(1)) @ visual.proj, normalize=True)
    with pytest.raises(legrad.TruthCheckError, match="native read-out"):
        explain(model, replace(good, readouts={**good.readouts, "native": wrong}))


def test_blocks_that_are_skipped_are_noticed():
    model = tiny.clip()
    good = legrad.wrap(model).anatomy
    stranger = tiny.clip(seed=9).visual.transformer.resblocks[0]
    with pytest.raises(legrad.TruthCheckError, match=r"ran 0 times"):
        explain(model, replace(good, blocks=(*good.blocks[:-1], stranger)))


def test_the_check_runs_once_per_shape_and_dtype():
    from legrad.core import first_use as module

    model = tiny.clip()
    explainer, t = legrad.wrap(model), torch.randn(32)
    with mock.patch.object(module, "truth_check", wraps=module.truth_check) as check:
        for _ in range(2):
            explainer.explain(torch.randn(2, 3, 32, 32), t)
        assert check.call_count == 1
        explainer.explain(torch.randn(3, 3, 32, 40), t)
        assert check.call_count == 2
        model.double()
        explainer.explain(torch.randn(2, 3, 32, 32).double(), t)
        assert check.call_count == 3


@pytest.mark.parametrize("option", ["bias_kv", "zero_attn"])
def test_unusual_multi_head_attention_is_refused_by_name(option):
    layer = torch.nn.MultiheadAttention(
        8, 2, batch_first=True, add_bias_kv=option == "bias_kv", add_zero_attn=option == "zero_attn"
    )
    x = torch.randn(1, 4, 8)
    name = {"bias_kv": "bias_k, bias_v", "zero_attn": "add_zero_attn"}[option]
    with pytest.raises(legrad.UnsupportedModelError, match=name):
        hooks.tapped(lambda: layer(x, x, x)[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", ["none", "bool", "float", "padding", "both", "per-head"])
@pytest.mark.parametrize("sizes", ["self", "cross"])
def test_multi_head_attention_is_re_expressed_exactly(batch_first, need_weights, masks, sizes):
    dims = {} if sizes == "self" else {"kdim": 6, "vdim": 10}
    layer = tiny.randomised(torch.nn.MultiheadAttention(8, 2, batch_first=batch_first, **dims))
    q = torch.randn(3, 5, 8)
    k, v = (q, q) if sizes == "self" else (torch.randn(3, 7, 6), torch.randn(3, 7, 10))
    keys = k.shape[1]
    hidden = torch.zeros(5, keys, dtype=torch.bool)
    hidden[:, 1] = True
    padding = torch.zeros(3, keys, dtype=torch.bool)
    padding[1, -1] = True
    options = {
        "none": {},
        "bool": {"attn_mask": hidden},
        "float": {"attn_mask": torch.randn(5, keys)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": hidden, "key_padding_mask": padding},
        "per-head": {"attn_mask": torch.randn(6, 5, keys)},
    }[masks]
    inputs = (q, k, v) if batch_first else tuple(t.transpose(0, 1) for t in (q, k, v))
    if sizes == "self":
        inputs = (inputs[0],) * 3
    with torch.no_grad():
        want, want_weights = layer(*inputs, need_weights=need_weights, **options)
    (found, weights), calls = hooks.tapped(lambda: layer(*inputs, need_weights=need_weights, **options), verify=True)
    assert limits.close(found, want)
    assert (weights is None) == (want_weights is None)
    assert weights is None or limits.close(weights, want_weights)
    assert calls[0].mismatch < limits.FLOAT32
    if masks in ("bool", "both"):
        assert not calls[0].keep.expand(3, 2, 5, keys)[..., 1].any()
    if masks in ("padding", "both"):
        assert not calls[0].keep.expand(3, 2, 5, keys)[1, ..., -1].any()


def test_causal_attention_is_seen_as_masked():
    q = torch.randn(1, 2, 5, 4)
    _, calls = hooks.tapped(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True), verify=True)
    assert calls[0].mismatch < limits.FLOAT32
    assert calls[0].keep[0, 0].tolist() == torch.ones(5, 5).tril().bool().tolist()
