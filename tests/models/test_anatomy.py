"""A model of one's own through an anatomy record, as docs/explain-your-own-model.md shows it: a plain classifier."""

import dataclasses
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from torch import nn

import legrad
from legrad.core import first_use as module


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class MyViT(nn.Module):
    def __init__(self, width=32, classes=5):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 13, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def anatomy(model):
    def resized(size):
        raise legrad.InputError(f"this model takes 24 x 32 pixels, got {size}")

    return legrad.ViTAnatomy(
        library="mine",
        tower=model,
        run=model,
        blocks=tuple(model.blocks),
        image_size=(24, 32),
        patch_size=(8, 8),
        grid=(3, 4),
        num_prefix_tokens=1,
        num_prefix_keys=1,
        readouts={
            "native": legrad.Readout(lambda z: model.head(model.norm(z)[:, 0]), normalize=False),
            "published": legrad.Readout(lambda z: model.head(model.norm(z.mean(1))), normalize=False),
        },
        default_readout="published",
        output="logits",
        at_size=resized,
    )


@pytest.fixture
def model():
    return tiny.randomised(MyViT())


def by_hand(model, images, classes, readout):
    """One layer at a time, attention written out as a leaf."""
    model = model.double()
    x = model.patches(images.double()).flatten(2).transpose(1, 2)
    x = torch.cat([model.token.expand(len(x), -1, -1), x], 1) + model.positions
    layers = []
    for block in model.blocks:
        y, attn = block.norm1(x), block.attn
        q, k, v = (F.linear(y, attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3, 2, -1))).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).detach().requires_grad_()
        z = x.detach() + attn.out_proj((a @ v.detach()).transpose(1, 2).flatten(2))
        z = z + block.mlp(block.norm2(z))
        logits = model.head(model.norm(z)[:, 0]) if readout == "native" else model.head(model.norm(z.mean(1)))
        g = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), a)[0]
        layers.append(g.clamp(min=0).mean((1, 2))[:, 1:].unflatten(1, (3, 4)))
        x = z.detach()
    model.float()
    return torch.stack(layers).mean(0)


@pytest.mark.filterwarnings("ignore:.*hardly depend on the target")  # both may ask for the same class
@pytest.mark.parametrize("readout", ["native", "published"])
def test_class_indices_and_predicted(model, readout):
    images = torch.randn(3, 3, 24, 32)
    explainer = legrad.wrap(model, anatomy=anatomy(model))
    with torch.no_grad():
        logits = model(images)
    best = logits.argmax(1)
    explanation = explainer.explain(images, [2, legrad.PREDICTED], readout=readout)
    want = torch.stack([by_hand(model, images, c, readout) for c in (torch.full((3,), 2), best)], 1)
    assert limits.close(explanation.relevance, want, maps=True)
    assert limits.close(explanation.scores[:, 0], logits[:, 2])
    assert limits.close(explanation.scores[:, 1], logits.amax(1))
    assert explanation.labels == [["class 2", f"class {c} (predicted)"] for c in best.tolist()]


def test_what_a_classifier_cannot_answer(model):
    images = torch.randn(1, 3, 24, 32)
    explainer = legrad.wrap(model, anatomy=anatomy(model))
    for target, message in [
        (5, r"outside 0\.\.4"),
        (-1, r"outside 0\.\.4"),
        ("cat", "knows no texts"),
        (torch.randn(5), "classifier"),
        (legrad.Similar(images), "classifier"),
        (legrad.ZeroShot(["a"]), "no text tower"),
    ]:
        with pytest.raises(legrad.InputError, match=message):
            explainer.explain(images, target)
    with pytest.raises(legrad.InputError, match="24 x 32"):
        explainer.explain(torch.randn(1, 3, 32, 32), 1)


def test_contrast_of_two_classes_is_a_difference_of_logits(model):
    images = torch.randn(2, 3, 24, 32)
    explainer = legrad.wrap(model, anatomy=anatomy(model))
    explanation = explainer.explain(images, legrad.Contrast(0, 3))
    with torch.no_grad():
        logits = model(images)
    assert limits.close(explanation.scores[:, 0], logits[:, 0] - logits[:, 3], of=logits)
    assert explanation.labels[0] == ["class 0 rather than class 3"]


