"""What goes into a model beside the images: cut along with them, in every pass, and refused where it does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers import limits, tiny
from torch import nn

import legrad
from legrad import methods

pytestmark = pytest.mark.filterwarnings("ignore:.*(hardly depend|maps are flat)")
IMAGES = 3


class Fused(nn.Module):
    """Metadata enters the head, and between the blocks if ``inside``."""

    def __init__(self, inside=False):
        super().__init__()
        torch.manual_seed(0)
        self.tower = timm.create_model("vit_tiny_patch16_224", num_classes=0, **tiny.SMALL)
        self.head = nn.Sequential(nn.Linear(48 + 7, 16), nn.Tanh(), nn.Linear(16, 5))
        self.film = nn.Linear(7, 48)
        self.inside = inside
        tiny.randomised(self)

    def forward(self, image, meta):
        if not self.inside:
            return self.read(self.tower.forward_features(image), meta)
        tokens = self.tower.norm_pre(self.tower._pos_embed(self.tower.patch_embed(image)))
        for block in self.tower.blocks:
            tokens = block(tokens) * (1 + self.film(meta)[:, None])
        return self.read(self.tower.norm(tokens), meta)

    def read(self, tokens, meta):
        return self.head(torch.cat([tokens[:, 0], meta], -1))


def wrapped(model):
    known = legrad.wrap(model.tower).anatomy
    if model.inside:

        def native(tokens, meta):
            return model.read(model.tower.norm(tokens * (1 + model.film(meta)[:, None])), meta)
    else:

        def native(tokens, meta):
            return model.read(model.tower.norm(tokens), meta)

    readouts = {"native": legrad.Readout(native)}
    return legrad.wrap(
        model, anatomy=replace(known, tower=model, run=model, output="logits", at_size=None, readouts=readouts)
    )


def for_one(model, meta):
    """The same model for one image, its metadata built in: the twin."""
    explainer = wrapped(model)
    native = explainer.anatomy.readouts["native"].function
    return legrad.wrap(
        model,
        anatomy=replace(
            explainer.anatomy,
            run=lambda image: model(image, meta.expand(len(image), -1)),
            readouts={"native": legrad.Readout(lambda tokens: native(tokens, meta.expand(len(tokens), -1)))},
        ),
    )


@pytest.fixture(scope="module")
def images():
    return torch.randn(IMAGES, 3, 32, 32, dtype=torch.float64)


@pytest.fixture(scope="module")
def meta():
    values = torch.randn(IMAGES, 7, dtype=torch.float64)
    values[0] = 0
    return values


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("readout", ["published", "native"])
def test_every_image_gets_its_own_row(images, meta, inside, readout):
    model = Fused(inside).double()
    with tiny.left_as_found(model):
        found = wrapped(model).explain(
            images, [2, legrad.PREDICTED], readout=readout, inputs={"meta": meta}, keep_layers=True
        )
    with torch.no_grad():
        assert limits.close(found.scores[:, 0], model(images, meta)[:, 2])
        assert limits.close(found.scores[:, 1], model(images, meta).amax(1))
    for row in range(IMAGES):
        explainer = for_one(model, meta[row : row + 1])
        alone = explainer.explain(images[row : row + 1], [2, legrad.PREDICTED], readout=readout, keep_layers=True)
        assert limits.close(found.layer_relevance[row], alone.layer_relevance[0], maps=True)


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("legrad", "rise", "uniform")])
def test_every_method_hands_them_on(images, meta, method):
    model = Fused().double()
    found = wrapped(model).explain(images, 2, method=method, inputs={"meta": meta}, memory=1)
    with torch.no_grad():
        assert limits.close(found.scores[:, 0], model(images, meta)[:, 2])
    alone = for_one(model, meta[1:2]).explain(images[1:2], 2, method=method)
    assert limits.close(found.relevance[1], alone.relevance[0], maps=True)


def test_a_pooler_that_reads_several_layers_at_once(images, meta):
    model = tiny.TOWERS["siglip2"]().double()
    gate = torch.randn(7, 32, dtype=torch.float64)

    def run(batch, meta):
        return model.visual(batch) * (meta @ gate).exp()

    known = legrad.wrap(model).anatomy
    native = known.readouts["native"].function
    readouts = {"native": legrad.Readout(lambda tokens, meta: native(tokens) * (meta @ gate).exp())}
    explainer = legrad.wrap(model, anatomy=replace(known, run=run, readouts=readouts, at_size=None))
    embedding = torch.randn(32)
    found = explainer.explain(images, embedding, inputs={"meta": meta})
    for row in range(IMAGES):
        one = slice(row, row + 1)
        alone = explainer.explain(images[one], embedding, inputs={"meta": meta[one]})
        assert limits.close(found.relevance[row], alone.relevance[0], maps=True)
    other = explainer.explain(images, embedding, inputs={"meta": meta.flip(0)})
    assert limits.error(found.relevance, other.relevance) > limits.DIFFERENT


def test_predictions_in_parts(images, meta, monkeypatch):
    model = Fused().double()
    monkeypatch.setattr("legrad.batches.images_per_forward", lambda anatomy: 2)
    with torch.no_grad():
        assert limits.close(wrapped(model).predict(images, inputs={"meta": meta.numpy()}), model(images, meta))


def test_passes_of_few_images(images, meta):
    model = Fused()
    images, meta = images.float(), meta.float()
    whole = wrapped(model).explain(images, 2, inputs={"meta": meta})
    small = wrapped(model).explain(images, 2, inputs={"meta": meta.double()}, memory=1)
    assert limits.close(small.relevance, whole.relevance, maps=True)


def test_heads_of_a_model_with_metadata(images, meta):
    explainer = wrapped(Fused().double())
    heads = legrad.heads.head_relevance(explainer, images, 2, inputs={"meta": meta})
    assert limits.close(heads.mean((2, 3)), explainer.explain(images, 2, inputs={"meta": meta}).relevance, maps=True)


class Subclass(timm.models.VisionTransformer):
    """A model that its library's adapter knows, with one more argument."""

    def forward(self, x, scale=None):
        logits = super().forward(x)
        return logits if scale is None else logits * scale[:, None]


