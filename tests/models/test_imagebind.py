"""Models in ImageBind's structure: maps against the slow twin, and sounds, texts and embeddings as targets."""

import sys
import types

import numpy as np
import pytest
import torch
import transformers
from helpers import generic_twin, imagebind_model, limits, twin
from helpers import tiny as models
from PIL import Image
from torch import nn

import legrad
from legrad.core import state
from legrad.core.positions import position_check, random_input
from legrad.core.truth import truth_check
from legrad.inputs import transforms
from legrad.models import imagebind as adapter

RATE = 16000


def tiny():
    return models.randomised(imagebind_model.model())


def sound(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def test_read_outs_and_facts():
    model = tiny()
    explainer = legrad.wrap(model)
    anatomy = explainer.anatomy
    assert (anatomy.num_prefix_tokens, anatomy.grid, anatomy.image_size) == (1, (4, 4), (32, 32))
    assert (anatomy.default_readout, anatomy.output, len(anatomy.blocks)) == ("published", "embedding", 3)
    norm, _, linear = model.modality_heads["vision"]
    z = torch.randn(2, 17, 32)
    with torch.no_grad():
        for readout, token in (("native", z[:, 0]), ("published", z.mean(1))):
            expected = nn.functional.normalize(linear(norm(token)), dim=-1)
            assert limits.close(anatomy.readouts[readout].function(z), expected)
    with state.evaluation_mode(model):
        batch = random_input(anatomy)
        truth_check(anatomy, batch)
        position_check(anatomy, batch)
    explanation = explainer.explain(torch.randn(2, 3, 32, 32), torch.randn(24))
    assert explanation.settings["model"] == "ImageBind"
    with pytest.raises(legrad.InputError, match=r"32, 32.* pixels only"):
        explainer.explain(torch.randn(1, 3, 40, 40), torch.randn(24))


@pytest.mark.parametrize("readout", ["native", "published"])
def test_maps(readout):
    """A batch of three: tokens run as (tokens, batch, dim)."""
    model = tiny().double()
    direction, batch = torch.randn(24, dtype=torch.float64), torch.randn(3, 3, 32, 32, dtype=torch.float64)

    def score(feature):
        return feature @ direction

    def anatomy_of(copied):
        return legrad.wrap(copied).anatomy

    with models.left_as_found(model):
        found = legrad.wrap(model).explain(batch, score, readout=readout, keep_layers=True).layer_relevance[:, 0]
    assert twin.distance(found, generic_twin.layer_maps(model, anatomy_of, batch, score, readout)) < limits.FLOAT64


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_a_sound_is_heard_as_three_clips():
    """The mean of the scaled embeddings of the first, the middle and the last two seconds."""
    model, waveform = tiny(), sound(5.3)
    explainer = legrad.wrap(model)
    x = torch.randn(1, 3, 32, 32)
    with models.left_as_found(model):
        explanation = explainer.explain(x, legrad.Audio(waveform))
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=128, max_length=204, do_normalize=False)
    clips = []
    for start in (0, 1.65, 3.3):
        clip = waveform[round(start * RATE) :][: 2 * RATE]
        mels = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        clips.append((mels.T[None, None] + 4.268) / 9.138)
    with torch.no_grad():
        heard = torch.stack([model({"audio": clip})["audio"][0] for clip in clips])
        assert limits.close(heard.norm(dim=-1), torch.full((3,), 20.0))
        picture = model({"vision": x})["vision"]
    expected = nn.functional.cosine_similarity(picture, heard.mean(0)[None])
    assert limits.close(explanation.scores[0], expected)
    same = explainer.explain(x, heard.mean(0))
    assert twin.distance(explanation.relevance, same.relevance) < limits.FLOAT32
    assert explainer.explain(x, legrad.Audio(sound(5.3, 1))).scores[0] != explanation.scores[0]


def test_short_sounds_and_silence_behind_them():
    once = adapter.spectrograms(sound(1.0))
    assert once.shape == (3, 1, 128, 204)
    assert torch.equal(once[0], once[1])
    assert torch.equal(once[0], once[2])
    # 98 windows of 25 ms fit into a second; behind them the zeros of the log-mel are normalised as everything
    assert limits.close(once[0, 0, :, 98:], torch.tensor(4.268 / 9.138))
    assert limits.error(once[0, 0, :, 97], torch.tensor(4.268 / 9.138)) > limits.DIFFERENT
    long = adapter.spectrograms(sound(4.0))
    assert limits.close(long[2, 0, :, :198], adapter.spectrograms(sound(4.0)[-2 * RATE :])[0, 0, :, :198])


def test_texts_and_sounds_mix(monkeypatch):
    model = tiny()
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(legrad.InputError, match="text targets need a tokenizer"):
        legrad.wrap(model).explain(x, "a cat")
    explainer = legrad.wrap(model, tokenizer=models.tokenizer)
    explanation = explainer.explain(x, ["two dogs", legrad.Audio(sound(2.5))])
    with torch.no_grad():
        text = model({"text": models.tokenizer(["two dogs"])})["text"]
        expected = nn.functional.cosine_similarity(model({"vision": x})["vision"], text)
    assert limits.close(explanation.scores[:, 0], expected)
    assert explanation.labels[0] == ["two dogs", "sound waveform"]
    package = types.SimpleNamespace(load_and_transform_text=lambda texts, device: models.tokenizer(texts).to(device))
    monkeypatch.setitem(sys.modules, "imagebind.data", package)
    own = legrad.wrap(model).explain(x, "two dogs")
    assert twin.distance(own.relevance[:, 0], explanation.relevance[:, 0]) < limits.FLOAT32


def test_half_precision():
    model, half = tiny(), tiny().half()
    x, target = torch.randn(1, 3, 32, 32), legrad.Audio(sound(2.5))
    with models.left_as_found(half):
        explanation = legrad.wrap(half).explain(x, target)
    pair = torch.stack([explanation.relevance.flatten(), legrad.wrap(model).explain(x, target).relevance.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > limits.CORRELATION


def test_images():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (53, 87, 3), np.uint8))
    transform = adapter.adapt(tiny()).transform(None, "model")
    assert transforms.follow(transform, (53, 87)).input == tuple(transform(picture).shape[1:]) == (32, 32)
    mean, _ = transforms.normalisation(transform)
    assert mean.tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_refused_and_not_mistaken():
    other = tiny()
    other.modality_preprocessors["vision"].pos_embed = nn.Parameter(torch.zeros(1, 12, 32))
    with pytest.raises(legrad.UnsupportedModelError, match=r"looks like ImageBind.*found 1 and \(1, 12, 32\)"):
        legrad.wrap(other)
    assert adapter.adapt(models.clip()) is None
    assert adapter.adapt(nn.Linear(2, 2)) is None
    assert adapter.available() == []
    deaf = tiny()
    for part in adapter._PARTS:
        del getattr(deaf, part)["audio"]
    with pytest.raises(legrad.InputError, match="embed sounds"):
        legrad.wrap(deaf).explain(torch.randn(1, 3, 32, 32), legrad.Audio(sound(1)))
    with pytest.raises(legrad.UnsupportedModelError, match="no audio tower"):
        legrad.wrap(tiny()).explain_audio(sound(1), torch.randn(24))
