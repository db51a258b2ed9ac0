"""torchvision's vit_*: read-outs by hand and the slow twin; its own resampling, presets, labels, names."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import generic_twin, limits, twin
from helpers import tiny as models
from helpers.zoo import torchvision as zoo_torchvision
from PIL import Image
from torch import nn

import legrad
from legrad.core import state
from legrad.core.positions import position_check, random_input
from legrad.core.truth import truth_check
from legrad.inputs import transforms
from legrad.models import network
from legrad.models import torchvision as adapter


def tiny(image_size=32, **kwargs):
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    shrunk = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 7}
    return models.randomised(VisionTransformer(image_size=image_size, **{**shrunk, **kwargs}))


def against_twin(model, batch, readout, size=None):
    def score(feature):
        return feature[:, 1] - 2 * feature[:, 4]

    def anatomy_of(copied):
        anatomy = legrad.wrap(copied).anatomy
        return anatomy if size is None else anatomy.at(size)

    model = model.double()
    with models.left_as_found(model):
        explanation = legrad.wrap(model).explain(batch.double(), score, readout=readout, keep_layers=True)
    expected = generic_twin.layer_maps(model, anatomy_of, batch, score, readout)
    assert twin.distance(explanation.layer_relevance[:, 0], expected) < limits.FLOAT64


@pytest.mark.parametrize("representation", [None, 24])
def test_read_outs_and_maps(representation):
    model = tiny(representation_size=representation)
    anatomy = legrad.wrap(model).anatomy
    assert (anatomy.num_prefix_tokens, anatomy.num_prefix_keys, anatomy.default_readout) == (1, 1, "published")
    assert (anatomy.output, anatomy.grid) == ("logits", (4, 4))
    z = torch.randn(2, 17, 32)
    with torch.no_grad():
        native, published = model.heads(model.encoder.ln(z)[:, 0]), model.heads(model.encoder.ln(z.mean(1)))
        assert limits.close(anatomy.readouts["native"].function(z), native)
        assert limits.close(anatomy.readouts["published"].function(z), published)
    with state.evaluation_mode(model):
        batch = random_input(anatomy, batch=2)
        truth_check(anatomy, batch[:1])
        position_check(anatomy, batch[:1])
    for readout in ("native", "published"):
        against_twin(model, batch, readout)


def test_convolutional_stem():
    from torchvision.models.vision_transformer import ConvStemConfig

    model = tiny(conv_stem_configs=[ConvStemConfig(8, 3, 2)] * 3)
    against_twin(model, torch.randn(1, 3, 32, 32), "published")
    against_twin(model, torch.randn(1, 3, 24, 48), "published", (24, 48))
    with pytest.raises(legrad.InputError, match="multiples of"):
        legrad.wrap(model).explain(torch.randn(1, 3, 33, 32), 1)


def test_larger_squares_are_torchvisions_own():
    """Its helper on the weights, and a model built for that size."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    small = tiny()
    large = tiny(image_size=56)
    large.load_state_dict(interpolate_embeddings(56, 8, OrderedDict(small.state_dict())))
    x = torch.randn(1, 3, 56, 56)
    found, want = legrad.wrap(small).explain(x, 3), legrad.wrap(large).explain(x, 3)
    assert twin.distance(found.relevance, want.relevance) < limits.FLOAT32
    assert limits.close(found.scores, want.scores)


@pytest.mark.parametrize("size", [(40, 40), (32, 72), (27, 50)])
def test_other_sizes(size):
    """Non-square ones too, though torchvision itself refuses them."""
    model = tiny()
    other = legrad.wrap(model).anatomy.at(size)
    assert other.grid == (size[0] // 8, size[1] // 8)
    with state.evaluation_mode(model):
        position_check(other, random_input(other))
    against_twin(model, random_input(other), "published", size)


def test_without_a_head():
    model = tiny()
    model.heads = nn.Identity()
    assert legrad.wrap(model).anatomy.output == "feature"
    assert legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), torch.randn(32)).relevance.shape == (1, 1, 4, 4)


def test_zoo():
    model = zoo_torchvision.build("vit_b_16")
    assert legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), 3).relevance.shape == (1, 1, 4, 4)


# -- images and names -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(network, "unreachable", lambda url: "")


@pytest.fixture
def loaded(monkeypatch):
    """``load`` without a download: torchvision's builder gives a tiny model, everything else is its own."""
    import torchvision.models

    asked = {}

    def get_model(name, weights):
        asked.update(name=name, weights=weights)
        return tiny(image_size=224, patch_size=16, num_layers=2, num_classes=1000)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    return asked


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 411, 3), np.uint8))


