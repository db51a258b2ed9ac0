"""Wrong targets, tensors and options: one clear error each, and the right one."""

import warnings

import numpy as np
import pytest
import torch
from helpers import limits, tiny

import legrad
from legrad.targets.kinds import as_list
from legrad.targets.text import truncated_texts


@pytest.fixture(scope="module")
def explainer():
    return legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer)


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("", "empty"),
        (["cat", "  "], "empty"),
        ([], "no targets"),
        ([[], []], "no targets"),
        (3, "class index 3 needs a classifier"),
        ([True], "bool"),
        (legrad.PREDICTED, "ZeroShot"),
        ([["a"]], "1 lists of targets for 2 images"),
        ([["a"], ["b"], ["c"]], "3 lists of targets for 2 images"),
        ([["a"], "b"], "mixes lists and single targets"),
        (torch.zeros(32), "zero"),
        (torch.full((32,), torch.nan), "NaN"),
        (torch.randn(2, 3, 4), "float tensor"),
        (torch.ones(32, dtype=torch.long), "class index 1 needs"),
        (torch.ones(2, 2, dtype=torch.long), "float tensor"),
        (torch.randn(31), "31 features, the model has 32"),
        (1.5, "cannot use float"),
        ({"a": 1}, "cannot use dict"),
        (legrad.Prompts("cat", []), "templates"),
        (legrad.Prompts("cat", ["no braces"]), "templates"),
        (legrad.Prompts("cat", "a {}"), "templates"),
        (legrad.ZeroShot([]), "ZeroShot"),
        (legrad.ZeroShot("cat"), "ZeroShot"),
        (legrad.Similar(torch.randn(2, 3, 32, 32)), "one image"),
        (lambda feature: feature, r"one score per image.*\(2,\).*returned \(2, 32\)"),
        (lambda feature: 1.0, "returned float"),
        (lambda feature: feature.detach()[:, 0], "does not depend on the feature"),
    ],
)
def test_wrong_targets(explainer, x, targets, message):
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(x, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "mine"}, "readout is one of 'auto', 'published', 'native'"),
        ({"method": "magic"}, "method is one of 'legrad'"),
        ({"fit": "stretch"}, "fit is one of 'model', 'squash', 'pad'"),
        ({"size": 64}, "for images"),
        ({"fit": "pad"}, "for images"),
        ({"memory": 0}, "memory"),
        ({"memory": "all"}, "memory"),
        ({"null_threshold": 2}, "null_threshold"),
    ],
)
def test_wrong_options(explainer, x, options, message):
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(x, "cat", **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 32, 32), torch.nan), "NaN"),
        (torch.full((1, 3, 32, 32), torch.inf), "NaN or infinite"),
        (torch.randn(3, 32, 32), "normalised float"),
        (torch.randn(1, 1, 32, 32), "normalised float"),
        (torch.randn(0, 3, 32, 32), "at least one"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "normalised float"),
        (torch.randn(1, 3, 7, 32), "smaller than one patch"),
        ([torch.randn(3, 32, 32)], "not inside a list"),
        ([], "no images"),
        ("photo.png", "carries no preprocessing"),
    ],
)
def test_wrong_tensors(explainer, images, message):
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(images, "cat")


def test_text_without_a_tokenizer_says_what_to_give():
    with pytest.raises(legrad.InputError, match=r"tokenizer=open_clip\.get_tokenizer"):
        legrad.wrap(tiny.clip()).explain(torch.randn(1, 3, 32, 32), "cat")


def test_text_without_a_text_tower():
    with pytest.raises(legrad.InputError, match="no text tower"):
        legrad.wrap(tiny.clip().visual).explain(torch.randn(1, 3, 32, 32), "cat")


def test_a_vision_tower_alone_is_explained_like_in_its_model():
    model, x, t = tiny.clip(), torch.randn(1, 3, 32, 32), torch.randn(2, 32)
    alone = legrad.wrap(model.visual).explain(x, t)
    assert torch.equal(alone.relevance, legrad.wrap(model).explain(x, t).relevance)


def test_a_list_of_images_gives_tensors_in_order(explainer, x):
    both = explainer.explain(x, ["cat", "dog"])
    assert both.labels == [["cat", "dog"]] * 2
    assert both.relevance.shape == (2, 2, 4, 4)
    assert both.names == ["image 0", "image 1"]
    assert "2 images x 2 targets" in repr(both)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), torch.nn.Sequential()])
def test_unknown_modules_are_refused_with_what_to_do(model):
    with pytest.raises(legrad.UnsupportedModelError, match="ViTAnatomy"):
        legrad.wrap(model)


def test_things_that_are_no_modules():
    with pytest.raises(legrad.InputError, match=r"legrad\.load"):
        legrad.wrap("embedded")


def test_a_cnn_tower_is_refused_in_one_clear_line():
    import open_clip

    model = open_clip.create_model("RN50")
    with pytest.raises(legrad.UnsupportedModelError, match="ModifiedResNet is a convolutional network") as caught:
        legrad.wrap(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "fastvit_t8"])
