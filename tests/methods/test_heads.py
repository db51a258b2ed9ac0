"""Single heads against the slow twin, and choices of heads."""

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from helpers.settings import PREFIX, setting

import legrad
from legrad import heads
from legrad.core import state
from legrad.core.planning import Shortcuts
from legrad.core.score import Direction
from legrad.core.streaming import explain_batch
from legrad.methods.heads import EVERY_HEAD


def apart(found, expected):
    """Of the largest value of all: a single head may have nothing to say."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", tiny.TOWERS)
def test_every_head_of_every_tower(name, readout):
    model, images, embeddings = setting(name)
    want = torch.stack(
        [
            twin.relevance(model, images, lambda f, e=e: f @ e, readout, PREFIX.get(name, 1), (4, 4), by_head=True)
            for e in embeddings
        ],
        1,
    )
    explainer = legrad.wrap(model)
    with tiny.left_as_found(model):
        found = heads.head_relevance(explainer, images, embeddings, readout=readout)
    assert found.shape == want.shape
    assert found.shape[3] == heads.num_heads(explainer.anatomy) > 1
    assert apart(found, want) < limits.FLOAT32
    whole = explainer.explain(images, embeddings, readout=readout, keep_layers=True)
    assert twin.distance(found.mean(3), whole.layer_relevance) < limits.FLOAT32
    exact = heads.head_relevance(legrad.wrap(model.double()), images.double(), embeddings, readout=readout)
    assert exact.dtype == torch.float64
    assert apart(exact, want) < limits.FLOAT64


def test_a_reduction_of_ones_own_goes_without_closed_forms():
    """They hold the formula: a plan that has them must not decide."""
    model, images, embeddings = setting("clip")
    explainer = legrad.wrap(model)
    explainer.explain(images, embeddings)
    (plan,) = explainer._first_use.shortcuts.values()
    assert plan.tails
    scores = [Direction("", one[None].float()) for one in embeddings]
    with torch.no_grad(), state.evaluation_mode(model):
        found, expected = (
            explain_batch(
                explainer.anatomy, images, scores, range(4), "native", one, reduction=legrad.relevance.head_relevance
            ).relevance
            for one in (plan, Shortcuts())
        )
    assert found.shape == (2, 2, 4, 2, 4, 4)
    assert torch.equal(found, expected)


def test_masked_keys_and_chunks():
    """Heads apart, then their mean, is the formula itself: masks per head or shared, values or none, small chunks."""
    gradient, value = torch.randn(2, 3, 4, 5, 8), torch.randn(2, 4, 6, 8)
    for keep in (None, torch.rand(2, 4, 5, 6) > 0.4, torch.rand(1, 1, 1, 6) > 0.4, torch.rand(2, 1, 5, 6) > 0.4):
        found = legrad.relevance.head_relevance(gradient, value, keep)
        product = torch.einsum("bthqd,bhkd->bthqk", gradient, value)
        shown = product.clamp(min=0) if keep is None else product.clamp(min=0) * keep[:, None]
        assert limits.close(found, shown.mean(3))
        assert limits.close(legrad.relevance.head_relevance(product, None, keep), found)
        assert limits.close(legrad.relevance.key_relevance(gradient, value, keep), found.mean(2))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_some_heads(name):
    torch.manual_seed(0)
    kwargs = {**tiny.SMALL, "embed_dim": 32, "num_heads": 4}
    towers = {"clip": lambda: tiny.clip(head_width=16), "siglip": lambda: tiny.timm_clip(MAP, kwargs=kwargs)}
    explainer, images = legrad.wrap(towers[name]()), torch.randn(2, 3, 32, 32)
    t = F.normalize(torch.randn(2, 32), dim=-1)
    every = heads.head_relevance(explainer, images, t, layers=2)
    assert every.shape[2:4] == (2, 4)

    def some(choice):
        return explainer.explain(images, t, layers=2, keep_layers=True, method=heads.of_heads(choice))

    chosen = some([0, 2])
    assert limits.close(chosen.layer_relevance, every[:, :, :, [0, 2]].mean(3))
    assert limits.close(chosen.relevance, every[:, :, :, [0, 2]].mean((2, 3)))
    assert chosen.settings["method"] == "legrad:heads=0+2"
    assert torch.equal(chosen.scores, some(3).scores)
    assert limits.close(some(3).layer_relevance, every[:, :, :, 3])
    assert torch.equal(some([2, 0]).relevance, chosen.relevance)

    # the choice is made anew for every image, target and layer
    order = every.sum((-2, -1)).argsort(-1)
    assert len(order[..., 0].unique()) > 1
    expected = {"weakest": order[..., :1], "weaker-half": order[..., :2]}
    expected |= {"strongest": order[..., 3:], "stronger-half": order[..., 2:]}
    assert set(expected) == set(heads.CHOICES)
    for choice, numbers in expected.items():
        found = some(choice).layer_relevance
        for place in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(2)).tolist():
            i, j, k = place
            assert limits.close(found[i, j, k], every[i, j, k, numbers[i, j, k]].mean(0)), (choice, place)


MAP = "vit_base_patch16_siglip_224"


def test_halves_of_an_odd_number_leave_one_out():
    explainer, images = legrad.wrap(tiny.TOWERS["vit-registers"]()), torch.randn(1, 3, 32, 32)
    t = F.normalize(torch.randn(1, 32), dim=-1)
    assert heads.num_heads(explainer.anatomy) == 3
    half, one = (
        explainer.explain(images, t, method=heads.of_heads(choice)).relevance for choice in ("weaker-half", "weakest")
    )
    assert torch.equal(half, one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_heads_in_half_precision(name, dtype):
    model, images, t = tiny.TOWERS[name](), torch.randn(2, 3, 128, 128), F.normalize(torch.randn(2, 32), dim=-1)
    want = heads.head_relevance(legrad.wrap(model), images, t)
    found = heads.head_relevance(legrad.wrap(model.to(dtype)), images, t)
    assert found.dtype == torch.float32
    assert float(torch.corrcoef(torch.stack([found.flatten(), want.flatten()]))[0, 1]) > limits.CORRELATION
    assert float(found.sum() / want.sum()) == pytest.approx(1, abs=limits.HALF_SUM)


def test_small_memory_changes_no_head():
    explainer, images = legrad.wrap(tiny.clip()), torch.randn(3, 3, 32, 32)
    t = F.normalize(torch.randn(3, 32), dim=-1)
    whole, split = (heads.head_relevance(explainer, images, t, memory=memory) for memory in ("auto", 1))
    assert apart(split, whole) < limits.FLOAT32


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([], "give numbers from 0"),
        (-1, "give numbers from 0"),
        ([0, -1], "give numbers from 0"),
        (True, "give numbers from 0"),
        ([0.5], "give numbers from 0"),
        ("best", "'stronger-half'"),
        ([1, 1], "names a head twice"),
        (2, "no head 2: the explained attention has 2 heads, 0 to 1"),
        ([0, 7], "no head 7"),
    ],
)
def test_wrong_heads(choice, message):
    explainer, images, t = legrad.wrap(tiny.clip()), torch.randn(1, 3, 32, 32), torch.randn(32)
    with tiny.left_as_found(explainer.model), pytest.raises(legrad.InputError, match=message):
        explainer.explain(images, t, method=heads.of_heads(choice))


def test_heads_that_are_folded_into_the_batch():
    import timm

    model = timm.create_model(
        "samvit_base_patch16", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,)
    )
    explainer, images = legrad.wrap(tiny.randomised(model)), torch.randn(1, 3, 32, 32)
    target = [lambda feature: feature[:, 0]]
    assert explainer.explain(images, target).relevance.any()
    for look in (lambda: heads.head_relevance(explainer, images, target), lambda: heads.num_heads(explainer.anatomy)):
        with pytest.raises(legrad.UnsupportedModelError, match="folded into the batch"):
            look()


def test_arguments_of_head_relevance_are_handed_on_and_defaults_are_not():
    """Whatever explains may have defaults of its own, as the benchmark's model under test."""
    explanation = legrad.wrap(tiny.clip()).explain(torch.randn(1, 3, 32, 32), torch.randn(32), keep_layers=True)
    calls = []

    class Recorder:
        def explain(self, images, targets, **arguments):
            calls.append(arguments)
            return explanation

    heads.head_relevance(Recorder(), "image", "target")
    heads.head_relevance(Recorder(), "image", "target", 2, readout="native", size=64, fit="pad", memory=1)
    for arguments in calls:
        assert arguments.pop("method") is EVERY_HEAD
        assert arguments.pop("keep_layers")
    assert calls == [
        {"layers": None},
        {"layers": 2, "readout": "native", "size": 64, "fit": "pad", "memory": 1},
    ]


def test_the_old_name_of_num_heads():
    anatomy = legrad.wrap(tiny.clip()).anatomy
    with pytest.warns(DeprecationWarning, match="count is called num_heads"):
        assert heads.count(anatomy) == heads.num_heads(anatomy) == 2
