"""The embedded speech encoder: weights, spectrograms and synthesised speech."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits
from helpers import speech as helpers_speech
from helpers.speech import CLIPS, clip_of, tone
from transformers import audio_utils

import legrad
from legrad.embedded import SPOKEN, sample_names
from legrad.embedded.concepts import CONCEPTS, NAMES
from legrad.embedded.speech import model, synthesis
from legrad.embedded.speech.model import FRAMES, HOP, MELS, RATE, SAMPLES, WINDOW

TRAINING = synthesis.VARIANTS, synthesis.ACCENTS


@pytest.fixture(scope="module")
def explainer():
    return legrad.load("embedded:speech")


@pytest.fixture(scope="module")
def tower(explainer):
    return explainer.adapter.audio_encoder.tower


@pytest.fixture(scope="module")
def texts():
    return legrad.load("embedded").embed([f"a photo of a {name}" for name in NAMES]).embeddings


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


def test_maps_of_the_speech_encoder_are_as_the_page_says(explainer):
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
    spectrogram = tower.spectrograms(torch.from_numpy(waveform.astype(np.float32))[None])[0]
    frame, band = divmod(int(spectrogram.argmax()), MELS)
    assert 50 <= frame <= 100
    peaks = tower.mel_filters.argmax(0) * RATE / WINDOW
    assert abs(float(peaks[band]) - 3000) < 200
    assert not spectrogram[:45].any()


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
def chords(monkeypatch):
    """No espeak-ng: every concept is a chord of its own."""
    monkeypatch.setattr(synthesis, "synthesise", helpers_speech.chords)
    monkeypatch.setattr(synthesis, "version", lambda: "none")


def test_utterances_are_synthesised_once(tmp_path, chords, monkeypatch):
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


def test_saved_and_loaded(tmp_path, tower):
    model.save(tower, tmp_path / "a.safetensors", {"steps": 3})
    loaded = model.load(tmp_path / "a.safetensors")
    assert model.card(tmp_path / "a.safetensors") == {"steps": 3}
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(tower.mel_filters, loaded.mel_filters)
    assert torch.equal(model.build().mel_filters, loaded.mel_filters)