def test_hierarchical_trunks_are_refused_in_one_clear_line(name):
    model = tiny.timm_clip(name, proj="linear", pool="avg")
    with pytest.raises(legrad.UnsupportedModelError, match="not a plain vision transformer") as caught:
        legrad.wrap(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "target", [[1, 2], ["a", 1], [torch.randn(2, 4), "a"]], ids=["ints", "mixed", "tensors are several"]
)
def test_as_list(target):
    flat = as_list(target)
    assert len(flat) == (3 if isinstance(target[0], torch.Tensor) else 2)


def test_a_transform_of_ones_own_that_ends_in_different_sizes():
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose([transforms.Resize(32), transforms.ToTensor()])
    explainer = legrad.wrap(tiny.clip(), transform=transform)
    pictures = [Image.effect_noise((64, 32), 90).convert("RGB"), Image.effect_noise((32, 32), 90).convert("RGB")]
    assert explainer.explain(pictures[0], torch.randn(32)).relevance.shape[-2:] == (4, 8)
    embedding = torch.randn(32)
    both = explainer.explain([pictures[0], pictures[1], pictures[0]], embedding, keep_layers=True)
    assert both.grids == [(4, 8), (4, 4), (4, 8)]
    assert both.relevance.shape == (3, 1, 4, 8)
    assert not both.relevance[1, ..., 4:].any()
    for index in range(2):
        alone = explainer.explain(pictures[index], embedding, keep_layers=True)
        cols = alone.grids[0][1]
        assert limits.close(both.relevance[index, ..., :cols], alone.relevance[0], maps=True)
        assert limits.close(both.layer_relevance[index, ..., :cols], alone.layer_relevance[0], maps=True)
        assert limits.close(both.saliency()[index], alone.saliency()[0])
        assert limits.close(both.scores[index], alone.scores[0])
    assert both.overlay(1).size == (32, 32)
    with pytest.raises(legrad.InputError, match="own transform"):
        legrad.wrap(tiny.clip().visual, transform=transform).explain(pictures[0], torch.randn(32), fit="pad")


def test_a_synonym_in_a_label_is_enough():
    import dataclasses

    from helpers.zoo import timm as zoo_timm

    explainer = legrad.wrap(zoo_timm.build("vit_tiny_patch16_224"))
    labels = ("goldfish, Carassius auratus", "crane", "crane, bird", "tench, Tinca tinca", *map(str, range(996)))
    explainer._adapter = dataclasses.replace(explainer.adapter, labels=labels)
    picture = torch.randn(1, 3, *explainer.anatomy.image_size)
    for text, index in [("Goldfish", 0), ("carassius auratus", 0), ("crane", 1), ("bird", 2), (" tench ", 3)]:
        found, same = explainer.explain(picture, text), explainer.explain(picture, index)
        assert torch.equal(found.relevance, same.relevance)
        assert found.labels == [[labels[index]]]
    explainer._adapter = dataclasses.replace(explainer.adapter, labels=("a, x", "b, x", *map(str, range(998))))
    with pytest.raises(legrad.InputError, match=r"several classes.*\[0, 1\]"):
        explainer.explain(picture, "x")
    with pytest.raises(legrad.InputError, match=r"no class 'goldfsh'"):
        explainer.explain(picture, "goldfsh")


def test_features_are_compared_by_cosine_similarity():
    import timm

    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0))
    images, other = torch.randn(2, 3, 32, 32), torch.randn(1, 3, 32, 32)
    explainer = legrad.wrap(model)
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(model(images), model(other))
    seen = []

    def norm(feature):
        seen.append(feature.detach().norm(dim=-1))
        return feature[:, 0]

    found = explainer.explain(images, [legrad.Similar(other), model(other)[0].detach(), norm])
    assert limits.close(found.scores[:, 0], cosine)
    assert limits.close(found.scores[:, 1], cosine)
    assert all(limits.close(length, torch.ones(2)) for length in seen)


# -- tokenizers ---------------------------------------------------------------------------------------------------


def words(texts, length=8):
    """One id per word, cut to the context."""
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        found = [3 + sum(map(ord, word)) % 50 for word in text.strip(".").split()][: length - 2]
        ids[row, : len(found) + 2] = torch.tensor([1, *found, 2])
    return ids


def growing(texts):
    """As tokenizers of transformers: padded to the longest, cut at ten; letters may all be one unknown word."""
    rows = [([1] + [5 if word.startswith("x") else 6 for word in text.split()])[:10] for text in texts]
    return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])


@pytest.mark.parametrize(
    ("tokenize", "texts", "expected"),
    [
        (words, ["a b c d e f"], []),  # exactly full
        (words, ["a b c d e f g"], ["a b c d e f g"]),
        (words, ["a b c d e f ...", "a photo of a dog, a cat and a ball"], ["a photo of a dog, a cat and a ball"]),
        (words, ["a"], []),
        (growing, ["xa xb", "xa", "b b b"], []),
        (growing, ["x " * 8 + "b"], []),
        (growing, ["a dog", "x " * 9 + "b"], ["x " * 9 + "b"]),
    ],
)
def test_which_texts_are_cut(tokenize, texts, expected):
    assert truncated_texts(tokenize, texts, tokenize(texts)) == expected


