"""What was found out once is confirmed in every call, whatever was changed since and by whatever means."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from torch import nn

import legrad
from legrad.core import closed_form, first_use, hooks, planning, streaming
from legrad.core import memory as core_memory
from legrad.core.confirm import Confirmation
from legrad.models import sizes

GLOBAL = {"gain": 1.0, "act": F.gelu}


class Own(nn.Module):
    """A block with everything that may be changed behind one's back."""

    def __init__(self, block):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = block.ln_1, block.attn, block.ln_2
        self.c_fc, self.act, self.c_proj = block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj
        self.gain, self.table, self.steps = 1.0, {"gain": 1.0}, 1
        self.after = lambda x: x

    def forward(self, x, attn_mask=None):
        y = self.ln_1(x)
        x = x + self.gain * self.attn(y, y, y, need_weights=False)[0]
        return x + self.table["gain"] * GLOBAL["gain"] * self.steps * self.after(
            self.c_proj(self.act(self.c_fc(self.ln_2(x))))
        )


def model_of_own_blocks():
    model = tiny.clip()
    blocks = model.visual.transformer.resblocks
    for index in range(len(blocks)):
        blocks[index] = Own(blocks[index])
    return model


def twice(block):
    original = block.forward
    block.forward = lambda x, attn_mask=None: original(x) * 2 - x


def closure(block):
    factor = [1.0]
    block.after = lambda x: x * factor[0]
    return factor


CHANGES = {
    "a plain attribute": lambda block: setattr(block, "gain", 3.0),
    "an entry of a table": lambda block: block.table.update(gain=3.0),
    "a whole number": lambda block: setattr(block, "steps", 3),
    "a function": lambda block: setattr(block, "after", lambda x: x.tanh()),
    "an activation": lambda block: setattr(block, "act", nn.ReLU()),
    "an activation's way": lambda block: setattr(block.act, "approximate", "tanh"),
    "an epsilon": lambda block: (setattr(block.ln_2, "eps", 0.5), setattr(block.ln_1, "eps", 0.5)),
    "a replaced forward": twice,
    "a forward of its class": lambda block: mock.patch.object(
        Own, "forward", lambda self, x, attn_mask=None: x + 2 * self.attn(*[self.ln_1(x)] * 3, need_weights=False)[0]
    ).start(),
    "weights written to unseen": lambda block: block.c_fc.weight.data.mul_(3),
    "weights exchanged unseen": lambda block: setattr(block.c_proj.weight, "data", block.c_proj.weight.data * 3),
    "a norm written to unseen": lambda block: block.ln_2.bias.data.add_(1),
    "a layer replaced": lambda block: setattr(block, "c_fc", tiny.randomised(nn.Linear(64, 256), seed=5)),
    "a global": lambda block: GLOBAL.update(gain=3.0),
}


@pytest.fixture(autouse=True)
def _restored():
    yield
    mock.patch.stopall()
    GLOBAL.update(gain=1.0)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_behind_our_back_is_noticed(name):
    model, x, t = model_of_own_blocks(), torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    before = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert len(next(iter(explainer._first_use.shortcuts.values())).tails) == len(explainer.anatomy.blocks)
    CHANGES[name](model.visual.transformer.resblocks[1])
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    fresh = legrad.wrap(model)
    with mock.patch.object(fresh._first_use, "shortcuts_for", return_value=planning.Shortcuts()):
        expected = fresh.explain(x, t, keep_layers=True).layer_relevance
    assert twin.distance(found, expected) < limits.FLOAT32
    least = 1e-5 if name == "an activation's way" else limits.DIFFERENT
    assert twin.distance(found, before) > least
    assert twin.distance(explainer.explain(x, t, keep_layers=True).layer_relevance, expected) < limits.FLOAT32


def test_a_value_that_changes_in_every_call_costs_time_but_no_exactness():
    model, x, t = model_of_own_blocks(), torch.randn(1, 3, 32, 32), torch.randn(1, 32)
    factor = closure(model.visual.transformer.resblocks[2])
    explainer = legrad.wrap(model)
    for value in (1.0, 2.0, 0.5):
        factor[0] = value
        found = explainer.explain(x, t, keep_layers=True).layer_relevance
        fresh = legrad.wrap(model)
        with mock.patch.object(fresh._first_use, "shortcuts_for", return_value=planning.Shortcuts()):
            assert twin.distance(found, fresh.explain(x, t, keep_layers=True).layer_relevance) < limits.FLOAT32


def test_a_block_that_never_agrees_goes_through_autograd():
    model, x, t = tiny.clip(), torch.randn(1, 3, 32, 32), torch.randn(1, 32)
    explainer = legrad.wrap(model)
    want = explainer.explain(x, t).relevance
    with (
        mock.patch.object(Confirmation, "holds", lambda self, tokens: not self._differences),
        mock.patch.object(streaming, "find_shortcuts", wraps=streaming.find_shortcuts) as found_anew,
    ):
        assert twin.distance(explainer.explain(x, t).relevance, want) < limits.FLOAT32
        assert found_anew.call_count == 2
        explainer.explain(x, t)
        assert found_anew.call_count == 2


