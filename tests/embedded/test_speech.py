"""The embedded ear: what it hears, what it learnt, how its speech was made, and the numbers that are published."""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits
from helpers.pages import DOCS
from transformers import audio_utils

import legrad
from legrad.embedded import SPOKEN, sample_names
from legrad.embedded.concepts import CONCEPTS, NAMES
from legrad.embedded.speech import model, synthesis
from legrad.embedded.speech.model import FRAMES, HOP, MELS, RATE, SAMPLES, WINDOW
from legrad.inputs import sounds
from training import augmentation, evaluate_speech
from training import speech as train

CLIPS = {name: SPOKEN / f"{name}.wav" for name in sample_names()}
TRAINING = synthesis.VARIANTS, synthesis.ACCENTS


@pytest.fixture(scope="module")
def explainer():
    return legrad.load("embedded:speech")


@pytest.fixture(scope="module")
def tower(explainer):
    return explainer.adapter.audio_encoder.tower


@pytest.fixture(scope="module")
def texts():
    return train.text_targets(torch.device("cpu"))


def tone(frequency, seconds, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def clip_of(name):
    return sounds.read(CLIPS[name], RATE)[0]


# -- what ships ---------------------------------------------------------------------------------------------------


def test_what_ships_is_small():
    assert model.WEIGHTS.stat().st_size <= 8_000_000
    assert {path.name for path in SPOKEN.iterdir()} == {f"{name}.wav" for name in sample_names()}
    assert all(path.stat().st_size < 30_000 for path in CLIPS.values())


def test_the_image_model_is_the_embedded_one(explainer):
    ours, other = explainer.model.state_dict(), legrad.load("embedded").model.state_dict()
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[name], other[name]) for name in ours)


@pytest.mark.parametrize("name", CLIPS)
def test_spoken_samples_are_understood(tower, texts, name):
    """Voices that were never trained on; quiet, late, and with a little noise, too."""
    waveform = clip_of(name)
    hiss = 0.002 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    hiss[RATE : RATE + len(waveform)] += waveform
    with torch.no_grad():
        similar = F.normalize(tower.hear([waveform, 0.05 * waveform, np.pad(waveform, RATE), hiss]), dim=-1) @ texts.T
    assert [NAMES[best] for best in similar.argmax(1).tolist()] == [name] * 4
    assert similar[0, NAMES.index(name)] > 0.8


def test_a_spoken_name_lights_up_what_the_written_one_does(explainer):
    names = list(CLIPS)
    targets = [*[f"a photo of a {name}" for name in names], *map(legrad.Audio, CLIPS.values())]
    found = explainer.explain(legrad.embedded.SAMPLE, targets)
    maps = found.relevance[0].flatten(1)
    agreement = torch.corrcoef(maps)[: len(names), len(names) :]
    assert agreement.diagonal().min() > 0.9
    assert torch.equal(agreement.argmax(1), torch.arange(len(names)))
    assert torch.equal(maps[: len(names)].argmax(1), maps[len(names) :].argmax(1))
    assert found.scores[0, len(names) :] == pytest.approx(found.scores[0, : len(names)], abs=0.1)


def test_maps_of_the_ear_are_as_the_page_says(explainer):
    """docs/audio.md: silence keeps much relevance, of one clip more than the word; less by the published read-out."""

    def share_of_silence(name, readout):
        quiet = 3 * RATE // 10
        found = explainer.explain_audio(np.pad(clip_of(name), quiet), f"a photo of a {name}", readout=readout)
        columns = found.saliency(normalize=None)[0, 0].mean(0).numpy()
        seconds = found.timings[0].start + (np.arange(len(columns)) + 0.5) * HOP / RATE
        inside = (seconds > 0.35) & (seconds < 0.25 + len(clip_of(name)) / RATE)
        return columns[~inside].mean() / columns[inside].mean()

    shares = {readout: {name: share_of_silence(name, readout) for name in CLIPS} for readout in ("auto", "published")}
    assert shares["auto"]["cow"] > 1
    assert all(share > 0.5 for share in shares["auto"].values())
    assert all(share < 1 for share in shares["published"].values())