def test_a_text_that_is_cut_is_told_once(explainer, x):
    long = "a photo of a dog and of a cat and of a ball"
    asked = legrad.wrap(explainer.model, tokenizer=words)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asked.explain(x, ["a dog", long])
    (message,) = [str(one.message) for one in told if "longer than the model's context" in str(one.message)]
    assert long in message
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*hardly depend")
        asked.explain(x, ["a dog", "a photo of a dog"])


@pytest.mark.filterwarnings("ignore:.*maps (are flat|hardly depend)")
def test_the_embedded_tokenizer_cuts_too():
    embedded = legrad.load("embedded")
    with pytest.warns(UserWarning, match="longer than the model's context.*1 more texts"):
        embedded.explain(torch.randn(1, 3, 192, 192), ["a cat " * 30, "a dog " * 30, "a cow"])


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda texts: [[1, 2], [3]], "no table of token ids"),
        (lambda texts: texts, "no table of token ids"),
        (lambda texts: {"input_ids": torch.ones(1, 8, dtype=torch.long)}, "returned dict for 1 texts"),
        (lambda texts: torch.ones(3, 8, dtype=torch.long), r"ids of shape \(3, 8\) for 1 texts"),
        (lambda texts: texts.foo, "the tokenizer failed for 'a cat': 'list' object has no attribute 'foo'"),
        (lambda texts: words(texts, 9), r"does not take what the tokenizer gives \(\(1, 9\)\).*this very model"),
        (lambda texts: words(texts) + 1000, "does not take"),
    ],
)
def test_tokenizers_that_do_not_fit(explainer, x, tokenizer, message):
    with pytest.raises(legrad.InputError, match=message):
        legrad.wrap(explainer.model, tokenizer=tokenizer).explain(x, "a cat")


def test_a_tokenizer_may_return_lists(explainer, x):
    expected = legrad.wrap(explainer.model, tokenizer=words).explain(x, "a cat")
    found = legrad.wrap(explainer.model, tokenizer=lambda texts: words(texts).tolist()).explain(x, "a cat")
    assert torch.equal(found.relevance, expected.relevance)


# -- targets in other clothes -------------------------------------------------------------------------------------


def test_indices_in_every_form():
    for target in (torch.tensor([2, 3]), np.array([2, 3]), range(2, 4), [np.int64(2), torch.tensor(3)], [range(2, 4)]):
        assert as_list(target) == [2, 3]
        assert all(type(index) is int for index in as_list(target)[1:])
    assert as_list(torch.tensor(2)) == [2]
    assert as_list([[torch.tensor(2)], [np.array([0, 1])]]) == [[2], [0, 1]]


def test_embeddings_as_arrays(explainer, x):
    vectors = np.random.default_rng(0).normal(size=(2, 32))
    expected = explainer.explain(x, torch.tensor(vectors)).relevance
    assert torch.equal(explainer.explain(x, vectors).relevance, expected)
    assert torch.equal(explainer.explain(x, [vectors[0], vectors[1]]).relevance, expected)
    contrast = explainer.explain(x, legrad.Contrast(vectors[0], torch.tensor(vectors[1])))
    assert contrast.relevance.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("wrong", [np.array(["a"]), np.array([None]), np.array([True]), torch.tensor([[1, 2]])])
def test_arrays_that_are_no_targets(wrong):
    with pytest.raises(legrad.InputError, match="class indices"):
        as_list(wrong)


@pytest.mark.parametrize(
    ("null", "message"), [("", "null_target is an empty text"), (["a", "b"], "single target"), (" ", "null_target")]
)
def test_wrong_null_targets(explainer, x, null, message):
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(x, "a cat", null_target=null)


@pytest.mark.parametrize("target", [3, "cat", legrad.PREDICTED, legrad.ZeroShot(["a"])])
def test_a_model_without_a_head_says_what_it_can(x, target):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=0).eval()
    with pytest.raises(legrad.InputError, match=r"give legrad\.Similar\(image\), an embedding or a callable") as told:
        legrad.wrap(model).explain(x, target)
    assert "text, " not in str(told.value)


def test_a_size_that_fills_the_memory():
    with pytest.raises(legrad.InputError, match="size=100000 asks for 100000 x 100000 pixels, at most 100000000"):
        legrad.load("embedded").explain(np.zeros((20, 30, 3), np.uint8), "a cat", size=100000)


@pytest.mark.filterwarnings("ignore:.*maps hardly depend")
def test_equal_labels_are_numbered(explainer, x):
    found = explainer.explain(x, [torch.randn(32), "cat", torch.randn(32), lambda f: f[:, 0], lambda f: f[:, 1], "cat"])
    assert found.labels[0] == ["embedding", "cat", "embedding (2)", "<lambda>", "<lambda> (2)", "cat (2)"]