@pytest.mark.parametrize("name", ["clip", "clip-quickgelu", "clip-layerscale", "clip-avg", "clipa", "vit-registers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_comparison_holds_for_common_blocks(name, dtype):
    model = tiny.TOWERS[name]().to(dtype)
    explainer, t = legrad.wrap(model), torch.randn(1, 32)
    x = torch.randn(3, 3, *explainer.anatomy.image_size)
    explainer.explain(x, t)
    (plan,) = explainer._first_use.shortcuts.values()
    assert {tail.confirmed for tail in plan.tails.values()} == {(True, True, True)}
    with mock.patch.object(streaming, "find_shortcuts") as found_anew:
        for _ in range(10):
            explainer.explain(x, t)
        assert not found_anew.called


def test_a_layer_that_stops_handing_on_a_gradient_is_noticed():
    model, x, t = model_of_own_blocks(), torch.randn(1, 3, 32, 32), torch.randn(1, 32)
    explainer = legrad.wrap(model)
    explainer.explain(x, t)
    model.visual.transformer.resblocks[1].after = lambda x: x.detach()
    with pytest.raises(legrad.TruthCheckError, match="block 1"):
        explainer.explain(x, t)


# -- copies for other input sizes --------------------------------------------------------------------------------


def same_as_fresh(explainer, x, t):
    found, fresh = (one.explain(x, t).relevance for one in (explainer, legrad.wrap(explainer.model)))
    return twin.distance(found, fresh) < limits.FLOAT32


def test_a_copy_for_another_size_is_made_once():
    explainer, t = legrad.wrap(tiny.clip()), torch.randn(1, 32)
    copies = sizes.SizedCopies(explainer.anatomy.tower, explainer.anatomy.at_size)
    with mock.patch.object(copies, "_make", wraps=copies._make) as make:
        assert copies.at((40, 32)) is copies.at((40, 32))
        assert make.call_count == 1
        for width in range(32, 32 + 8 * 6, 8):
            copies.at((40, width))
        assert len(copies._copies) == 4
    x = torch.randn(1, 3, 40, 32)
    explainer.explain(x, t)
    assert explainer.anatomy.at((40, 32)).tower is not explainer.anatomy.tower
    assert same_as_fresh(explainer, x, t)


SIZE_CHANGES = {
    "positions written to unseen": lambda model: model.visual.positional_embedding.data.mul_(3),
    "a weight trained": lambda model: model.visual.transformer.resblocks[0].mlp.c_fc.weight.data.mul_(2),
    "a hook": lambda model: model.visual.transformer.resblocks[0].register_forward_hook(
        lambda m, a, output: output * 2
    ),
    "an activation": lambda model: setattr(model.visual.transformer.resblocks[0].mlp, "gelu", nn.ReLU()),
    "a scale": lambda model: setattr(model.visual.ln_pre, "eps", 0.5),
    "another type": lambda model: model.double(),
}


@pytest.mark.parametrize("name", SIZE_CHANGES)
def test_a_copy_follows_its_tower(name):
    explainer, x, t = legrad.wrap(tiny.clip()), torch.randn(1, 3, 40, 32), torch.randn(1, 32)
    before = explainer.explain(x, t).relevance
    SIZE_CHANGES[name](explainer.model)
    assert same_as_fresh(explainer, x, t)
    if name != "another type":
        assert twin.distance(explainer.explain(x, t).relevance, before) > limits.DIFFERENT


def test_as_many_plans_as_are_worth_it():
    explainer, t = legrad.wrap(tiny.clip(layers=1)), torch.randn(1, 32)
    with mock.patch.object(first_use, "_MAX_SHAPES", 3):
        for width in range(32, 32 + 8 * 5, 8):
            explainer.explain(torch.randn(1, 3, 32, width), t)
    assert len(explainer._first_use.shortcuts) == 3
    assert first_use._MAX_SHAPES < 100


# -- out of memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried 1"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("Invalid buffer size: 16.00 GB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("HIP out of memory"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_out_of_memory_is_recognised(error):
    assert core_memory.ran_out(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), OSError(28, "No space left"), ValueError("out of memory")]
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not core_memory.ran_out(error)


def test_memory_that_runs_out_while_a_closed_form_is_tried_is_no_reason_to_do_without():
    explainer, x, t = legrad.wrap(tiny.clip()), torch.randn(2, 3, 32, 32), torch.randn(1, 32)
    with (
        mock.patch.object(closed_form, "tail_weights", side_effect=RuntimeError("CUDA out of memory")),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        explainer.explain(x, t)
    assert hooks.__name__
