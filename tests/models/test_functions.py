"""Forward passes and blocks as they are written: tuples, lists, inference mode, one channel, blocks out of a loop."""

import dataclasses

import pytest
import timm
import torch
from helpers import limits, tiny
from torch import nn

import legrad

METHODS = ("legrad", "rollout", "gradcam", "chefercam", "lrp")


@pytest.fixture(scope="module")
def base():
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5, "in_chans": 1}
    torch.manual_seed(0)
    return tiny.randomised(timm.models.VisionTransformer(**sizes))


@pytest.fixture
def anatomy(base):
    return legrad.ViTAnatomy(
        library="own",
        tower=base,
        run=base,
        blocks=tuple(base.blocks),
        image_size=(64, 64),
        patch_size=(16, 16),
        num_prefix_tokens=1,
        readouts={"native": legrad.Readout(lambda z: base.head(base.norm(z)[:, 0]))},
        output="logits",
    )


@pytest.fixture
def images():
    return torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def test_channels_are_those_of_the_patch_embedding(base, anatomy, images):
    assert anatomy.shape == (1, 64, 64)
    assert limits.close(
        legrad.wrap(base, anatomy=anatomy).explain(images, 1).relevance,
        legrad.wrap(base).explain(images, 1, readout="native").relevance,
    )
    wrong = dataclasses.replace(anatomy, shape=(3, 64, 64))
    with pytest.raises(legrad.InputError, match=r"it takes 1 channels: shape=\(1, 64, 64\) in its anatomy"):
        legrad.wrap(base, anatomy=wrong).explain(images.expand(-1, 3, -1, -1), 1)


@pytest.mark.parametrize(
    "wrapped", [lambda y: (y, []), lambda y: [y], lambda y: {"aux": None, "out": y}, lambda y: ([y],)]
)
def test_the_first_tensor_of_a_result(base, anatomy, images, wrapped):
    changed = dataclasses.replace(
        anatomy,
        run=lambda x: wrapped(base(x)),
        readouts={"native": legrad.Readout(lambda z: wrapped(base.head(base.norm(z)[:, 0])))},
    )
    expected = legrad.wrap(base, anatomy=anatomy).explain(images, [1, legrad.PREDICTED])
    result = legrad.wrap(base, anatomy=changed).explain(images, [1, legrad.PREDICTED])
    assert torch.equal(result.relevance, expected.relevance)


