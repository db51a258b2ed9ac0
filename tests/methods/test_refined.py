"""LeGrad's refined forms against their definitions written out, and their ways through the model."""

import pytest
import torch
from helpers import limits, tiny
from helpers.settings import setting

import legrad
from legrad import relevance
from legrad.core import state
from legrad.core.planning import Shortcuts
from legrad.core.score import Direction
from legrad.core.streaming import explain_batch
from legrad.methods import METHODS

FORMS = {"legrad-centred": relevance.centred_relevance, "legrad-simplex": relevance.simplex_relevance}


def written_out(name, gradient, attention, keep):
    """(targets, heads, rows, keys), (heads, rows, keys), (heads, rows, keys) bool -> (targets, keys), loop by loop."""
    targets, heads, rows, keys = gradient.shape
    total = torch.zeros(targets, keys, dtype=torch.float64)
    for t, h, i in torch.cartesian_prod(*map(torch.arange, (targets, heads, rows))).tolist():
        visible = keep[h, i].nonzero()[:, 0].tolist()
        if name == "legrad-centred":
            mean = sum(gradient[t, h, i, k] for k in visible) / len(visible)
            for j in visible:
                total[t, j] += (gradient[t, h, i, j] - mean).clamp(min=0)
        else:
            present = sum(attention[h, i, k] * gradient[t, h, i, k] for k in visible)
            for j in visible:
                total[t, j] += gradient[t, h, i, j] - present
    return total / (heads * rows)


MASKS = {"none": None, "padding": (2, 1, 1, 6), "shared": (1, 1, 1, 6), "rows": (1, 1, 5, 6), "all": (2, 4, 5, 6)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", FORMS)
def test_the_definition_with_masks(name, mask):
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=rng)

    gradient, value = draw(2, 3, 4, 5, 8), draw(2, 4, 6, 8)
    keep = None if MASKS[mask] is None else torch.rand(MASKS[mask], generator=rng) > 0.4
    if keep is not None:
        keep[..., 0] = True  # a row that sees nothing has no softmax
    shown = torch.ones(2, 4, 5, 6, dtype=torch.bool) if keep is None else keep.expand(2, 4, 5, 6)
    attention = draw(2, 4, 5, 6).masked_fill(~shown, -torch.inf).softmax(-1)
    of_attention = torch.einsum("bthqd,bhkd->bthqk", gradient, value)
    expected = torch.stack([written_out(name, *one) for one in zip(of_attention, attention, shown, strict=True)])
    found = FORMS[name](gradient, value, keep, head_output=attention @ value)
    assert limits.error(found, expected) < limits.FLOAT64
    # an attention map that the model writes out is the leaf itself
    assert limits.error(FORMS[name](of_attention, None, keep, head_output=attention), expected) < limits.FLOAT64
    # rows that no read-out reads count among the queries
    more = FORMS[name](gradient, value, keep, 10, attention @ value)
    assert limits.error(more, expected / 2) < limits.FLOAT64
    # what is masked takes no part: other values there change nothing
    if mask in ("padding", "shared"):
        hidden = value.masked_fill(~keep.mT, 100.0)
        assert (
            limits.error(FORMS[name](gradient, hidden, keep, head_output=attention @ value), expected) < limits.FLOAT64
        )


@pytest.mark.parametrize("name", FORMS)
def test_small_chunks_and_half_precision(name, monkeypatch):
    gradient, value, attention = torch.randn(2, 3, 4, 90, 8), torch.randn(2, 4, 90, 8), torch.rand(2, 4, 90, 90)
    output = attention.softmax(-1) @ value
    whole = FORMS[name](gradient, value, head_output=output)
    monkeypatch.setattr(relevance, "_CHUNK_NUMEL", {False: 1, True: 1})
    assert limits.error(FORMS[name](gradient, value, head_output=output), whole) < limits.FLOAT32
    half = FORMS[name](gradient.bfloat16(), value.bfloat16(), head_output=output.bfloat16())
    assert half.dtype == torch.float32
    assert limits.error(half, whole) < 0.05


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", FORMS)
def test_closed_forms_equal_autograd(name, readout):
    model, images, embeddings = setting("clip")
    model, images = model.double(), images.double()
    explainer = legrad.wrap(model)
    explainer.explain(images, embeddings)
    (plan,) = explainer._first_use.shortcuts.values()
    assert plan.tails
    scores = [Direction("", one[None].double()) for one in embeddings]
    with torch.no_grad(), state.evaluation_mode(model):
        found, expected = (
            explain_batch(
                explainer.anatomy, images, scores, range(4), readout, shortcuts, reduction=FORMS[name]
            ).relevance
            for shortcuts in (plan, Shortcuts())
        )
    assert limits.error(found, expected) < limits.FLOAT64


def test_closed_forms_are_used(monkeypatch):
    """Without them the refined forms would cost more than LeGrad."""
    from legrad.core import streaming

    used = []
    closed_form = streaming.relevance_closed_form
    monkeypatch.setattr(
        streaming, "relevance_closed_form", lambda *args: used.append(args[0].reduction) or closed_form(*args)
    )
    model, images, embeddings = setting("clip")
    explainer = legrad.wrap(model)
    explainer.explain(images, embeddings)  # the first pass examines the blocks
    for name, form in FORMS.items():
        used.clear()
        explainer.explain(images, embeddings, method=name)
        assert used
        assert set(used) == {form}


@pytest.mark.parametrize("name", FORMS)
def test_the_defaults_are_the_own_head_and_the_last_two_thirds(name):
    model, images, embeddings = setting("clip")
    explainer = legrad.wrap(model)
    explainer.explain(images, embeddings)  # the first pass examines the blocks
    default = explainer.explain(images, embeddings, method=name)
    assert default.settings["readout"] == "native"
    same = explainer.explain(images, embeddings, method=name, layers=3, readout="native")
    assert limits.close(default.relevance, same.relevance, maps=True)
    published = explainer.explain(images, embeddings, method=name, readout="published").relevance
    assert limits.error(published, default.relevance) > limits.DIFFERENT
    assert METHODS[name].blocks(None, 12) == list(range(4, 12))
    assert METHODS[name].blocks(None, 1) == [0]


def test_the_simplex_form_is_clipped_once_after_the_layers():
    model, images, embeddings = setting("clip")
    found = legrad.wrap(model).explain(images, embeddings, method="legrad-simplex", keep_layers=True)
    assert float(found.layer_relevance.min()) < 0
    assert float(found.relevance.min()) == 0
    assert limits.close(found.relevance, found.layer_relevance.mean(2).clamp(min=0))


@pytest.mark.parametrize("name", FORMS)
def test_many_targets_in_chunks(name):
    model, images, _ = setting("siglip")
    embeddings = torch.nn.functional.normalize(torch.randn(7, 32), dim=-1)
    explainer = legrad.wrap(model)
    with tiny.left_as_found(model):
        together = explainer.explain(images, embeddings, method=name).relevance
        in_parts = explainer.explain(images, embeddings, method=name, memory=1).relevance
        alone = explainer.explain(images[1:], embeddings[5:6], method=name).relevance
    assert limits.close(in_parts, together, maps=True)
    assert limits.close(alone[0, 0], together[1, 5])
