"""Callables: every one gets the model's answer untouched, and what it gives back is checked."""

import pytest
import torch
from helpers import limits, tiny, twin
from torch import nn

import legrad

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend")


@pytest.fixture(scope="module")
def explainer():
    return legrad.wrap(tiny.clip())


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 32, 32)


def test_a_callable_that_works_in_place_changes_its_own_copy_only(explainer, x):
    others = [torch.randn(32), lambda feature: feature[:, 3]]
    found = explainer.explain(x, [lambda feature: feature.mul_(2).square_().sum(-1) + feature[:, 0], *others])
    expected = explainer.explain(x, [lambda feature: (4 * feature.square()).sum(-1) + 4 * feature[:, 0] ** 2, *others])
    assert limits.close(found.scores, expected.scores)
    assert twin.distance(found.relevance, expected.relevance) < limits.FLOAT32


def test_changes_behind_the_back_of_autograd_that_do_no_harm(explainer, x):
    def sly(feature):
        score = feature[:, 0] * 1.0
        feature.data.zero_()
        return score

    embedding = torch.randn(32)
    found, expected = (explainer.explain(x, [f, embedding, f]) for f in (sly, lambda feature: feature[:, 0] * 1.0))
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.relevance, expected.relevance)


def test_changes_behind_the_back_of_autograd_are_refused(explainer, x):
    def sly(feature):
        score = feature[:, 0] * feature[:, 1]
        feature.data.zero_()
        return score

    with pytest.raises(legrad.InputError, match=r"'sly': the callable changes its feature through \.data"):
        explainer.explain(x, [sly, torch.randn(32)])


def switched_off(feature):
    torch.set_grad_enabled(False)
    return feature[:, 0]


def switched_off_late(feature):
    score = feature[:, 0]
    torch.set_grad_enabled(False)
    return score


PROBE = nn.Linear(32, 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda feature: None, r"floats of shape \(2,\); it returned NoneType"),
        (lambda feature: feature[:, :1], r"it returned \(2, 1\)"),
        (lambda feature: feature.sum(), r"it returned \(\)"),
        (lambda feature: [0.0, 0.0], "it returned list"),
        (lambda feature: (feature[:, 0],), "it returned tuple"),
        (lambda feature: feature.detach().numpy()[:, 0], "it returned ndarray"),
        (lambda feature: (feature[:, 0] > 0).long(), "int64"),
        (lambda feature: feature[:, 0] + 0j, "complex64"),
        (lambda feature: feature[:, 0].detach(), "does not depend on the feature"),
        (lambda feature: PROBE(feature.detach())[:, 0], "does not depend on the feature"),
        (lambda feature: PROBE.weight.sum().expand(2), "does not depend on the feature"),
        (switched_off, "does not depend on the feature"),
        (lambda feature: feature.foo, "the callable failed: 'Tensor' object has no attribute 'foo'"),
        (lambda feature: nn.Linear(31, 1)(feature)[:, 0], "the callable failed: .*mat1 and mat2"),
        (lambda feature: 1 / 0, "the callable failed: division by zero"),
        (lambda feature: feature[:, 0] * torch.nan, "score of target .* holds NaN .* its callable returns them"),
        (lambda feature: feature[:, 0] / 0, "score of target .* holds NaN or infinite"),
        (lambda feature: (feature[:, 0] * 0).sqrt(), "map of target .* holds NaN .* no finite gradient"),
    ],
)
def test_callables_that_give_no_score(explainer, x, function, message):
    for targets in (function, [function, torch.randn(32)], legrad.Contrast(function, torch.randn(32))):
        with pytest.raises(legrad.InputError, match=message) as told:
            explainer.explain(x, targets)
        assert "\n" not in str(told.value)
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("function", [switched_off_late, lambda feature: feature.double()[:, 0]])
def test_callables_that_are_all_right_in_spite_of_it(explainer, x, function):
    found, expected = explainer.explain(x, [function, torch.ones(32)]), explainer.explain(x, lambda f: f[:, 0])
    assert twin.distance(found.relevance[:, 0], expected.relevance[:, 0]) < limits.FLOAT32
    assert torch.is_grad_enabled()


def test_a_users_own_exception_comes_through(explainer, x):
    class OwnError(RuntimeError):
        pass

    def fail(feature):
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        explainer.explain(x, fail)
