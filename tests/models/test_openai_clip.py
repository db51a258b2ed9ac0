"""Models of OpenAI's clip package, on a stand-in of the same structure."""

import sys
import types

import numpy as np
import pytest
import torch
from helpers import generic_twin, limits, openai_clip_model, twin
from helpers import tiny as models
from PIL import Image
from torch import nn

import legrad
from legrad.core import state
from legrad.core.positions import position_check, random_input
from legrad.core.truth import truth_check
from legrad.inputs import transforms
from legrad.models import openai_clip as adapter


def tiny():
    return models.randomised(openai_clip_model.vit())


def test_read_outs_and_facts():
    model = tiny()
    anatomy = legrad.wrap(model).anatomy
    assert (anatomy.num_prefix_tokens, anatomy.num_prefix_keys, anatomy.grid) == (1, 1, (4, 4))
    assert (anatomy.default_readout, anatomy.output) == ("published", "embedding")
    z, v = torch.randn(2, 17, 32), model.visual
    with torch.no_grad():
        for readout, expected in (
            ("native", v.ln_post(z[:, 0]) @ v.proj),
            ("published", v.ln_post(z.mean(1)) @ v.proj),
        ):
            assert limits.close(anatomy.readouts[readout].function(z), expected)
            assert anatomy.readouts[readout].normalize
    with state.evaluation_mode(model):
        batch = random_input(anatomy)
        truth_check(anatomy, batch)
        position_check(anatomy, batch)


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("size", [None, (48, 48), (24, 64)])
def test_maps(readout, size):
    """A batch of three: tokens run as (tokens, batch, dim)."""
    # the stand-in's LayerNorm is float32 by design; float64 goes through plain ones
    model = tiny().double()
    for module in model.modules():
        if isinstance(module, openai_clip_model.LayerNorm):
            module.__class__ = nn.LayerNorm
    direction = torch.randn(24, dtype=torch.float64)
    batch = torch.randn(3, 3, *(size or (32, 32)), dtype=torch.float64)

    def score(feature):
        return feature @ direction

    def anatomy_of(copied):
        anatomy = legrad.wrap(copied).anatomy
        return anatomy if size is None else anatomy.at(size)

    with models.left_as_found(model):
        found = legrad.wrap(model).explain(batch, score, readout=readout, keep_layers=True).layer_relevance[:, 0]
    assert twin.distance(found, generic_twin.layer_maps(model, anatomy_of, batch, score, readout)) < limits.FLOAT64


def test_text_and_scores():
    model = tiny()
    explainer = legrad.wrap(model, tokenizer=models.tokenizer)
    x = torch.randn(2, 3, 32, 32)
    explanation = explainer.explain(x, "two dogs")
    with torch.no_grad():
        image, text = model.encode_image(x), model.encode_text(models.tokenizer(["two dogs"]))
    expected = nn.functional.cosine_similarity(image, text)
    assert limits.close(explanation.scores[:, 0], expected)
    assert twin.distance(explanation.relevance, explainer.explain(x, text).relevance) < limits.FLOAT32


def test_the_packages_own_tokenizer(monkeypatch):
    model = tiny()
    with pytest.raises(legrad.InputError, match="text targets need a tokenizer"):
        legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), "a cat")
    monkeypatch.setitem(sys.modules, "clip", types.SimpleNamespace(tokenize=models.tokenizer))
    assert legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), "a cat").labels == [["a cat"]]


def test_half_precision():
    """The package's own conversion: half matrices, float32 norms and embeddings."""
    model, half = tiny(), openai_clip_model.convert_weights(tiny())
    x, t = torch.randn(1, 3, 32, 32), torch.randn(24)
    with models.left_as_found(half):
        explanation = legrad.wrap(half).explain(x, t)
    assert legrad.wrap(half).anatomy.dtype == torch.float16
    pair = torch.stack([explanation.relevance.flatten(), legrad.wrap(model).explain(x, t).relevance.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > limits.CORRELATION
    assert legrad.wrap(half, tokenizer=models.tokenizer).explain(x, "a cat").relevance.isfinite().all()


@pytest.mark.parametrize("fit", ["model", "squash", "pad"])
@pytest.mark.parametrize("size", [None, (48, 64)])
def test_images(fit, size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (53, 87, 3), np.uint8))
    transform = adapter.adapt(tiny()).transform(size, fit)
    frame = transforms.follow(transform, (53, 87))
    assert frame.input == tuple(transform(picture).shape[1:]) == (size or (32, 32))
    mean, _ = transforms.normalisation(transform)
    assert mean.tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    if size is None and fit == "model":
        from torchvision import transforms as t

        own = [t.Resize(32, t.InterpolationMode.BICUBIC), t.CenterCrop(32), t.ToTensor()]
        own.append(t.Normalize(adapter.CONFIG["mean"], adapter.CONFIG["std"]))
        assert torch.equal(transform(picture), t.Compose(own)(picture))


def test_refused_and_not_mistaken():
    with pytest.raises(legrad.UnsupportedModelError, match=r"ModifiedResNet is a convolutional network.*ViT-\*"):
        legrad.wrap(openai_clip_model.resnet())
    assert adapter.adapt(models.clip()) is None
    assert adapter.adapt(nn.Linear(2, 2)) is None
    assert adapter.available() == []
