"""The steps of ``explain``, each alone: prepare, embed, predict; what they give does as what it was made from."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from PIL import Image

import legrad
from legrad.inputs.prepare import Inputs

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend")  # random models: targets look alike
TEXTS = ["cat", "a longer one", "dog"]


def photo(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def classifier():
    torch.manual_seed(0)
    return tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL))


@pytest.fixture(scope="module")
def embedded():
    return legrad.load("embedded")


def test_prepared_images_are_explained_as_images(embedded):
    images = [photo(40, 60), photo(90, 50, 1)]
    inputs = embedded.prepare(images)
    assert len(inputs) == 2
    assert inputs.tensor.shape == (2, *embedded.anatomy.shape)
    assert np.array_equal(inputs[1].image, np.asarray(images[1]))
    assert len(inputs[:1]) == 1
    prepared, direct = embedded.explain(inputs, "a photo of a cow"), embedded.explain(images, "a photo of a cow")
    assert torch.equal(prepared.relevance, direct.relevance)
    assert prepared.placements == direct.placements
    assert torch.equal(embedded.predict(inputs), embedded.predict(images))


def test_sizes_and_fits_of_prepared_images(embedded):
    images = [photo(40, 60), photo(90, 50, 1)]
    padded = embedded.prepare(images, size=96, fit="pad")
    assert padded.tensor.shape == (2, 3, 96, 96)
    found, want = embedded.explain(padded, "a cow"), embedded.explain(images, "a cow", size=96, fit="pad")
    assert torch.equal(found.relevance, want.relevance)
    with pytest.raises(legrad.InputError, match="size and fit are for images"):
        embedded.explain(padded, "a cow", size=96)
    with pytest.raises(legrad.InputError, match="fit is one of"):
        embedded.prepare(images, fit="crop")
    with pytest.raises(legrad.InputError, match="no images"):
        embedded.prepare([])


def test_inputs_of_several_sizes_are_no_tensor():
    explainer = legrad.wrap(tiny.clip())
    first, second = (explainer.prepare(torch.randn(1, 3, 32, width)) for width in (32, 40))
    with pytest.raises(legrad.InputError, match="differ in shape"):
        _ = Inputs([*first, *second]).tensor


def test_embedded_targets_are_explained_as_targets():
    model, images = tiny.clip(), torch.randn(2, 3, 32, 32)
    explainer = legrad.wrap(model, tokenizer=tiny.tokenizer)
    targets = explainer.embed(TEXTS)
    assert targets.labels == TEXTS
    assert targets.embeddings.shape == (3, 32)
    with torch.no_grad():
        assert limits.close(targets.embeddings, F.normalize(model.encode_text(tiny.tokenizer(TEXTS)), dim=-1))
    found, want = explainer.explain(images, targets), explainer.explain(images, TEXTS)
    assert torch.equal(found.relevance, want.relevance)
    assert found.labels == want.labels
    some = explainer.explain(images, targets[1:])
    assert twin.distance(some.relevance, want.relevance[:, 1:]) < limits.FLOAT32
    own = explainer.explain(images, [targets[:1], [targets[2], "dog"]])
    assert own.labels[1] == ["dog", "dog (2)"]
    assert twin.distance(own.relevance[1, 0], own.relevance[1, 1]) < limits.FLOAT32


def test_texts_are_encoded_once():
    model, calls = tiny.clip(), []
    explainer = legrad.wrap(model, tokenizer=lambda texts: (calls.append(len(texts)), tiny.tokenizer(texts))[1])
    targets = explainer.embed(TEXTS)
    calls.clear()
    for _ in range(2):
        explainer.explain(torch.randn(1, 3, 32, 32), targets)
    assert calls == []


def test_targets_that_have_no_embedding():
    explainer = legrad.wrap(classifier())
    images = torch.randn(2, 3, 32, 32)
    targets = explainer.embed([1, legrad.PREDICTED, lambda logits: logits[:, 0]])
    found, want = explainer.explain(images, targets), explainer.explain(images, [1, legrad.PREDICTED, 0])
    assert twin.distance(found.relevance, want.relevance) < limits.FLOAT32
    with pytest.raises(legrad.InputError, match="has no embedding"):
        _ = targets.embeddings
    assert torch.equal(explainer.embed([1, 0]).embeddings.argmax(1), torch.tensor([1, 0]))
    with pytest.raises(legrad.InputError, match="for all images"):
        explainer.embed([[1], [2]])


@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_predict_is_the_models_own_answer(name):
    model, images = tiny.TOWERS[name](), torch.randn(3, 3, 32, 32)
    explainer = legrad.wrap(model)
    with tiny.left_as_found(model):
        answer = explainer.predict(images)
    with torch.no_grad():
        assert limits.close(answer, F.normalize(explainer.anatomy.run(images), dim=-1))
    assert not answer.requires_grad
    assert torch.equal(answer, torch.cat([explainer.predict(image[None]) for image in images])) or limits.close(
        answer, torch.cat([explainer.predict(image[None]) for image in images])
    )


def test_predict_gives_logits_of_classifiers():
    model, images = classifier(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert limits.close(legrad.wrap(model).predict(images), model(images))
    with pytest.raises(legrad.InputError, match="NaN"):
        legrad.wrap(model).predict(images * torch.nan)
    with pytest.raises(legrad.InputError, match="tensor input is"):
        legrad.wrap(model).predict(images[0])


def test_predict_takes_a_range_of_values(embedded):
    image = np.random.default_rng(0).integers(0, 4096, (40, 40), np.uint16)
    eight_bits = np.repeat((image / 4095 * 255).round().astype(np.uint8)[..., None], 3, -1)
    answer = embedded.predict(image, value_range=(0, 4095))
    assert (answer * embedded.predict(eight_bits)).sum() > 0.999  # rounding to 8 bits
    with pytest.raises(legrad.InputError, match="value_range is for images"):
        embedded.predict(torch.randn(1, 3, 96, 96), value_range=(0, 1))


def test_predictions_keep_the_order_of_images_of_several_sizes(embedded):
    pairs = [photo(40, 60), photo(90, 50, 1), photo(40, 60, 2)]
    together = embedded.predict(pairs)
    for row, image in zip(together, pairs, strict=True):
        assert limits.close(row, embedded.predict(image)[0])