def test_a_known_model_whose_forward_takes_more(images):
    torch.manual_seed(0)
    model = tiny.randomised(Subclass(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=4))
    images = images.float()
    explainer = legrad.wrap(model)
    with torch.no_grad():
        expected = model(images)
    assert limits.close(explainer.predict(images), expected)
    # the head is told nothing of the scale: the truth check notices at once
    explainer.explain(images, 1, inputs={"scale": torch.ones(IMAGES)})
    with pytest.raises(legrad.TruthCheckError, match="native read-out"):
        explainer.explain(images, 1, inputs={"scale": torch.full((IMAGES,), 2.0)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "this model needs 'meta' beside the images"),
        ({}, "this model needs 'meta' beside the images"),
        (torch.zeros(IMAGES, 7), "inputs is a dict of names and tensors"),
        ({"meta": torch.zeros(2, 7)}, r"inputs\['meta'\] has 2 rows for 3 images; give one row per image"),
        ({"meta": torch.tensor(1.0)}, r"inputs\['meta'\] has no rows for 3 images"),
        ({"meta": "rows"}, r"inputs\['meta'\] is a tensor or array"),
        ({"meta": np.ma.array(np.zeros((IMAGES, 7)), mask=True)}, r"inputs\['meta'\] is a tensor or array"),
        ({"meta": np.array(["a", "b", "c"])}, r"inputs\['meta'\] is a tensor of numbers"),
        ({"meta": torch.full((IMAGES, 7), torch.nan)}, r"inputs\['meta'\] holds NaN"),
        ({"meta": torch.zeros(IMAGES, 7, device="meta")}, "is a tensor or array with one row per image"),
        ({"meta": torch.zeros(IMAGES, 3)}, r"the model does not take its inputs meta \(., 3\)"),
        (
            {"meta": torch.zeros(IMAGES, 7), "age": torch.zeros(IMAGES)},
            "takes no input 'age' beside the images",
        ),
        ({"image": torch.zeros(IMAGES, 7), "meta": torch.zeros(IMAGES, 7)}, "takes no input 'image'"),
        ({7: torch.zeros(IMAGES, 7)}, "takes no input 7"),
    ],
)
def test_inputs_that_do_not_fit(images, inputs, message):
    explainer = wrapped(Fused())
    for call in (explainer.explain, explainer.predict):
        arguments = (images.float(), 2) if call == explainer.explain else (images.float(),)
        with pytest.raises(legrad.InputError, match=message) as told:
            call(*arguments, inputs=inputs)
        assert "\n" not in str(told.value)


def test_the_doctor_gives_it_a_row():
    explainer = wrapped(Fused())
    assert legrad.doctor.examine(explainer, inputs={"meta": torch.zeros(1, 7)}).healthy
    with pytest.raises(legrad.InputError, match="this model needs 'meta' beside the images"):
        legrad.doctor.examine(explainer)


def test_another_image_has_no_second_input(images):
    explainer = wrapped(Fused())
    feature = replace(explainer.anatomy, output="feature")
    explainer = legrad.wrap(explainer.model, anatomy=feature)
    with pytest.raises(legrad.InputError, match="there is no 'meta' for the other image"):
        explainer.explain(images.float(), legrad.Similar(images[0]), inputs={"meta": torch.zeros(IMAGES, 7)})


def test_names_of_classes_of_a_model_with_metadata(images):
    explainer = wrapped(Fused())
    labels = [f"class of {index}" for index in range(5)]
    named = legrad.wrap(explainer.model, anatomy=explainer.anatomy, labels=labels)
    assert named.explain(images.float(), "class of 2", inputs={"meta": torch.zeros(IMAGES, 7)}).labels[0] == [labels[2]]


def test_a_model_that_takes_images_only(images):
    with pytest.raises(legrad.InputError, match="takes no input 'meta' beside the images"):
        legrad.wrap(tiny.clip()).explain(images.float(), torch.randn(32), inputs={"meta": torch.zeros(IMAGES, 7)})
