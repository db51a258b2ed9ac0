"""The first call: what it costs, in forward passes and token rows, and what it notices: the mutation table."""

import gc
import warnings
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from torch import nn

import legrad
from legrad.core import closed_form, first_look, planning, routes
from legrad.core.first_use import FirstUse
from legrad.core.planning import Shortcuts
from legrad.models import versions
from legrad.models.sizes import SizedCopies

COMMON = ["clip", "clip-quickgelu", "clip-layerscale", "clip-avg", "clipa", "mobileclip-b", "vit-registers"]
DEPTH = tiny.VISION["layers"]


def images(count=1, size=(32, 32)):
    return torch.randn(count, 3, *size)


def through_autograd(model, x, t, **options):
    slow = legrad.wrap(model)
    with mock.patch.object(slow._first_use, "shortcuts_for", return_value=Shortcuts()):
        return slow.explain(x, t, keep_layers=True, **options).layer_relevance


def only_look(monkeypatch):
    """Fails where the truth check has to be made by itself."""
    monkeypatch.setattr(FirstUse, "_look", mock.Mock(side_effect=AssertionError("the first pass was not enough")))


# -- what it costs ----------------------------------------------------------------------------------------------


class Counter:
    """Runs of a tower, and token rows through its blocks."""

    def __init__(self, explainer):
        self.runs, self.rows = 0, 0
        explainer.anatomy.tower.register_forward_hook(self.count_run)
        for block in explainer.anatomy.blocks:
            block.register_forward_hook(self.count_rows)

    def count_run(self, module, args, output):
        self.runs += 1

    def count_rows(self, module, args, output):
        self.rows += output.shape[1]

    def take(self):
        taken, self.runs, self.rows = (self.runs, self.rows), 0, 0
        return taken


@pytest.mark.parametrize("name", [*COMMON, "siglip", "coca", "pe-core"])
def test_the_first_call_is_a_plain_pass_and_the_one_that_explains(name, monkeypatch):
    only_look(monkeypatch)
    model = tiny.TOWERS[name]()
    explainer, t = legrad.wrap(model), torch.randn(1, 32)
    x = images(1, explainer.anatomy.image_size)
    counter = Counter(explainer)
    explainer.explain(x, t)
    runs, rows = counter.take()
    pooler = explainer.anatomy.route == "pooler"
    assert runs == (1 if pooler else 2)
    explainer.explain(x, t)
    runs, known_rows = counter.take()
    assert runs == 1
    # besides, one block alone on four rows, a few times for finite differences
    assert rows - (known_rows if pooler else 2 * known_rows) <= 4 * 12


