"""Methods whose maps depend on no target need none, and raw attention head by head."""

import pytest
import torch
from helpers import limits, tiny

import legrad
from legrad import heads, methods

pytestmark = pytest.mark.filterwarnings("ignore:.*maps are flat")
NO_TARGETS = [name for name, method in methods.METHODS.items() if not method.targets]


@pytest.fixture(scope="module")
def explainer():
    return legrad.wrap(tiny.clip())


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32)


def test_the_registry_says_which():
    assert NO_TARGETS == ["raw-attention", "rollout", "random", "uniform", "centre", "edges"]


@pytest.mark.parametrize("method", NO_TARGETS)
@pytest.mark.parametrize("targets", [None, []])
def test_none_is_enough(explainer, images, method, targets):
    found = explainer.explain(images, targets, method=method)
    expected = explainer.explain(images, torch.randn(32), method=method)
    assert torch.equal(found.relevance, expected.relevance)
    assert found.labels == [["attention" if method in ("raw-attention", "rollout") else method]] * 2
    assert not found.scores.any()
    assert not found.prompt_independent.any()


@pytest.mark.parametrize("method", ["legrad", "gradcam", "occlusion"])
@pytest.mark.parametrize("targets", [None, [], ()])
def test_others_need_one(explainer, images, method, targets):
    with pytest.raises(legrad.InputError, match=r"no targets: give at least one text.*raw-attention"):
        explainer.explain(images, targets, method=method)


@pytest.mark.parametrize("name", ["clip", "siglip2", "clip-avg"])
def test_attention_head_by_head(name, images):
    explainer = legrad.wrap(tiny.TOWERS[name]())
    found = explainer.explain(images, method="raw-attention:heads=each")
    count = heads.num_heads(explainer.anatomy)
    assert found.labels == [[f"head {head}" for head in range(count)]] * 2
    mean = explainer.explain(images, method="raw-attention")
    assert limits.close(found.relevance.mean(1, keepdim=True), mean.relevance, maps=True)
    assert limits.error(found.relevance[:, 0], found.relevance[:, 1]) > limits.DIFFERENT
    assert found.settings["method"] == "raw-attention:heads=each"


def test_one_layer_and_no_targets_for_heads(explainer, images):
    first = explainer.explain(images, method="raw-attention:heads=each", layers=[0])
    mean = explainer.explain(images, method="raw-attention", layers=[0])
    assert limits.close(first.relevance.mean(1, keepdim=True), mean.relevance, maps=True)
    with pytest.raises(legrad.InputError, match="give one layer"):
        explainer.explain(images, method="raw-attention:heads=each", layers=2)
    with pytest.raises(legrad.InputError, match="takes no targets"):
        explainer.explain(images, torch.randn(32), method="raw-attention:heads=each")


def test_similar_to_a_single_tensor(explainer, images):
    one, batch = (explainer.explain(images, legrad.Similar(image)) for image in (images[0], images[:1]))
    assert torch.equal(one.relevance, batch.relevance)
    assert float(one.scores[0, 0]) == pytest.approx(1, abs=1e-5)