class Listed(nn.Module):
    """Takes and returns a list, as blocks of several crops do."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, crops):
        return [self.block(crops[0])]


class Crops(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base, self.blocks = base, nn.ModuleList(map(Listed, base.blocks))

    def forward(self, images):
        crops = [self.base._pos_embed(self.base.patch_embed(images))]
        for block in self.blocks:
            crops = block(crops)
        return self.base.head(self.base.norm(crops[0])[:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_lists(base, anatomy, images, method):
    tower = Crops(base).eval()
    changed = dataclasses.replace(anatomy, tower=tower, run=tower, blocks=tuple(tower.blocks))
    expected = legrad.wrap(base, anatomy=anatomy).explain(images, 1, method=method)
    result = legrad.wrap(tower, anatomy=changed).explain(images, 1, method=method)
    assert limits.close(result.relevance, expected.relevance, maps=True)


@pytest.mark.parametrize("method", ["legrad", "gradcam"])
def test_inference_mode_inside_the_forward(base, anatomy, images, method):
    def probed(x):
        with torch.inference_mode():
            feature = base.forward_head(base.forward_features(x), pre_logits=True)
        return base.head(feature.clone())

    changed = dataclasses.replace(anatomy, run=probed)
    with pytest.raises(legrad.InputError, match=r"runs its blocks under torch\.inference_mode\(\).*use torch\.no_grad"):
        legrad.wrap(base, anatomy=changed).explain(images, 1, method=method)


def test_blocks_that_are_never_called(base, anatomy, images):
    pairs = nn.ModuleList(nn.ModuleList([block.attn, block.mlp]) for block in base.blocks)
    changed = dataclasses.replace(anatomy, blocks=tuple(pairs))
    with pytest.raises(legrad.TruthCheckError, match=r"ran 0 times .* wrap each in a module and give `run` a forward"):
        legrad.wrap(base, anatomy=changed).explain(images, 1)


def test_attention_of_another_kind_is_named(base, anatomy, images):
    changed = dataclasses.replace(anatomy, blocks=tuple(block.mlp for block in base.blocks))
    with pytest.raises(
        legrad.TruthCheckError, match=r'written out with softmax \(attention="softmax" in the anatomy\)'
    ):
        legrad.wrap(base, anatomy=changed).explain(images, 1)


# -- heads that read many tokens ------------------------------------------------------------------------------------


def middle(logits):
    return logits.view(-1, 6, 4, 4)[:, 2, 1, 1]


def queries(base):
    """As detectors have them: several queries look at all tokens."""
    torch.manual_seed(3)
    attend, ask, out = nn.MultiheadAttention(48, 2, batch_first=True), torch.randn(1, 5, 48), nn.Linear(48, 4)

    def head(z):
        return out(attend(ask.expand(len(z), -1, -1), base.norm(z), base.norm(z), need_weights=False)[0]).flatten(1)

    return head


def convolution(base):
    torch.manual_seed(3)
    decoder = nn.Conv2d(48, 6, 1)
    return lambda z: decoder(base.norm(z)[:, 1:].mT.unflatten(-1, (4, 4))).flatten(1)


@pytest.mark.parametrize("make_head", [queries, convolution])
def test_a_decoder_is_explained_with_its_own_head(base, images, make_head):
    head = make_head(base)
    known = legrad.wrap(base).anatomy
    assert known.default_readout == "published"

    def run(x):
        z = base._pos_embed(base.patch_embed(x))
        for block in base.blocks:
            z = block(z)
        return head(z)

    own = dataclasses.replace(known, run=run, at_size=None, readouts={"native": legrad.Readout(head)})
    assert own.default_readout == "native"
    explainer = legrad.wrap(base, anatomy=own)
    auto = explainer.explain(images, lambda f: f[:, 7])
    assert torch.equal(auto.relevance, explainer.explain(images, lambda f: f[:, 7], readout="native").relevance)
    with pytest.raises(legrad.InputError, match=r"reads more than a class token or an average .*readout='native'"):
        explainer.explain(images, lambda f: f[:, 7], readout="published")


@pytest.mark.parametrize("pool", ["class token", "mean of norms", "norm of mean", "class token and mean"])
def test_a_published_readout_is_made_for_heads_that_take_one_token(base, anatomy, images, pool):
    torch.manual_seed(3)
    double, single = nn.Linear(96, 5), base.head
    pools = {
        "class token": lambda z: single(base.norm(z)[:, 0]),
        "mean of norms": lambda z: single(base.norm(z)[:, 1:].mean(1)),
        "norm of mean": lambda z: single(base.norm(z[:, 1:].mean(1))),
        "class token and mean": lambda z: double(torch.cat([z[:, 0], z[:, 1:].mean(1)], 1)),
    }
    head = pools[pool]

    def run(x):
        z = base._pos_embed(base.patch_embed(x))
        for block in base.blocks:
            z = block(z)
        return head(z)

    own = dataclasses.replace(anatomy, run=run, readouts={"native": legrad.Readout(head)})
    explanation = legrad.wrap(base, anatomy=own).explain(images, 1, readout="published")
    given = legrad.Readout(lambda z: head(z.mean(1, keepdim=True).expand(-1, 2, -1)))
    own = dataclasses.replace(own, readouts={"native": legrad.Readout(head), "published": given})
    assert own.default_readout == "published"
    assert limits.close(explanation.relevance, legrad.wrap(base, anatomy=own).explain(images, 1).relevance, maps=True)