@pytest.mark.parametrize("name", ["clip", "vit-registers", "siglip"])
def test_a_new_size_is_one_plain_pass_more(name, monkeypatch):
    only_look(monkeypatch)
    explainer, t = legrad.wrap(tiny.TOWERS[name]()), torch.randn(1, 32)
    counter = Counter(explainer)
    explainer.explain(images(), t)
    counter.take()
    for size in ((40, 32), (32, 48)):
        explainer.explain(images(1, size), t)
        runs, rows = counter.take()
        assert runs == (1 if name == "siglip" else 2)
        explainer.explain(images(1, size), t)
        assert counter.take() == (1, rows // runs)


@pytest.mark.parametrize("name", ["eva02-clip", "clip-custom-blocks", "vitamin", "siglip", "clip"])
def test_a_first_call_gives_what_later_ones_give(name, monkeypatch):
    only_look(monkeypatch)
    model = tiny.TOWERS[name]()
    explainer, t = legrad.wrap(model), torch.randn(3, 32)
    x = images(2, explainer.anatomy.image_size)
    for layers in (1, None):
        first = legrad.wrap(model).explain(x, t, layers=layers, keep_layers=True)
        explainer.explain(x, t, layers=layers)
        later = explainer.explain(x, t, layers=layers, keep_layers=True)
        assert twin.distance(first.layer_relevance, later.layer_relevance) < limits.FLOAT32
        assert limits.close(first.scores, later.scores)


def test_the_fold_is_compared_when_it_is_first_used():
    explainer, x, t = legrad.wrap(tiny.clip()), images(), torch.randn(40, 32)
    explainer.explain(x, t[:1])
    (plan,) = explainer._first_use.shortcuts.values()
    assert not plan.folds
    with mock.patch.object(closed_form, "fold_holds", wraps=closed_form.fold_holds) as compared:
        explainer.explain(x, t)
        explainer.explain(x, t)
    assert compared.call_count == DEPTH
    assert plan.folds == dict.fromkeys(range(DEPTH), True)


def test_a_fold_that_does_not_hold_is_not_used():
    model, x, t = tiny.clip(), images(), torch.randn(40, 32)
    right, real = legrad.wrap(model).explain(x, t).relevance, closed_form.fold
    explainer = legrad.wrap(model)
    explainer.explain(x, t[:1])

    def wrong(weights, multiplied=True):
        folded = real(weights, multiplied)
        return replace(folded, out=folded.out * 1.01)

    with mock.patch.object(closed_form, "fold", wrong):
        assert twin.distance(explainer.explain(x, t).relevance, right) < limits.FLOAT32


def test_sizes_in_a_row_leave_nothing_behind():
    explainer, t = legrad.wrap(tiny.clip(layers=1)), torch.randn(1, 32)
    towers, make = [], SizedCopies._not_shared

    def noted(self, tower):
        towers.append(weakref.ref(tower))
        return make(self, tower)

    with mock.patch.object(SizedCopies, "_not_shared", noted):
        for width in range(1, 45):
            explainer.explain(images(1, (16, 8 * width)), t)
    gc.collect()
    assert len(towers) == 44
    assert sum(one() is not None for one in towers) <= 4
    assert len(explainer._first_use.shortcuts) <= 32


def test_of_a_class_token_read_out_only_its_row_is_kept():
    model, x, t = tiny.clip(), images(3), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    rows = set()

    def noted(layer_pass, span, block, grad):
        rows.update(item.output.shape[1] for item in block.calls[0].after)
        return real(layer_pass, span, block, grad)

    real = routes._layer_in_closed_form
    first = explainer.explain(x, t, readout="native", keep_layers=True).layer_relevance
    with mock.patch.object(routes, "_layer_in_closed_form", noted):
        found = explainer.explain(x, t, readout="native", keep_layers=True).layer_relevance
        assert rows == {2}  # and the one that is confirmed
        explainer.explain(x, t, readout="published")
        assert rows == {2, 17}
    assert twin.distance(found, first) < limits.FLOAT32
    assert twin.distance(found, through_autograd(model, x, t, readout="native")) < limits.FLOAT32


@pytest.mark.parametrize("name", ["weights", "norm", "activation"])
def test_what_changed_since_is_noticed_by_the_row_that_is_kept(name):
    model, x, t = model_of([0] * DEPTH), images(2), torch.randn(1, 32)
    explainer = legrad.wrap(model)
    before = [explainer.explain(x, t, readout="native").relevance for _ in range(2)][-1]
    block = model.visual.transformer.resblocks[1]
    if name == "weights":
        block.c_fc.weight.data.mul_(3)
    elif name == "norm":
        block.ln_2.bias.data.add_(1)
    else:
        block.way = [function for _, function in WAYS].index(other_activation)
    found = explainer.explain(x, t, readout="native", keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(model, x, t, readout="native")) < limits.FLOAT32
    assert twin.distance(found.mean(2), before) > limits.DIFFERENT


def test_what_belongs_to_the_process_is_looked_up_once():
    explainer, x, t = legrad.wrap(tiny.clip()), images(), torch.randn(1, 32)
    explainer.explain(x, t)
    with mock.patch("importlib.metadata.version", side_effect=AssertionError("read again")):
        explainer.explain(x, t)
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    assert {id(one) for one in versions.parts(model)} == {id(one) for one in model.modules()}
    assert len(list(versions.parts(model))) == len(list(model.modules()))


# -- what it notices --------------------------------------------------------------------------------------------


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    """A plain block; which way it goes is a whole number, that nobody looks at: its parts are those of the others."""

    def __init__(self, block):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = block.ln_1, block.attn, block.ln_2
        self.c_fc, self.act, self.c_proj = block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj
        self.ls_1, self.ls_2 = LayerScale(64), LayerScale(64)
        self.way = 0

    def mlp(self, y):
        return self.c_proj(self.act(self.c_fc(y)))

    def forward(self, x, attn_mask=None):
        y = self.ln_1(x)
        attention = self.ls_1(self.attn(y, y, y, need_weights=False)[0])
        return WAYS[self.way][1](self, x, attention)


def plain(block, x, attention):
    x = x + attention
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def wrong_scale(block, x, attention):
    x = x + attention
    return x + 1.01 * block.ls_2(block.mlp(block.ln_2(x)))


def wrong_residual(block, x, attention):
    x = x + attention
    return 1.01 * x + block.ls_2(block.mlp(block.ln_2(x)))


def wrong_attention(block, x, attention):
    return plain(block, x, 1.01 * attention)


def swapped_norm(block, x, attention):
    x = x + attention
    block.ln_2(x)
    return x + block.ls_2(block.mlp(block.ln_1(x)))


def other_norm(block, x, attention):
    x = x + attention
    return x + block.ls_2(block.mlp(block.ln_2(x) * 0.9))


def dropped_scale(block, x, attention):
    x = x + attention
    y = block.mlp(block.ln_2(x))
    block.ls_2(y)
    return x + y


def mixing(block, x, attention):
    x = x + attention
    y = block.ln_2(x)
    return x + block.ls_2(block.mlp(y - 0.1 * y.mean(1, keepdim=True)))


def mixing_behind(block, x, attention):
    x = plain(block, x, attention)
    return x - 0.1 * x.mean(1, keepdim=True)


def other_activation(block, x, attention):
    x = x + attention
    h = block.c_fc(block.ln_2(x))
    block.act(h)
    return x + block.ls_2(block.c_proj(F.gelu(h, approximate="tanh").relu()))


def parallel(block, x, attention):
    return x + attention + block.ls_2(block.mlp(block.ln_2(x)))


def post_norm(block, x, attention):
    x = x + attention
    return block.ln_2(x + block.ls_2(block.mlp(x)))


def twice(block, x, attention):
    return plain(block, plain(block, x, attention), 0)


def detached(block, x, attention):
    x = x + attention
    return x + block.ls_2(block.mlp(block.ln_2(x)).detach())


def half_detached(block, x, attention):
    x = x + attention
    y = block.ls_2(block.mlp(block.ln_2(x)))
    return x + y / 2 + (y / 2).detach()


def detached_residual(block, x, attention):
    x = x + attention
    return x.detach() + block.ls_2(block.mlp(block.ln_2(x)))


def rounding(block, x, attention):
    x = x + attention
    y = block.ln_2(x)
    return x + block.ls_2(block.mlp((y * 64).round() / 64))


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.5


def wrong_backward(block, x, attention):
    x = x + attention
    return x + WrongBackward.apply(block.ls_2(block.mlp(block.ln_2(x))))


# name -> (is refused, forward): what is not refused has a map that autograd gives
WAYS = [
    (False, plain),
    *((False, way) for way in (wrong_scale, wrong_residual, wrong_attention, swapped_norm, other_norm, dropped_scale)),
    *((False, way) for way in (mixing, mixing_behind, other_activation, parallel, post_norm, twice)),
    *((True, way) for way in (detached, half_detached, detached_residual, rounding, wrong_backward)),
]


def model_of(ways):
    model = tiny.clip()
    blocks = model.visual.transformer.resblocks
    for index, way in enumerate(ways):
        blocks[index] = Block(blocks[index])
        blocks[index].way = way
    return model


def tails_of(explainer):
    (plan,) = explainer._first_use.shortcuts.values()
    return plan.tails


def test_the_plain_block_of_the_table_has_a_closed_form(monkeypatch):
    only_look(monkeypatch)
    explainer = legrad.wrap(model_of([0] * DEPTH))
    explainer.explain(images(), torch.randn(1, 32))
    assert set(tails_of(explainer)) == set(range(DEPTH))


@pytest.mark.parametrize("where", ["0", "2", "3", "all"])
@pytest.mark.parametrize("way", range(1, len(WAYS)), ids=[way.__name__ for _, way in WAYS[1:]])
def test_every_mutation_of_a_block_is_noticed_at_the_first_use(way, where):
    refused, function = WAYS[way]
    odd = range(DEPTH) if where == "all" else [int(where)]
    model, x, t = model_of([way if layer in odd else 0 for layer in range(DEPTH)]), images(2), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    if refused:
        with pytest.raises(legrad.TruthCheckError, match=f"block {odd[0]}"):
            explainer.explain(x, t)
        with pytest.raises(legrad.TruthCheckError, match=f"block {odd[0]}"):
            explainer.explain(x, t, layers=[(odd[0] + 1) % DEPTH])
        return
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert not set(odd) & set(tails_of(explainer)), function
    assert twin.distance(found, through_autograd(model, x, t)) < limits.FLOAT32


def test_a_tiny_layer_scale_hides_nothing():
    """All values of the odd block are those of a plain one."""
    odd = [function for _, function in WAYS].index(parallel)
    model, x, t = model_of([0, 0, odd, 0]), images(), torch.randn(1, 32)
    for block in model.visual.transformer.resblocks:
        block.ls_1.gamma.data.fill_(1e-7)
        block.ls_2.gamma.data.fill_(1e-7)
    explainer = legrad.wrap(model)
    explainer.explain(x, t)
    assert set(tails_of(explainer)) == {0, 1, 3}


TAILS = {
    "dropped first scale": {"scale1": None},
    "dropped second scale": {"scale2": None},
    "exchanged scales": {"scale1": "ls_2", "scale2": "ls_1"},
    "swapped norm": {"norm": "ln_1"},
    "other activation": {"act": "silu"},
}


@pytest.mark.parametrize("name", TAILS)
def test_a_wrong_guess_of_a_tail_is_not_used(name):
    model, x, t = model_of([0] * DEPTH), images(), torch.randn(1, 32)
    for block in model.visual.transformer.resblocks:
        block.ls_2.gamma.data.mul_(1.1)
    real = planning.recognise

    def guess(*args):
        tail = real(*args)
        return None if tail is None else replace(tail, **TAILS[name])

    explainer = legrad.wrap(model)
    with mock.patch.object(planning, "recognise", guess):
        found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert not tails_of(explainer)
    assert twin.distance(found, through_autograd(model, x, t)) < limits.FLOAT32


@pytest.mark.parametrize("layer", range(DEPTH))
def test_a_quantised_layer_in_any_block_is_refused(layer):
    model = tiny.clip()
    block = model.visual.transformer.resblocks[layer]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block.mlp.c_fc = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(block.mlp.c_fc), {nn.Linear}, dtype=torch.qint8
        )[0]
    with pytest.raises(legrad.TruthCheckError, match=rf"block {layer}'s mlp\.c_fc .*hands on no gradient"):
        legrad.wrap(model).explain(images(), torch.randn(1, 32))


@pytest.mark.parametrize("layer", range(DEPTH))
def test_a_hook_that_a_user_adds_later_is_looked_at_anew(layer):
    model, x, t = tiny.clip(), images(), torch.randn(1, 32)
    explainer = legrad.wrap(model)
    before = explainer.explain(x, t)
    mlp = model.visual.transformer.resblocks[layer].mlp
    handle = mlp.register_forward_hook(lambda module, args, output: output * 1.5)
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(model, x, t)) < limits.FLOAT32
    handle.remove()
    handle = mlp.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(legrad.TruthCheckError, match=f"block {layer}"):
        explainer.explain(x, t)
    handle.remove()
    assert torch.equal(explainer.explain(x, t).relevance, before.relevance)


def test_frozen_and_trained_blocks_are_alike(monkeypatch):
    only_look(monkeypatch)
    torch.manual_seed(0)
    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL))
    model.blocks[0].requires_grad_(False)
    explainer = legrad.wrap(model)
    with mock.patch.object(first_look.Examiner, "_run", autospec=True, side_effect=first_look.Examiner._run) as run:
        explainer.explain(images(), 1)
    assert run.call_count == 1
    assert set(tails_of(explainer)) == {0, 1, 2}