# -- a record that is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grid": (2, 6)},
            r"the grid has 2 rows, but 24 pixels \(height of image_size \(24, 32\)\) hold 3 patches of 8",
        ),
        ({"grid": (3, 5)}, r"the grid has 5 cols, but 32 pixels \(width"),
        ({"patch_size": (16, 16)}, "the grid has 3 rows"),
        ({"stride": (4, 8)}, "hold 5 patches of 8, one every 4 pixels"),
        ({"grid": 12}, r"grid is \(rows, cols\), positive whole numbers, got 12"),
        ({"grid": (3, 4, 1)}, r"grid is \(rows, cols\)"),
        ({"image_size": 24}, r"image_size is \(height, width\), positive whole numbers, got 24"),
        ({"patch_size": (8.0, 8)}, "patch_size is"),
        ({"stride": (0, 8)}, "stride is"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens is the number of tokens in front .*, from 0, got -1"),
        ({"num_prefix_tokens": None}, "num_prefix_tokens"),
        ({"output": "logit"}, "output is one of 'embedding', 'logits', 'feature', got 'logit'"),
        ({"route": "pool"}, "route is one of"),
        ({"attention": "sdpa"}, "attention is one of 'fused', 'softmax'"),
        ({"axes": ("row", "col")}, "axes is one of"),
        ({"default_readout": "mine"}, "default_readout is one of"),
        ({"default_readout": "published", "route": "pooler"}, r"default_readout='published', but readouts has \['nat"),
        ({"blocks": ()}, "blocks holds the transformer blocks"),
        ({"blocks": (lambda x: x,)}, "blocks holds"),
        ({"readouts": {"nativ": legrad.Readout(lambda z: z)}}, r'readouts has "native" .* got \[\'nativ\'\]'),
        ({"readouts": {"native": 3}}, "'native' is a legrad.Readout or a function, got int"),
        ({"shape": (3, 24, 24)}, r"shape \(3, 24, 24\) does not end in the image_size"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_value_that_cannot_be_right(model, change, message):
    readouts = {"native": legrad.Readout(lambda z: z)}
    with pytest.raises(legrad.InputError, match=message):
        dataclasses.replace(anatomy(model), **{"readouts": readouts, "default_readout": None, **change})


def test_a_grid_may_have_one_more_cell_where_the_model_pads(model):
    padded = dataclasses.replace(anatomy(model), image_size=(23, 31))
    assert padded.shape == (3, 23, 31)


def test_plain_functions_and_lists_are_taken(model):
    images = torch.randn(1, 3, 24, 32)
    given = anatomy(model)
    loose = dataclasses.replace(
        given,
        blocks=model.blocks,
        image_size=[24, 32],
        grid=[3, 4],
        readouts={"native": lambda z: model.head(model.norm(z)[:, 0])},
    )
    assert limits.close(
        legrad.wrap(model, anatomy=loose).explain(images, 2).relevance,
        legrad.wrap(model, anatomy=given).explain(images, 2).relevance,
    )


def test_what_is_left_out_follows_a_change(model):
    """As if the changed record had been written from scratch."""
    tokens = torch.randn(2, 15, 32)
    base = dataclasses.replace(
        anatomy(model),
        num_prefix_keys=-1,
        readouts={"native": legrad.Readout(lambda z: model.head(model.norm(z)[:, :2].flatten(1)[:, :32]))},
        default_readout=None,
    )
    assert (base.num_prefix_keys, base.default_readout, base.shape) == (1, "native", (3, 24, 32))
    changed = dataclasses.replace(base, num_prefix_tokens=3, image_size=(32, 32), grid=(4, 4))
    assert (changed.num_prefix_keys, changed.shape) == (3, (3, 32, 32))
    head = base.readouts["native"].function
    assert torch.equal(changed.readouts["published"](tokens), head(tokens.mean(1, keepdim=True).expand(-1, 4, -1)))
    assert not changed.readouts["native"].normalize
    feature = dataclasses.replace(changed, output="feature")
    assert feature.readouts["native"].normalize
    assert feature.readouts["published"].normalize
    pooler = dataclasses.replace(feature, route="pooler")
    assert (set(pooler.readouts), pooler.default_readout) == ({"native"}, "native")
    # what was given stays
    kept = dataclasses.replace(dataclasses.replace(base, num_prefix_keys=1), num_prefix_tokens=3)
    assert kept.num_prefix_keys == 1


def test_a_grid_that_is_left_out_follows_the_sizes(model):
    derived = dataclasses.replace(anatomy(model), grid=())
    assert derived.grid == (3, 4)
    assert dataclasses.replace(derived, image_size=(31, 64)).grid == (3, 8)
    assert dataclasses.replace(derived, stride=(4, 8)).grid == (5, 4)
    assert dataclasses.replace(derived, stride=(4, 8), grid=(6, 4), image_size=(25, 32)).grid == (6, 4)
    with pytest.raises(legrad.InputError, match=r"\(7, 32\) is smaller than one patch of \(8, 8\)"):
        dataclasses.replace(derived, image_size=(7, 32))
    with pytest.raises(legrad.InputError, match=r"grid is \(frequency, time\), positive whole numbers, got \(\)"):
        dataclasses.replace(derived, axes=("frequency", "time"))


def test_an_adapters_anatomy_follows_a_change():
    import torchvision as library

    vit = library.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    known = legrad.wrap(vit).anatomy
    assert dataclasses.replace(known, num_prefix_tokens=2).num_prefix_keys == 2
    assert dataclasses.replace(known, image_size=(32, 64)).shape == (3, 32, 64)
    assert dataclasses.replace(known, image_size=(32, 64)).grid == (4, 8)


@pytest.mark.parametrize(
    "change", [{"num_prefix_tokens": 0}, {"num_prefix_tokens": 0, "num_prefix_keys": 0, "num_suffix_keys": 1}], ids=str
)
def test_patches_elsewhere_than_said_are_noticed_at_the_first_use(model, change):
    """The truth check of the native read-out cannot: it takes the class token wherever the patches are."""
    wrong = dataclasses.replace(anatomy(model), **change)
    with pytest.raises(legrad.TruthCheckError, match="change most token 1, not token 0"):
        legrad.wrap(model, anatomy=wrong).explain(torch.randn(1, 3, 24, 32), 2)


def test_swapped_rows_and_columns_are_noticed(model):
    square = tiny.randomised(MyViT())
    square.positions = nn.Parameter(torch.randn(1, 17, 32))
    forward = square.patches.forward
    square.patches.forward = lambda images: forward(images).mT
    described = dataclasses.replace(anatomy(square), image_size=(32, 32), grid=(4, 4))
    with pytest.raises(legrad.TruthCheckError, match="are wrong"):
        legrad.wrap(square, anatomy=described).explain(torch.randn(1, 3, 32, 32), 2)
    # a function that knows better is believed
    laid = dataclasses.replace(described, keys_to_grid=lambda keys, tap: keys[:, 1:].unflatten(1, (4, 4)).mT)
    legrad.wrap(square, anatomy=laid).explain(torch.randn(1, 3, 32, 32), 2)


def test_positions_are_checked_once_and_for_own_anatomies_only(model):
    images = torch.randn(1, 3, 24, 32)
    explainer = legrad.wrap(model, anatomy=anatomy(model))
    with mock.patch.object(module, "position_check", wraps=module.position_check) as check:
        explainer.explain(images, 1)
        assert check.call_count == 1
        explainer.explain(images, 2)
        explainer.explain(images.repeat(2, 1, 1, 1), [0, 1])
        assert check.call_count == 1
        legrad.wrap(tiny.clip()).explain(torch.randn(1, 3, 32, 32), torch.randn(32))
        assert check.call_count == 1


def test_blocks_that_return_tuples_have_positions_too(model):
    class Tuples(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return (self.block(x[0] if isinstance(x, tuple) else x),)

    images = torch.randn(1, 3, 24, 32)
    want = legrad.wrap(model, anatomy=anatomy(model)).explain(images, 2)
    model.blocks = nn.ModuleList([Tuples(block) for block in model.blocks])
    model.norm = nn.Sequential(model.norm)
    model.norm.register_forward_pre_hook(lambda _, given: given[0] if isinstance(given[0], tuple) else given)
    described = dataclasses.replace(anatomy(model), to_tokens=lambda output: output[0])
    with mock.patch.object(module, "position_check", wraps=module.position_check) as check:
        explanation = legrad.wrap(model, anatomy=described).explain(images, 2)
    assert check.call_count == 1
    assert twin.distance(explanation.relevance, want.relevance) < limits.FLOAT32