def test_load(loaded, picture):
    from torchvision.models import ViT_B_16_Weights

    explainer = legrad.load("torchvision:vit_b_16/IMAGENET1K_V1")
    assert loaded == {"name": "vit_b_16", "weights": ViT_B_16_Weights.IMAGENET1K_V1}
    assert legrad.load("torchvision:vit_b_16")
    assert loaded["weights"] == ViT_B_16_Weights.DEFAULT
    explanation = explainer.explain(picture, ["goldfish", 1, legrad.PREDICTED], layers=1)
    assert explanation.labels[0][:2] == ["goldfish", "goldfish (2)"]
    assert explanation.settings["model"] == "torchvision:vit_b_16/IMAGENET1K_V1"
    preset = ViT_B_16_Weights.IMAGENET1K_V1.transforms()
    best = int(explainer.model(preset(picture)[None]).argmax())
    assert explanation.labels[0][2] == f"{ViT_B_16_Weights.DEFAULT.meta['categories'][best]} (predicted)"
    wrapped = legrad.wrap(explainer.model, transform=preset).explain(picture, 1, layers=1)
    assert twin.distance(wrapped.relevance[:, 0], explanation.relevance[:, 1]) < limits.FLOAT32


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "IMAGENET1K_SWAG_E2E_V1"])
@pytest.mark.parametrize("fit", ["model", "squash", "pad"])
@pytest.mark.parametrize("size", [None, (256, 256), (160, 320)])
def test_transforms_can_be_followed(loaded, picture, weights, fit, size):
    from torchvision.models import ViT_B_16_Weights

    preset = ViT_B_16_Weights[weights].transforms()
    transform = adapter.load(f"vit_b_16/{weights}", None, None).transform(size, fit)
    frame = transforms.follow(transform, (picture.height, picture.width))
    crop = preset.crop_size[0]
    assert frame.input == tuple(transform(picture).shape[1:]) == (size or (crop, crop))
    mean, std = transforms.normalisation(transform)
    assert mean.tolist() == pytest.approx(preset.mean)
    assert std.tolist() == pytest.approx(preset.std)
    if size is None and fit == "model":
        shorter = preset.resize_size[0]
        assert frame.scale == (shorter / 300, int(shorter * 411 / 300) / 411)
        assert frame.offset == (-round((shorter - crop) / 2.0), -round((int(shorter * 411 / 300) - crop) / 2.0))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("vit_b_17", legrad.InputError, "nearest: vit_b_16"),
        ("vit_b_16/V9", legrad.InputError, r"no weights 'V9' for vit_b_16; it has \['IMAGENET1K_V1'"),
        ("resnet50", legrad.UnsupportedModelError, "resnet50 is not a ViT; supported: vit_b_16, vit"),
    ],
)
def test_names_that_cannot_work(name, error, words):
    with pytest.raises(error, match=words):
        legrad.load(f"torchvision:{name}")


def test_offline(monkeypatch):
    import torchvision.models

    def get_model(name, weights):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(legrad.InputError, match=r"could not load 'vit_b_16': no network. Without a network"):
        legrad.load("torchvision:vit_b_16")


def test_refused():
    from torchvision.models import resnet18

    with pytest.raises(legrad.UnsupportedModelError, match=r"ResNet is a convolutional.*only the vit_"):
        legrad.wrap(resnet18())


def test_available():
    listed = dict(adapter.available())
    assert listed["torchvision:vit_h_14/IMAGENET1K_SWAG_E2E_V1"] == ""
    assert listed["torchvision:resnet18/IMAGENET1K_V1"]


def test_class_names_of_ones_own():
    model = tiny()
    images = torch.randn(1, 3, *legrad.wrap(model).anatomy.image_size)
    count = int(model(images).shape[-1])
    names = [f"thing {index}" for index in range(count)]
    explainer = legrad.wrap(model, labels=names)
    assert explainer.explain(images, ["thing 2"]).labels == [["thing 2"]]
    assert explainer.explain(images, legrad.PREDICTED).labels[0][0].startswith("thing ")
    for wrong, message in [
        (names[1:], f"got {count - 1} labels for {count} classes"),
        ("thing", "labels is a sequence of class names"),
        ([1, 2], "labels is a sequence"),
    ]:
        with pytest.raises(legrad.InputError, match=message):
            legrad.wrap(model, labels=wrong)
    with pytest.raises(legrad.InputError, match="labels are for classifiers"):
        legrad.wrap(models.clip(), labels=["a"])
