"""Training and evaluation of the embedded speech encoder."""

import inspect
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits
from helpers import speech as helpers_speech
from helpers.pages import DOCS

import legrad
from legrad.embedded.speech import model, synthesis
from legrad.embedded.speech.model import FRAMES, MELS
from training import augmentation, evaluate_speech
from training import speech as train


@pytest.fixture(scope="module")
def explainer():
    return legrad.load("embedded:speech")


@pytest.fixture(scope="module")
def texts():
    return train.text_targets(torch.device("cpu"))


@pytest.fixture
def chords(monkeypatch):
    """No espeak-ng: every concept is a chord of its own."""
    monkeypatch.setattr(synthesis, "synthesise", helpers_speech.chords)
    monkeypatch.setattr(synthesis, "version", lambda: "none")


@pytest.mark.parametrize("module", ["speech", "evaluate_speech"])
def test_scripts_without_espeak(module, tmp_path, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    done = script(f"training.{module}", *(["--folder", "."] if module == "speech" else []))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: speech is synthesised with espeak-ng, which is not")
    assert "Traceback" not in done.stderr


def test_the_documented_command_measures_what_the_page_has():
    page = json.loads((DOCS / "embedded-speech-model.json").read_text(encoding="utf-8"))
    parameters = inspect.signature(evaluate_speech.main).parameters
    assert {name: parameters[name].default for name in ("utterances", "scenes", "seed")} == {
        name: page[name] for name in ("utterances", "scenes", "seed")
    }


def test_distortions_follow_their_seed_and_keep_their_measure():
    augment = augmentation.Augmenter(0)
    waveforms = [helpers_speech.clip_of(name) for name in helpers_speech.CLIPS] * 10
    placed = augment.placed(waveforms, np.random.default_rng(1))
    assert placed.shape == (40, model.LONGEST)
    starts = [int((row != 0).float().argmax()) for row in placed]
    assert min(starts) < model.LONGEST // 8
    assert max(starts) > model.LONGEST // 2
    heard = augment.heard(placed, np.random.default_rng(2), (10.0, 10.0), quiet=0)
    again = augmentation.Augmenter(0).heard(placed, np.random.default_rng(2), (10.0, 10.0), quiet=0)
    assert torch.equal(heard, again)
    quiet = augment.heard(placed, np.random.default_rng(2), (10.0, 10.0), quiet=1)
    speech = quiet.abs() > 0.05 * quiet.abs().amax(1, keepdim=True)
    power = (quiet.square() * speech).sum(1) / speech.sum(1)
    snr = 10 * (power / (heard - quiet).square().mean(1)).log10()
    assert snr.mean() == pytest.approx(10, abs=1)
    assert limits.error(quiet, placed) > limits.DIFFERENT


def test_masks_blank_a_band_and_a_stretch():
    augment = augmentation.Augmenter(0)
    image = torch.ones(20, FRAMES, MELS)
    masked = augment.masked(image, np.random.default_rng(0))
    assert image.all()
    bands, frames = (masked == 0).all(1).sum(1), (masked == 0).all(2).sum(1)
    assert 5 < bands.max() <= augmentation.MASKED[0]
    assert 4 < frames.max() <= augmentation.MASKED[1]
    assert ((masked == 0).sum((1, 2)) == bands * FRAMES + frames * MELS - bands * frames).all()


def test_training_can_be_interrupted_and_resumed_to_the_same_place(tmp_path, chords, monkeypatch):
    recipe = train.Recipe(utterances=20, clips=24, batch=4, pool=8, renewed=2, warmup=2)
    device, lines = torch.device("cpu"), []
    whole, state = train.train(tmp_path / "whole", recipe, device, lines.append)
    assert state["step"] == 6
    assert lines[-1].startswith("step 6/6 loss")
    loss_of, seen = train.loss_of, []

    class Interrupted(Exception):
        pass

    def interrupted(*arguments):
        seen.append(arguments)
        if len(seen) == 4:
            raise Interrupted
        return loss_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "loss_of", interrupted)
        with pytest.raises(Interrupted):
            train.train(tmp_path / "parts", recipe, device, lines.append, save_every=0)
    resumed, _ = train.train(tmp_path / "parts", recipe, device, lines.append)
    assert "resumed at step 3" in lines
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert limits.close(a, b)


def test_the_loss_wants_the_own_text(texts):
    concepts = torch.arange(200)
    right = train.loss_of(3 * texts, concepts, texts, 0.05, 1.0)
    assert right < 0.2
    assert train.loss_of(texts, concepts.roll(1), texts, 0.05, 1.0) > right + 5
    # on the own side of all others is not enough: it has to be the text's own place
    beyond = 2 * texts - texts.mean(0)
    assert (F.normalize(beyond, dim=-1) @ texts.T).argmax(1).equal(concepts)
    cosines = (F.normalize(beyond, dim=-1) * texts).sum(1)
    cross = F.cross_entropy(F.normalize(beyond, dim=-1) @ texts.T / 0.05, concepts)
    expected = float(cross + 3 * (1 - cosines.mean()))
    assert train.loss_of(beyond, concepts, texts, 0.05, 3.0) == pytest.approx(expected, abs=limits.FLOAT32)


def test_evaluation(explainer, chords, monkeypatch):
    """With chords for names nothing is understood; with the text embeddings themselves everything is as by text."""
    results = evaluate_speech.evaluate(explainer, 10, 4, 3, progress=lambda steps, **_: steps)
    assert results["variants"]["retrieval"]["clean"]["value"] < 0.5
    assert results["accents"]["pointing"]["speech"]["value"] < results["accents"]["pointing"]["text"]["value"]
    for found in results.values():
        assert found["pointing"]["text"]["value"] > 0.7
        ratio = found["miou"]["speech"]["value"] / found["miou"]["text"]["value"]
        assert found["ratio"]["speech"]["value"] == pytest.approx(ratio)
        assert found["ratio"]["speech"]["low"] <= ratio <= found["ratio"]["speech"]["high"]
    assert next(row[0] for row in evaluate_speech.rows(results)) == "retrieval among 200"
    with pytest.raises(legrad.InputError, match="trained on"):
        evaluate_speech.localisation(explainer, "variants", 1, legrad.embedded.TRAINING_SEEDS[0])
    with pytest.raises(legrad.InputError, match="embedded:speech"):
        evaluate_speech.evaluate(legrad.load("embedded"), 1, 1, 3)


def test_published_page_is_made_of_the_published_numbers():
    page = DOCS / "embedded-speech-model.json"
    content = json.loads(page.read_text(encoding="utf-8"))
    assert content["card"] == model.card()
    assert page.with_suffix(".md").read_text(encoding="utf-8") == evaluate_speech.markdown(content)
    assert content["results"]["variants"]["retrieval"]["clean"]["low"] > 0.85
    assert content["results"]["accents"]["retrieval"]["clean"]["low"] > 0.75
    for found in content["results"].values():
        assert found["pointing"]["speech"]["low"] > 0.75
        assert found["ratio"]["speech"]["low"] > 0.9


@pytest.mark.parametrize("module", ["speech", "evaluate_speech"])
def test_scripts_have_help(module, script):
    done = script(f"training.{module}", "--help")
    assert done.returncode == 0
    assert "--output" in done.stdout
