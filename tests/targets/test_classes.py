"""How many classes a model really has, and what they are called: after a user put in another head."""

import pytest
import torch
from helpers import tiny
from helpers.zoo import timm as zoo_timm
from helpers.zoo import torchvision as zoo_torchvision
from helpers.zoo import transformers as zoo_transformers
from torch import nn

import legrad
from legrad.doctor import examine


class Product(nn.Module):
    """A head that is a bare parameter."""

    def __init__(self, width, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, classes))

    def forward(self, x):
        return x @ self.weight


HEADS = {
    "linear": lambda width: nn.Linear(width, 3),
    "sequence": lambda width: nn.Sequential(nn.Dropout(0.1), nn.Linear(width, 3)),
    "mlp": lambda width: nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 3)),
    "product": lambda width: Product(width, 3),
}
# name -> (model, name of its head, images)
MODELS = {
    "timm": lambda: (zoo_timm.build("vit_tiny_patch16_224"), "head", torch.randn(1, 3, 64, 64)),
    "timm eva": lambda: (zoo_timm.build("eva02_tiny_patch14_224"), "head", torch.randn(1, 3, 56, 56)),
    "torchvision": lambda: (zoo_torchvision.build("vit_b_16"), "heads", torch.randn(1, 3, 32, 32)),
    "hf": lambda: (zoo_transformers.build("ViTForImageClassification"), "classifier", torch.randn(1, 3, 32, 32)),
}
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("maps are flat", "hardly depend on the target")
]
NAMES_LEFT_OUT = "ignore:the model carries"


def with_head(library, head):
    torch.manual_seed(0)
    model, attribute, images = MODELS[library]()
    width = next(part.normalized_shape[0] for part in model.modules() if isinstance(part, nn.LayerNorm))
    setattr(model, attribute, head(width))
    return model.eval(), images


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("library", MODELS)
@pytest.mark.filterwarnings(NAMES_LEFT_OUT)
def test_a_head_of_the_users(library, head):
    model, images = with_head(library, HEADS[head])
    explainer = legrad.wrap(model)
    explanation = explainer.explain(images, [legrad.PREDICTED, 1])
    best = int(getattr(model(images), "logits", model(images)).argmax())
    assert explanation.labels == [[f"class {best} (predicted)", "class 1"]]
    with pytest.raises(legrad.InputError, match=r"class index 3 is outside 0\.\.2"):
        explainer.explain(images, 3)
    named = legrad.wrap(model, labels=["cat", "dog", "cow"]).explain(images, ["dog", 2])
    assert named.labels == [["dog", "cow"]]
    assert torch.equal(named.relevance[:, 0], explanation.relevance[:, 1])


@pytest.mark.parametrize("library", MODELS)
@pytest.mark.parametrize("head", [lambda width: nn.Identity(), lambda width: nn.Sequential(nn.LayerNorm(width))])
def test_no_head(library, head):
    model, images = with_head(library, head)
    explainer = legrad.wrap(model)
    assert (explainer.anatomy.output, explainer.adapter.labels) == ("feature", None)
    assert explainer.explain(images, legrad.Similar(images)).labels == [["similar to image 0"]]
    with pytest.raises(legrad.InputError, match="PREDICTED needs a classifier"):
        explainer.explain(images, legrad.PREDICTED)


def test_a_head_behind_a_headless_model():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval()
    assert legrad.wrap(model).anatomy.output == "feature"
    model.head = nn.Linear(192, 5)
    assert legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), 4).labels == [["class 4"]]


def test_old_names_are_left_out_with_a_warning():
    model, _ = with_head("timm", HEADS["linear"])
    with pytest.warns(UserWarning, match=r"carries 1000 class names for 3 classes: .* labels=\[\.\.\.\]\)") as told:
        explainer = legrad.wrap(model)
    assert told[0].filename == __file__
    report = {finding.what: finding.value for finding in examine(explainer).findings}
    assert report["output"] == "logits of 3 classes, without names: give labels= to legrad.wrap"
    assert "1000 class names for 3 classes" in report["note"]
    headless = {
        f.what: f.value for f in examine(legrad.wrap(with_head("timm", lambda width: nn.Identity())[0])).findings
    }
    assert headless["output"] == "feature of 48 numbers"


def test_names_in_a_configuration_that_does_not_fit():
    model, images = with_head("hf", HEADS["linear"])
    model.config.id2label = {index: f"name {index}" for index in range(7)}
    with pytest.warns(UserWarning, match="carries 7 class names for 3 classes"):
        explainer = legrad.wrap(model)
    assert explainer.explain(images, 2).labels == [["class 2"]]
    model.config.id2label = {index: f"name {index}" for index in range(3)}
    assert legrad.wrap(model).explain(images, 2).labels == [["name 2"]]


def test_a_head_that_is_put_in_later():
    model, _, images = MODELS["timm"]()
    explainer = legrad.wrap(model)
    explainer.explain(images, 999)
    model.head = nn.Linear(48, 3)
    best = int(model(images).argmax())
    assert explainer.explain(images, [legrad.PREDICTED, 1]).labels == [[f"class {best} (predicted)", "class 1"]]
    with pytest.raises(legrad.InputError, match=r"outside 0\.\.2"):
        explainer.explain(images, 999)


@pytest.mark.parametrize("labels", [5, None, "abc", [1, 2, 3], iter(()), {"a": 1}])
@pytest.mark.filterwarnings(NAMES_LEFT_OUT)
def test_labels_that_are_none(labels):
    model, _ = with_head("timm", HEADS["linear"])
    if labels is None:
        assert legrad.wrap(model, labels=labels).adapter.labels is None
        return
    with pytest.raises(legrad.InputError, match=r"labels is a sequence of class names|got 1 labels for 3 classes"):
        legrad.wrap(model, labels=labels)


def test_labels_of_a_model_without_classes():
    with pytest.raises(legrad.InputError, match="labels are for classifiers, this model's output is 'embedding'"):
        legrad.wrap(tiny.clip(), labels=5)
