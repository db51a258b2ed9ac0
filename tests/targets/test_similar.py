"""``Similar``: the other image is seen as the explained ones are."""

import numpy as np
import pytest
import torch
from helpers import limits
from helpers.zoo import transformers as zoo
from PIL import Image

import legrad

transformers = pytest.importorskip("transformers")


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("hardly depend on the target", "maps are flat")
]


@pytest.fixture(scope="module")
def explainer():
    """Its own transform crops the centre, 32 x 32."""
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return legrad.wrap(zoo.build("CLIPModel"), transform=processor)


def scene(seed=0):
    """900 x 300, white but for its left part, which the crop of the centre never shows."""
    image = np.full((300, 900, 3), 255, np.uint8)
    image[:, :250] = np.random.default_rng(seed).integers(0, 255, (6, 5, 3), np.uint8).repeat(50, 0).repeat(50, 1)
    return Image.fromarray(image)


PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8))


def direct(explainer, image, other, **fitting):
    return explainer.predict(image, **fitting) @ explainer.predict(other, **fitting).T


@pytest.mark.parametrize(
    "fitting", [{}, {"fit": "squash"}, {"fit": "pad"}, {"size": (48, 64), "fit": "squash"}], ids=str
)
def test_the_other_image_gets_the_same_size_and_fit(explainer, fitting):
    found = explainer.explain(PHOTO, [legrad.Similar(scene()), legrad.Similar(scene(7))], **fitting)
    expected = torch.cat([direct(explainer, PHOTO, other, **fitting) for other in (scene(), scene(7))], 1)
    assert limits.close(found.scores, expected)
    assert (found.scores[0, 0] == found.scores[0, 1]) == (not fitting)  # what the crop hides makes no difference
    prepared = explainer.prepare(PHOTO, **fitting)
    for inputs in (prepared, prepared[:1]):
        assert torch.equal(explainer.explain(inputs, legrad.Similar(scene())).scores[:, 0], found.scores[:, 0])
    embedded = explainer.embed(legrad.Similar(scene()), **fitting)
    assert torch.equal(explainer.explain(PHOTO, embedded, **fitting).scores[:, 0], found.scores[:, 0])
    (result,) = explainer.stream([PHOTO], legrad.Similar(scene()), **fitting)
    assert torch.equal(result.scores[:, 0], found.scores[:, 0])
    contrast = explainer.explain(PHOTO, legrad.Contrast(legrad.Similar(scene()), legrad.Similar(scene(7))), **fitting)
    assert limits.close(contrast.scores + 1, expected[:, :1] - expected[:, 1:] + 1)


def test_its_values_are_scaled_alike(explainer):
    def depths(seed):
        return np.random.default_rng(seed).integers(0, 4095, (40, 40), np.uint16)

    found = explainer.explain(depths(0), legrad.Similar(depths(0)), value_range=(0, 4095))
    assert found.scores.item() == pytest.approx(1)


def test_tensors_are_taken_as_they_are(explainer):
    x = torch.randn(3, 32, 32)
    found = explainer.explain(PHOTO, legrad.Similar(x), fit="squash")
    assert limits.close(found.scores, explainer.predict(PHOTO, fit="squash") @ explainer.predict(x[None]).T)


def test_labels_are_stems_of_files(explainer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scene().save(tmp_path / name / "my dog.v2.png")
    paths = [tmp_path / name / "my dog.v2.png" for name in ("a", "b")]
    found = explainer.explain(PHOTO, [legrad.Similar(paths[0]), legrad.Similar(str(paths[1])), legrad.Similar(PHOTO)])
    assert found.labels == [["similar to my dog.v2", "similar to my dog.v2 (2)", "similar to image 0"]]
    contrast = explainer.explain(PHOTO, legrad.Contrast(legrad.Similar(paths[0]), legrad.Similar(PHOTO)))
    assert contrast.labels == [["similar to my dog.v2 rather than similar to image 0"]]
