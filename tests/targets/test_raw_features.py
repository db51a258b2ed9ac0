"""Callables and the feature that they get: normalised, or raw as a probe was trained on it."""

from dataclasses import replace

import pytest
import timm
import torch
from helpers import limits, tiny, twin
from torch import nn

import legrad

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend")  # random models: targets look alike


def backbone(**changes):
    torch.manual_seed(0)
    return tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**tiny.SMALL, **changes}))


class Probed(nn.Module):
    """A probe that was trained on the backbone's own output, and both as one classifier."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.probe = tiny.randomised(nn.Sequential(nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 5)))

    def forward(self, images):
        return self.probe(self.backbone(images))

    def wrapped(self):
        """By the guide's recipe for a head on a backbone."""
        known = legrad.wrap(self.backbone).anatomy
        head = known.readouts["native"].function
        readouts = {"native": legrad.Readout(lambda z: self.probe(head(z)))}
        whole = replace(known, tower=self, run=self, output="logits", at_size=None, readouts=readouts)
        return legrad.wrap(self, anatomy=whole)


@pytest.fixture(scope="module")
def probed():
    return Probed(backbone()).double()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, dtype=torch.float64)


def class_two(model):
    return lambda feature: model.probe(feature)[:, 2]


@pytest.mark.parametrize("readout", ["published", "native"])
def test_a_probe_on_raw_features_is_the_whole_model(probed, images, readout):
    whole = probed.wrapped().explain(images, 2, readout=readout, keep_layers=True)
    target = legrad.Target(class_two(probed), feature="raw")
    found = legrad.wrap(probed.backbone).explain(images, target, readout=readout, keep_layers=True)
    with torch.no_grad():
        assert limits.close(found.scores[:, 0], probed(images)[:, 2])
    assert twin.distance(found.layer_relevance, whole.layer_relevance) < limits.FLOAT64


@pytest.mark.parametrize("method", ["gradcam", "chefercam", "grad-eclip", "maskclip", "occlusion"])
def test_other_methods_too(probed, images, method):
    whole = probed.wrapped().explain(images, 2, method=method)
    found = legrad.wrap(probed.backbone).explain(images, legrad.Target(class_two(probed)), method=method)
    assert limits.close(found.scores, whole.scores)
    assert limits.close(found.relevance, whole.relevance, maps=True)


def test_a_readout_that_is_not_normalised_has_scores_that_are_not(probed, images):
    anatomy = legrad.wrap(probed.backbone).anatomy
    native = anatomy.readouts["native"].function
    raw = replace(anatomy, readouts={"native": legrad.Readout(native, normalize=False)})
    explainer = legrad.wrap(probed.backbone, anatomy=raw)
    found = explainer.explain(images, class_two(probed), readout="published")
    with torch.no_grad():
        assert limits.close(found.scores[:, 0], probed(images)[:, 2])
        assert limits.close(explainer.predict(images), probed.backbone(images))
    whole = probed.wrapped().explain(images, 2, readout="published")
    assert twin.distance(found.relevance, whole.relevance) < limits.FLOAT64


def test_raw_and_normalised_targets_in_one_call_keep_their_places(probed, images):
    explainer, embedding = legrad.wrap(probed.backbone), torch.randn(48, dtype=torch.float64)
    raw, plain = legrad.Target(class_two(probed)), class_two(probed)
    normalised = legrad.Target(plain, feature="normalized")
    together = explainer.explain(images, [embedding, raw, plain, normalised, raw], null_target=embedding.flip(0))
    for place, target in enumerate([embedding, raw, plain, normalised, raw]):
        alone = explainer.explain(images, target, null_target=embedding.flip(0))
        assert limits.close(together.relevance[:, place], alone.relevance[:, 0], maps=True)
        assert limits.close(together.scores[:, place], alone.scores[:, 0])
    assert torch.equal(together.scores[:, 2], together.scores[:, 3])
    assert limits.error(together.scores[:, 1], together.scores[:, 2]) > limits.DIFFERENT


def test_logits_are_raw_already(probed, images):
    explainer = probed.wrapped()
    expected = explainer.explain(images, 2)
    for target in (lambda logits: logits[:, 2], legrad.Target(lambda logits: logits[:, 2])):
        found = explainer.explain(images, target)
        assert twin.distance(found.relevance, expected.relevance) < limits.FLOAT64
        assert limits.close(found.scores, expected.scores)


def test_every_image_may_have_its_own_probe(probed, images):
    explainer = legrad.wrap(probed.backbone)
    targets = [legrad.Target(lambda feature, index=index: probed.probe(feature)[:, index]) for index in range(2)]
    found = explainer.explain(images, [[target] for target in targets])
    for image, target in enumerate(targets):
        alone = explainer.explain(images[image : image + 1], target)
        assert limits.close(found.relevance[image], alone.relevance[0], maps=True)


def test_raw_and_normalised_scores_are_not_subtracted(probed, images):
    explainer, target = legrad.wrap(probed.backbone), legrad.Target(class_two(probed))
    both = explainer.explain(
        images, legrad.Contrast(target, legrad.Target(lambda feature: probed.probe(feature)[:, 1]))
    )
    with torch.no_grad():
        logits = probed(images)
    assert limits.close(both.scores[:, 0], logits[:, 2] - logits[:, 1], of=logits)
    with pytest.raises(legrad.InputError, match="scores the raw feature, 'embedding' the normalised one"):
        explainer.explain(images, legrad.Contrast(target, torch.randn(48)))
    with pytest.raises(legrad.InputError, match="one place of the images' lists"):
        explainer.explain(images, [[target], [torch.randn(48)]])


@pytest.mark.parametrize(("function", "feature"), [(7, "raw"), (len, "both"), (len, None)])
def test_wrong_targets(probed, images, function, feature):
    with pytest.raises(legrad.InputError, match=r"legrad\.Target"):
        legrad.wrap(probed.backbone).explain(images, legrad.Target(function, feature))
