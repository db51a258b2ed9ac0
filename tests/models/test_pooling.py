"""Models that pool by themselves: subclasses of timm's, the structure of Meta's repositories, layers behind a model."""

import dataclasses

import pytest
import timm
import torch
import transformers
from helpers import dino_model, limits, tiny
from helpers.zoo import timm as zoo_timm
from torch import nn

import legrad
from legrad.doctor import examine

# random models: maps may be flat, targets alike
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("maps are flat", "hardly depend on the target")
]

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}
BUILDERS = {
    "v2": lambda: dino_model.build(2),
    "v2 registers": lambda: dino_model.build(2, tokens=3),
    "v2 written out": lambda: dino_model.build(2, fused=False),
    "v2 chunks": lambda: dino_model.build(2, chunked=True),
    "v3": lambda: dino_model.build(3, tokens=2),
    "v1": lambda: tiny.randomised(dino_model.DinoOne(2, fused=False)),
}


def described(model, prefix, softmax=False, head=None, blocks=None):
    """The same model as a user would describe it."""
    norm = model.norm
    return legrad.ViTAnatomy(
        library="by hand",
        tower=model,
        run=model,
        blocks=blocks or tuple(model.blocks),
        image_size=(32, 32),
        patch_size=(8, 8),
        num_prefix_tokens=prefix,
        attention="softmax" if softmax else "fused",
        readouts={"native": legrad.Readout(head or (lambda z: norm(z)[:, 0]))},
        output="feature" if head is None else "logits",
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_towers_of_the_dino_repositories(name):
    model = BUILDERS[name]()
    with tiny.left_as_found(model):
        explainer = legrad.wrap(model)
        explanation = explainer.explain(IMAGES, legrad.Similar(IMAGES[:1]), readout="native")
    anatomy = explainer.anatomy
    assert (anatomy.output, anatomy.default_readout, anatomy.grid) == ("feature", "published", (4, 4))
    chunks = (
        [block for chunk in model.blocks for block in chunk if not isinstance(block, nn.Identity)]
        if model.chunked
        else []
    )
    prefix = {"v2 registers": 4, "v3": 3}.get(name, 1)
    own = described(model, prefix, softmax="written" in name or name == "v1", blocks=tuple(chunks))
    by_hand = legrad.wrap(model, anatomy=own).explain(IMAGES, legrad.Similar(IMAGES[:1]))
    assert limits.close(explanation.relevance, by_hand.relevance, maps=True)
    assert explainer.explain(torch.randn(1, 3, 32, 48), legrad.Similar(IMAGES[:1])).relevance.shape == (1, 1, 4, 6)
    with pytest.raises(legrad.InputError, match=r"multiples of \(8, 8\), got \(32, 44\)"):
        explainer.explain(torch.randn(1, 3, 32, 44), legrad.Similar(IMAGES[:1]))
    assert explainer.explain(IMAGES, legrad.Similar(IMAGES[:1]), method="gradcam").relevance.shape == (2, 1, 4, 4)
    assert examine(explainer).healthy


@pytest.mark.parametrize("version", [2, 3])
def test_linear_classifiers_of_the_dino_repositories(version):
    model = tiny.randomised(dino_model.LinearClassifierWrapper(dino_model.build(version, tokens=2)))
    explainer = legrad.wrap(model)
    explanation = explainer.explain(IMAGES, [1, legrad.PREDICTED], readout="native")
    assert explanation.labels[0][0] == "class 1"
    norm, head = model.backbone.norm, model.linear_head

    def native(z):
        return head(torch.cat([norm(z)[:, 0], norm(z)[:, 3:].mean(1)], 1))

    own = dataclasses.replace(described(model.backbone, 3, head=native), tower=model, run=model)
    by_hand = legrad.wrap(model, anatomy=own).explain(IMAGES, [1, legrad.PREDICTED])
    assert limits.close(explanation.relevance, by_hand.relevance, maps=True)
    assert explainer.explain(torch.randn(1, 3, 48, 32), 2).relevance.shape == (1, 1, 6, 4)


def test_a_linear_classifier_of_four_blocks():
    model = dino_model.LinearClassifierWrapper(dino_model.build(2), layers=4).eval()
    message = r"last 4 blocks.*build it with layers=1.*its backbone .* wrapped alone: legrad\.wrap\(model\.backbone\)$"
    with pytest.raises(legrad.UnsupportedModelError, match=message):
        legrad.wrap(model)
    assert legrad.wrap(model.backbone)


@pytest.mark.parametrize("mean", [True, False])
def test_subclasses_that_pool_by_themselves(mean):
    """MAE, RETFound: a norm dropped, another brought."""
    model = dino_model.mae(mean)
    explainer = legrad.wrap(model)
    assert explainer.anatomy.default_readout == ("native" if mean else "published")

    def native(z):
        return model.head(model.fc_norm(z[:, 1:].mean(1)) if mean else model.norm(z)[:, 0])

    known = explainer.anatomy
    own = dataclasses.replace(known, readouts={"native": legrad.Readout(native)}, at_size=None)
    expected = legrad.wrap(model, anatomy=own).explain(IMAGES, [0, 2])
    assert limits.close(explainer.explain(IMAGES, [0, 2], readout="native").relevance, expected.relevance, maps=True)
    assert (
        explainer.explain(torch.randn(1, 3, 64, 32), 1, size=None).relevance.shape == (1, 1, 8, 4) if not mean else True
    )


class Soft(timm.models.VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        return self.head(x.logsumexp(1))


class Decoder(timm.models.VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        return self.head(x[:, 1:]).mT.unflatten(-1, (4, 4)).flatten(1)


class Supervised(timm.models.VisionTransformer):
    """Deep supervision: the answer, and those of earlier blocks."""

    def forward(self, x):
        answer = super().forward(x)
        return answer, [2 * answer]


class Mapped(timm.models.VisionTransformer):
    def forward(self, x):
        return {"out": super().forward(x), "aux": None}


class Odd(timm.models.VisionTransformer):
    def forward_features(self, x, **_):
        return self.norm(super().forward_features(x).amax(1)).softmax(-1)

    def forward_head(self, x, pre_logits=False):
        return self.head(x)


@pytest.mark.parametrize("kind", [Soft, Decoder, Supervised, Mapped])
def test_subclasses_that_change_a_step(kind):
    torch.manual_seed(0)
    model = tiny.randomised(kind(**SIZES))
    explainer = legrad.wrap(model)
    known = dataclasses.replace(explainer.anatomy, at_size=None)
    own = dataclasses.replace(
        known,
        readouts={"native": legrad.Readout(lambda z: model.forward_head(model.norm(z)))},
        default_readout="native",
    )
    expected = legrad.wrap(model, anatomy=own).explain(IMAGES, 3)
    assert limits.close(explainer.explain(IMAGES, 3, readout="native").relevance, expected.relevance, maps=True)
    assert explainer.explain(IMAGES, 3).relevance.shape == (2, 1, 4, 4)


def test_a_forward_of_no_usual_kind():
    torch.manual_seed(0)
    with pytest.raises(legrad.UnsupportedModelError, match=r"Odd has a forward pass of its own.*legrad\.ViTAnatomy"):
        legrad.wrap(tiny.randomised(Odd(**SIZES)))


def broken(kind):
    model = zoo_timm.build("vit_tiny_patch16_224")
    if kind == "patch_embed":
        model.patch_embed = nn.Sequential(nn.Conv2d(3, 48, 16, 16), nn.Flatten(2))
    elif kind == "norm":
        del model.norm
    else:
        model.blocks = nn.ModuleList(model.blocks)
    return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("patch_embed", r"looks like a model of timm, but .*'img_size'.*parts of it were replaced.*ViTAnatomy"),
        ("norm", r"the model's own forward fails on an input .*no attribute 'norm'"),
        ("blocks", r"the model's own forward fails on an input .*forward"),
    ],
)
def test_parts_that_are_gone(kind, message):
    with pytest.raises(legrad.LeGradError, match=message) as told:
        legrad.wrap(broken(kind)).explain(torch.randn(1, 3, 64, 64), 1)
    assert "\n" not in str(told.value)


# -- wrappers -------------------------------------------------------------------------------------------------------


def test_layers_behind_a_model():
    torch.manual_seed(0)
    backbone = zoo_timm.build("vit_tiny_patch16_224")
    backbone.head = nn.Identity()
    model = nn.Sequential(backbone, nn.Dropout(), nn.Linear(48, 4)).eval()
    images = torch.randn(2, 3, 64, 64)
    explainer = legrad.wrap(model)
    assert (explainer.anatomy.output, explainer.adapter.labels) == ("logits", None)
    joined = zoo_timm.build("vit_tiny_patch16_224")
    joined.head = model[2]
    joined.pretrained_cfg = {}
    expected = legrad.wrap(joined)
    for readout in ("native", "published", "auto"):
        found, known = (e.explain(images, [1, legrad.PREDICTED], readout=readout) for e in (explainer, expected))
        assert limits.close(found.relevance, known.relevance, maps=True)
        assert found.labels == known.labels


class Lightning(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = zoo_timm.build("vit_tiny_patch16_224")

    def forward(self, x):
        return self.model(x)


def test_what_can_be_wrapped_alone_is_named():
    model = Lightning()
    with pytest.raises(legrad.UnsupportedModelError, match=r"its model .* legrad\.wrap\(model\.model\)\. Describe"):
        legrad.wrap(model)
    assert legrad.wrap(model.model)
    with pytest.raises(legrad.UnsupportedModelError, match=r"legrad\.wrap\(model\.get_submodule\('1'\)\)"):
        legrad.wrap(nn.Sequential(nn.Identity(), model.model))


VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


def test_a_tower_is_offered_only_where_it_can_be_wrapped():
    vision = transformers.CLIPVisionConfig(**VIT, patch_size=8)
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(**TEXT))
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with pytest.raises(legrad.UnsupportedModelError, match=r"alone: legrad\.wrap\(model\.model\.vision_tower\)"):
        legrad.wrap(model)
    assert legrad.wrap(model.model.vision_tower).explain(IMAGES, torch.randn(32)).relevance.shape == (2, 1, 4, 4)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, bos_token_id=1, eos_token_id=2))
    for refused in (text, timm.create_model("resnet18")):
        with pytest.raises(legrad.UnsupportedModelError) as told:
            legrad.wrap(refused)
        assert "alone" not in str(told.value)


@pytest.mark.parametrize("wrapper", ["average", "ema"])
def test_averages_of_weights(wrapper):
    model = zoo_timm.build("vit_tiny_patch16_224")
    images = torch.randn(1, 3, 64, 64)
    expected = legrad.wrap(model).explain(images, 3).relevance
    wrapped = torch.optim.swa_utils.AveragedModel(model) if wrapper == "average" else timm.utils.ModelEmaV3(model)
    assert torch.equal(legrad.wrap(wrapped.eval()).explain(images, 3).relevance, expected)
