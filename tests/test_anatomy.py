"""A model of one's own through an anatomy record, as docs/writing-an-anatomy.md shows it: a plain classifier."""

import models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import legrad


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
        key_prefix=1,
        readouts={
            "native": legrad.Readout(lambda z: model.head(model.norm(z)[:, 0]), normalize=False),
            "published": legrad.Readout(lambda z: model.head(model.norm(z.mean(1))), normalize=False),
        },
        default_readout="published",
        output="logits",
        resized=resized,
    )


@pytest.fixture
def model():
    return models.randomised(MyViT())


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
    found = explainer.explain(images, [2, legrad.PREDICTED], readout=readout)
    want = torch.stack([by_hand(model, images, c, readout) for c in (torch.full((3,), 2), best)], 1)
    assert torch.allclose(found.relevance, want.float(), atol=1e-5 * float(want.max()))
    assert torch.allclose(found.scores[:, 0], logits[:, 2], atol=1e-5)
    assert torch.allclose(found.scores[:, 1], logits.amax(1), atol=1e-5)
    assert found.labels == [["class 2", f"class {c}"] for c in best.tolist()]


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
    found = explainer.explain(images, legrad.Contrast(0, 3))
    with torch.no_grad():
        logits = model(images)
    assert torch.allclose(found.scores[:, 0], logits[:, 0] - logits[:, 3], atol=1e-5)
    assert found.labels[0] == ["class 0 rather than class 3"]
