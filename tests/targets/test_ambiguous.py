"""Targets that could mean two things, or nothing: refused or warned of, never guessed."""

import pickle
import warnings

import numpy as np
import pytest
import timm
import torch
from helpers import limits, tiny

import legrad

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend")
LABELS = ["crane", "Cardigan", "cardigan", "crane", "dog"]


@pytest.fixture(scope="module")
def explainer():
    return legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL))
    return legrad.wrap(model, labels=LABELS)


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 32, 32)


# -- features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 31])
def test_a_contrast_of_another_number_of_features_is_not_broadcast(explainer, x, count):
    message = f"the embedding has {count} features, the model has 32"
    for contrast in (legrad.Contrast(torch.ones(count), "cat"), legrad.Contrast("cat", np.ones(count))):
        with pytest.raises(legrad.InputError, match=message):
            explainer.explain(x, contrast)
    with pytest.raises(legrad.InputError, match=f"'embedding' has {count} features, 'embedding' has 32"):
        explainer.explain(x, legrad.Contrast(torch.ones(count), torch.ones(32)))


@pytest.mark.parametrize(
    "embedding",
    [
        torch.empty(32, device="meta"),
        torch.ones(32).to_sparse(),
        torch.ones(32).to(torch.float8_e4m3fn),
    ],
    ids=["meta", "sparse", "float8"],
)
def test_embeddings_of_odd_tensors(explainer, x, embedding):
    for targets in (embedding, [embedding, "cat"], legrad.Contrast(embedding, "cat")):
        with pytest.raises(legrad.InputError, match="is a dense tensor with data"):
            explainer.explain(x, targets)


# -- classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "indices"), [("crane", r"\[0, 3\]"), ("Crane ", r"\[0, 3\]"), ("cardigan", r"\[1, 2\]")]
)
def test_a_name_of_several_classes(classifier, x, text, indices):
    with pytest.raises(legrad.InputError, match=f"names several classes; give one of the indices {indices}"):
        classifier.explain(x, text)


def test_a_name_of_one_class(classifier, x):
    assert classifier.explain(x, "Dog").labels == [["dog"]] * 2


@pytest.mark.parametrize("target", [True, np.True_, [1, False]])
def test_a_bool_is_no_class(classifier, x, target):
    with pytest.raises(legrad.InputError, match="a bool is not a target"):
        classifier.explain(x, target)


@pytest.mark.parametrize("target", ["", " ", ["dog", "\n"]])
def test_an_empty_text_is_no_class(classifier, x, target):
    with pytest.raises(legrad.InputError, match="a text target is empty"):
        classifier.explain(x, target)


def told(classifier, x, targets):
    with warnings.catch_warnings(record=True) as all_warnings:
        warnings.simplefilter("always")
        explanation = classifier.explain(x, targets)
    return explanation, [str(warning.message) for warning in all_warnings if "class indices" in str(warning.message)]


@pytest.mark.parametrize("labels", [torch.tensor([1, 4]), np.array([4, 4]), [4, 4], (np.int64(2), np.int64(2))])
def test_labels_of_a_batch_are_all_for_all_images_and_that_is_told(classifier, x, labels):
    explanation, messages = told(classifier, x, labels)
    assert explanation.relevance.shape[1] == 2
    first, second = (int(label) for label in labels)
    assert len(messages) == 1
    assert f"give a list for each, [[{first}], [{second}]]" in messages[0]
    own, silence = told(classifier, x, [[first], [second]])
    assert own.relevance.shape[1] == 1
    assert not silence
    assert limits.close(own.relevance[1, 0], explanation.relevance[1, 1], maps=True)


@pytest.mark.parametrize("targets", [[1, 4], [1, 4, 2], torch.tensor([1, 4, 2]), torch.tensor(1), [1, "dog"]])
def test_other_classes_are_not_worth_a_word(classifier, x, targets):
    assert not told(classifier, x, targets)[1]
    assert not told(classifier, x[:1], torch.tensor([1]))[1]


# -- kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (legrad.Prompts("cow", [1]), "templates: .*got 1 among them"),
        (legrad.Prompts("cow", None), "templates: .*got None"),
        (legrad.Prompts("cow", 7), "templates: .*got 7"),
        (legrad.Prompts(None, ["a {}"]), "name of legrad.Prompts: .*got None"),
        (legrad.Prompts(7, ["a {}"]), "name of legrad.Prompts: .*got 7"),
        (legrad.Prompts("", ["a {}"]), "name of legrad.Prompts: .*got ''"),
        (legrad.ZeroShot([1, 2]), "names of legrad.ZeroShot: .*got 1 among them"),
        (legrad.ZeroShot([None]), "names of legrad.ZeroShot: .*got None among them"),
        (legrad.ZeroShot([""]), "names of legrad.ZeroShot: .*got '' among them"),
        (legrad.ZeroShot(7), "names of legrad.ZeroShot: .*got 7"),
        (legrad.ZeroShot(None), "names of legrad.ZeroShot: .*got None"),
        (legrad.ZeroShot(["cow"], None), "templates: .*got None"),
        (legrad.Contrast(None, "a"), "no targets"),
        (legrad.Contrast("a", []), "no targets"),
        (legrad.Contrast(["a", "b"], "c"), "a single target"),
        (legrad.Contrast(True, "c"), "a bool"),
        (torch.zeros(0, 32), "no targets"),
        (np.zeros((0, 32)), "no targets"),
        (range(0), "no targets"),
        ([range(0)], "no targets"),
        (None, "no targets"),
        (np.ma.array(np.ones(32), mask=True), "a masked array is no target"),
        (legrad.ZeroShot(torch.tensor(1)), "names of legrad.ZeroShot"),
        ({"a"}, "cannot use set"),
        (b"a", "cannot use bytes"),
    ],
)
def test_malformed_targets(explainer, x, target, message):
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(x, target)


def test_names_in_any_collection(explainer, x):
    names = {"cow": 1, "dog": 2}
    expected = explainer.explain(x, legrad.ZeroShot(["cow", "dog"]))
    for collection in (names, names.keys(), (name for name in names), np.array(["cow", "dog"]), ("cow", "dog")):
        target = legrad.ZeroShot(collection)
        for _ in range(2):
            found = explainer.explain(x, target)
            assert torch.equal(found.relevance, expected.relevance)
            assert found.labels == expected.labels
    assert explainer.explain(x, legrad.ZeroShot({"cow", "dog"})).labels == expected.labels


# -- targets of another model -------------------------------------------------------------------------------------


def test_targets_that_another_model_embedded(explainer, x):
    other = legrad.wrap(tiny.clip(seed=3), tokenizer=tiny.tokenizer)
    targets = other.embed(["cat", "dog"])
    for given in (targets, targets[1:], [targets[0]], legrad.Contrast(targets[0], "cat"), [[targets[0]], ["cat"]]):
        with pytest.raises(legrad.InputError, match="was embedded by another model"):
            explainer.explain(x, given)
    explainer.explain(x, targets.embeddings)


def test_targets_of_the_same_model_in_other_hands(explainer, x):
    targets = explainer.embed("cat")
    expected = explainer.explain(x, targets)
    for same in (legrad.wrap(explainer.model), legrad.wrap(explainer.model.visual)):
        assert torch.equal(same.explain(x, targets).relevance, expected.relevance)
    restored = pickle.loads(pickle.dumps(targets))
    assert torch.equal(explainer.explain(x, restored).relevance, expected.relevance)