def test_command_line_with_a_spoken_sample(tmp_path, monkeypatch, capsys):
    from legrad.cli import main

    arguments = ["legrad", "explain", "--audio", str(CLIPS["cow"]), "-t", "a photo of a bell", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 0
    assert (tmp_path / "sample--sound-cow-wav.png").is_file()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["settings"]["model"] == "embedded:speech"
    for wrong, message in (("none.wav", "--audio: no such sound: none.wav"), (__file__, "test_speech.py")):
        monkeypatch.setattr("sys.argv", ["legrad", "explain", "--audio", wrong, "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as done:
            main.main()
        assert done.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


# -- what reaches the transformer ---------------------------------------------------------------------------------


def test_spectrograms_equal_those_of_transformers(tower):
    waveform = clip_of("butterfly")
    clip = model.window_of(waveform)
    # theirs centres frames too, and has one more at the end
    power = audio_utils.spectrogram(
        clip,
        audio_utils.window_function(WINDOW, "hann"),
        WINDOW,
        HOP,
        power=2.0,
        pad_mode="constant",
        mel_filters=audio_utils.mel_filter_bank(WINDOW // 2 + 1, MELS, 40.0, RATE / 2, RATE, mel_scale="slaney"),
        mel_floor=1e-20,
    )
    decades = np.log10(power).T[:FRAMES]
    expected = np.clip(decades - decades.max(), -model.DYNAMICS, 0) * 2 / model.DYNAMICS + 2
    found = tower.spectrograms(torch.from_numpy(clip)[None])[0]
    assert found.shape == (FRAMES, MELS)
    # their Fourier transform is complex64 whatever comes in, and silence is six decades down
    assert limits.error(found, expected) < limits.DIFFERENT


def test_how_loud_a_sound_is_plays_no_part(tower):
    tower, clip = copy.deepcopy(tower).double(), torch.from_numpy(model.window_of(clip_of("bell")))[None].double()
    assert limits.close(tower.spectrograms(0.01 * clip), tower.spectrograms(clip))
    assert tower.spectrograms(clip).aminmax() == (0, 2)


def test_time_and_pitch_have_their_places(tower):
    waveform = np.concatenate([np.zeros(RATE // 2), tone(3000, 0.5), np.zeros(SAMPLES - RATE)])
    picture = tower.spectrograms(torch.from_numpy(waveform.astype(np.float32))[None])[0]
    frame, band = divmod(int(picture.argmax()), MELS)
    assert 50 <= frame <= 100
    peaks = tower.mel_filters.argmax(0) * RATE / WINDOW
    assert abs(float(peaks[band]) - 3000) < 200
    assert not picture[:45].any()


def test_a_word_is_laid_at_the_end_wherever_it_was():
    word = tone(800, 0.4)
    for start, noise in ((0, 0), (16000, 0.001), (50000, 0.001), (90000 - len(word), 0.001), (50000, 0)):
        waveform = noise * np.random.default_rng(0).standard_normal(90000).astype(np.float32)
        waveform[start : start + len(word)] += word
        found = model.window_of(waveform)
        assert len(found) == SAMPLES
        place = int(np.abs(np.correlate(found, word, "valid")).argmax())
        assert abs(place + len(word) - (SAMPLES - model.TRAILING_SAMPLES)) <= 3 * HOP


def test_clips_are_heard_apart(tower):
    waveforms = [clip_of(name) for name in CLIPS]
    with torch.no_grad():
        together = tower.hear(waveforms)
        alone = torch.cat([tower.hear([waveform]) for waveform in waveforms])
    assert limits.close(together, alone)


def test_the_last_block_reads_out_as_the_embedding(tower):
    from legrad.core import hooks

    clip = tower.spectrograms(torch.from_numpy(model.window_of(clip_of("cow")))[None])
    with torch.no_grad(), hooks.record(tower.trunk.blocks) as outputs:
        expected = tower(clip)
        assert torch.equal(tower.read_out(outputs[-1]), expected)
        assert outputs[-1].shape[1] == model.TOKENS


# -- speech for training ------------------------------------------------------------------------------------------


def test_held_out_voices_are_never_trained_on():
    assert not set(synthesis.VARIANTS) & set(synthesis.HELD_OUT_VARIANTS)
    assert not set(synthesis.ACCENTS) & set(synthesis.HELD_OUT_ACCENTS)
    parts = {
        split: {tuple(synthesis.utterance(split, 0, i).voice.split("+")) for i in range(1000)}
        for split in ("training", "variants", "accents")
    }
    for split, (variants, accents) in {
        "training": TRAINING,
        "variants": (synthesis.HELD_OUT_VARIANTS, synthesis.ACCENTS),
        "accents": (synthesis.HELD_OUT_VARIANTS, synthesis.HELD_OUT_ACCENTS),
    }.items():
        assert {variant for _, variant in parts[split]} == set(variants)
        assert {accent for accent, _ in parts[split]} == set(accents)
    card = model.card()
    assert (tuple(card["variants"]), tuple(card["accents"])) == TRAINING


def test_utterances_say_their_concept():
    for split in ("training", "accents"):
        said = [synthesis.utterance(split, 3, i) for i in range(1000)]
        assert said == [synthesis.utterance(split, 3, i) for i in range(1000)]
        assert said != [synthesis.utterance(split, 4, i) for i in range(1000)]
        for one in said:
            concept = CONCEPTS[one.concept]
            names = [concept.name] + list(concept.aliases) * (split == "training")
            assert any(one.text.endswith(name) for name in names), one
            assert " a apple" not in one.text
        own = sum(one.text.endswith(NAMES[one.concept]) for one in said)
        assert own < 950 if split == "training" else own == 1000


@pytest.fixture
def recorded(monkeypatch):
    """No espeak-ng: every concept is a chord of its own."""

    def spoken(utterances):
        return [tone(300 + 30 * one.concept, 0.3) + tone(4000 - 15 * one.concept, 0.3) for one in utterances]

    monkeypatch.setattr(synthesis, "synthesise", spoken)
    monkeypatch.setattr(synthesis, "version", lambda: "none")


def test_utterances_are_synthesised_once(tmp_path, recorded, monkeypatch):
    cache = synthesis.Cache(tmp_path, 0, 5)
    assert len(cache) == 5
    for i in range(5):
        assert cache.utterances[i] == synthesis.utterance("training", 0, i)
        waveform = synthesis.synthesise([cache.utterances[i]])[0]
        assert cache[i] == pytest.approx(waveform, abs=2 / (1 << 15))  # rounded to 16 bits
    monkeypatch.setattr(synthesis, "synthesise", None)
    again = synthesis.Cache(tmp_path, 0, 5)
    assert np.array_equal(again[4], cache[4])
    with pytest.raises(TypeError):
        synthesis.Cache(tmp_path, 1, 5)


def test_without_espeak(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(legrad.InputError, match="apt-get install espeak-ng"):
        synthesis.synthesise([synthesis.utterance("training", 0, 0)])


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
    waveforms = [clip_of(name) for name in CLIPS] * 10
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
    picture = torch.ones(20, FRAMES, MELS)
    masked = augment.masked(picture, np.random.default_rng(0))
    assert picture.all()
    bands, frames = (masked == 0).all(1).sum(1), (masked == 0).all(2).sum(1)
    assert 5 < bands.max() <= augmentation.MASKED[0]
    assert 4 < frames.max() <= augmentation.MASKED[1]
    assert ((masked == 0).sum((1, 2)) == bands * FRAMES + frames * MELS - bands * frames).all()


# -- training and evaluation --------------------------------------------------------------------------------------


def test_training_can_be_interrupted_and_resumed_to_the_same_place(tmp_path, recorded, monkeypatch):
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


def test_saved_and_loaded(tmp_path, tower):
    model.save(tower, tmp_path / "a.safetensors", {"steps": 3})
    loaded = model.load(tmp_path / "a.safetensors")
    assert model.card(tmp_path / "a.safetensors") == {"steps": 3}
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(tower.mel_filters, loaded.mel_filters)
    assert torch.equal(model.build().mel_filters, loaded.mel_filters)


def test_evaluation(explainer, recorded, monkeypatch):
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
