"""Sounds as targets: what reaches the ear, what becomes of the embedding, one clear error for every bad sound."""

import warnings
import wave

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny
from torch import nn

import legrad

RATE = 8000
ROUNDED = 2 / (1 << 15)  # to 16 bits, there and back
RIPPLE = 2e-3  # of the filter that resamples
# of random models, for targets that are alike
pytestmark = pytest.mark.filterwarnings("ignore:.*maps hardly depend")


class Ear(nn.Module):
    """Strength of 32 bands -> an embedding; remembers what it heard."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(32, 32)
        self.dropout = nn.Dropout(0.5)
        self.heard = []

    def encode(self, waveforms):
        self.heard += waveforms
        bands = [np.abs(np.fft.rfft(one, 256)[1:]).reshape(32, -1).mean(1) for one in waveforms]
        features = torch.from_numpy(np.stack(bands)).to(self.project.weight)
        return 3 * self.dropout(self.project(features / features.norm(dim=-1, keepdim=True)))


@pytest.fixture
def ear():
    return tiny.randomised(Ear())


@pytest.fixture
def explainer(ear):
    hearing = legrad.AudioEncoder(RATE, ear.encode, ear)
    return legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer, audio_encoder=hearing)


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


def tone(frequency=600, seconds=0.5, rate=RATE, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_wav(path, waveform, rate=RATE):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((waveform * 32767).astype("<i2").tobytes())
    return str(path)


def embedding(ear, *waveforms):
    with torch.no_grad():
        return F.normalize(ear.encode(list(waveforms)), dim=-1)


# -- what is asked ------------------------------------------------------------------------------------------------


def test_a_sound_is_its_embedding(explainer, ear, x):
    found = explainer.explain(x, [legrad.Audio(tone()), embedding(ear, tone())[0]])
    assert limits.close(found.relevance[:, 0], found.relevance[:, 1], maps=True)
    assert limits.close(found.scores[:, 0], found.scores[:, 1])
    assert found.relevance[:, 0].max() > 0
    assert (
        limits.error(*explainer.explain(x, [legrad.Audio(tone(600)), legrad.Audio(tone(2400))]).scores.T)
        > limits.DIFFERENT
    )


def test_several_sounds_are_one_target(explainer, ear, x):
    sounds = [tone(600), tone(2400), tone(1500, 1.0)]
    found = explainer.explain(x, [legrad.Audio(sounds), embedding(ear, *sounds).mean(0)])
    assert found.relevance.shape[1] == 2
    assert limits.close(found.scores[:, 0], found.scores[:, 1])
    # normalised before the mean: how long an embedding comes out plays no part
    louder = legrad.AudioEncoder(RATE, lambda waves: ear.encode(waves) * torch.tensor([[1.0], [9.0], [1.0]]), ear)
    other = legrad.wrap(explainer.model, audio_encoder=louder).explain(x, legrad.Audio(sounds))
    assert limits.close(other.scores[:, 0], found.scores[:, 0])


def test_kinds_of_targets_mix(explainer, ear, x):
    audio = legrad.Audio(tone())
    alone = explainer.explain(x, audio)
    found = explainer.explain(x, ["a cat", audio, legrad.Similar(x[:1]), legrad.Contrast(audio, "a cat"), "a dog"])
    assert found.scores.shape == (2, 5)
    assert limits.close(found.scores[:, 1], alone.scores[:, 0])
    assert limits.close(found.scores[:, 3], found.scores[:, 1] - found.scores[:, 0], of=found.scores)
    assert limits.close(found.relevance[:, 1], alone.relevance[:, 0], maps=True)
    own = explainer.explain(x, [["a cat", "a dog"], [audio]])
    assert own.valid.tolist() == [[True, True], [True, False]]
    assert limits.close(own.scores[1, 0], alone.scores[1, 0], of=alone.scores)


def test_a_sound_is_background(explainer, x):
    """A sound whose map is the null map leaves nothing of itself above the threshold."""
    audio = legrad.Audio(tone())
    plain = explainer.explain(x, audio).relevance[0, 0]
    found = explainer.explain(x, audio, null_target=audio, null_threshold=0.5).relevance[0, 0]
    middle = (plain.min() + plain.max()) / 2
    assert torch.equal(found > 0, (plain > 0) & (plain <= middle))


def test_labels_name_the_sound(explainer, x, tmp_path):
    path = write_wav(tmp_path / "bark.wav", tone())
    asked = [
        legrad.Audio(path),
        legrad.Audio(tmp_path / "bark.wav", start=0.1, end=0.4),
        legrad.Audio(path, start=0.25),
        legrad.Audio([path, tone()]),
        legrad.Audio(tone()),
        legrad.Audio([tone(), tone(900)]),
    ]
    assert [explainer.explain(x[:1], one).labels[0][0] for one in asked] == [
        "sound bark.wav",
        "sound bark.wav (0.1 to 0.4 s)",
        "sound bark.wav (from 0.25 s)",
        "sound bark.wav and 1 more",
        "sound waveform",
        "sound of 2 waveforms",
    ]


def test_the_ear_is_left_as_found(explainer, ear, x):
    """It hears in eval mode: dropout would make every map another."""
    ear.train()
    with tiny.left_as_found(ear):
        found = [explainer.explain(x, legrad.Audio(tone())).scores for _ in range(2)]
    assert torch.equal(*found)


def test_the_ear_moves_with_the_model(explainer, ear):
    explainer.to("meta")
    assert ear.project.weight.device.type == "meta"


# -- what is heard ------------------------------------------------------------------------------------------------


def test_from_start_to_end(explainer, ear, x, tmp_path):
    waveform = np.concatenate([tone(600, 0.5), tone(2400, 0.5)])
    path = write_wav(tmp_path / "two.wav", waveform)
    explainer.explain(x, [legrad.Audio(waveform, start=0.5), legrad.Audio(path, start=0.125, end=0.5)])
    explainer.explain(x, legrad.Audio([waveform, path], end=1.0))
    assert np.array_equal(ear.heard[0], waveform[4000:])
    assert ear.heard[1] == pytest.approx(waveform[1000:4000], abs=ROUNDED)
    assert [len(one) for one in ear.heard[2:]] == [8000, 8000]


@pytest.mark.parametrize("rate", [16000, 44100, 4000])
def test_other_rates_are_resampled(explainer, ear, x, rate, tmp_path):
    """A tone is the same tone at every rate, and what the lower rate cannot hold is gone instead of folded over."""
    waveform = tone(600, 0.5, rate)
    path = write_wav(tmp_path / "tone.wav", waveform, rate)
    for audio in (legrad.Audio(waveform, rate), legrad.Audio((waveform, rate)), legrad.Audio(path)):
        explainer.explain(x, audio)
        assert len(ear.heard[-1]) == 4000
        assert ear.heard[-1][400:-400] == pytest.approx(tone()[400:-400], abs=RIPPLE)
    if rate > RATE:
        low_and_high = waveform + tone(7000, 0.5, rate, level=0.3)
        explainer.explain(x, legrad.Audio(low_and_high, rate))
        assert ear.heard[-1][400:-400] == pytest.approx(tone()[400:-400], abs=RIPPLE)


def test_channels_and_integers(explainer, ear, x):
    stereo = np.stack([tone(level=0.9), tone(level=0.1)])
    for sound in (stereo, stereo.T, torch.from_numpy(stereo), np.round(tone() * 32767).astype(np.int16)):
        explainer.explain(x, legrad.Audio(sound))
        assert ear.heard[-1] == pytest.approx(tone(), abs=ROUNDED)


# -- what cannot be heard -----------------------------------------------------------------------------------------


def square(seconds=0.5):
    return np.sign(tone(600, seconds) + 1e-9).astype(np.float32)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (legrad.Audio([]), "empty list"),
        (legrad.Audio(tone(), start="0.1"), r"start is a number of seconds, as in start=0\.5, got '0\.1'"),
        (legrad.Audio(tone(), start=None), "start is a number of seconds.*got None"),
        (legrad.Audio(tone(), end="0.4"), r"end is a number of seconds.*got '0\.4'"),
        (legrad.Audio(tone(), rate=8000.5), r"whole number of Hz, got 8000\.5"),
        (legrad.Audio((tone(), "8000")), "whole number of Hz, got '8000'"),
        (legrad.Audio("bark.wav", rate=8000), "rate=8000 is for waveforms; files.*bring their own"),
        (legrad.Audio([(tone(), 8000)], rate=8000), "rate=8000 is for waveforms"),
        (legrad.Audio((tone() * 32767).astype(np.int64)), r"int64 values up to 16\d\d\d.*16 bits: .*astype\(np.int16"),
        (legrad.Audio(np.zeros(4000, np.int32)), "the waveform is silent$"),
        (legrad.Audio(np.stack([tone(), -tone()])), "silent once its 2 channels are averaged: they cancel out"),
        (legrad.Audio(np.stack([np.clip(5 * tone(), -1, 1), 0 * tone()])), r"clipped: \d\d% of its samples"),
        (legrad.Audio([tone(), np.zeros(0, np.float32)]), "waveform 1 is a sound without samples"),
        (legrad.Audio([tone(), np.full(4000, np.nan, np.float32)]), "waveform 1 holds NaN"),
        (legrad.Audio(np.zeros(0, np.float32)), "without samples"),
        (legrad.Audio(np.zeros(4000, np.float32)), "the waveform is silent$"),
        (legrad.Audio(np.full(4000, 0.25, np.float32)), r"silent \(all samples are about 0\.25\)"),
        (legrad.Audio(1e-5 * tone()), "silent"),
        (legrad.Audio(tone(seconds=0.05)), r"too short: 0\.050 s are left to hear, .* at least 0\.1 s"),
        (legrad.Audio(tone(), start=0.45), r"too short: 0\.050 s"),
        (legrad.Audio(np.where(np.arange(4000) == 7, np.nan, tone())), "NaN"),
        (legrad.Audio(32767 * tone()), r"values up to 163\d\d.*\[-1, 1\].*full scale"),
        (legrad.Audio(np.clip(5 * tone(), -1, 1)), r"clipped: \d\d% of its samples.*lower level"),
        (legrad.Audio(square()), "clipped"),
        (legrad.Audio(tone(), start=0.5), r"lasts 0\.500 s.*start < end.*start=0\.5 and end=None"),
        (legrad.Audio(tone(), start=-0.1), "lasts"),
        (legrad.Audio(tone(), start=0.3, end=0.2), "lasts"),
        (legrad.Audio(tone(), end=0.6), r"end <= 0\.500, got start=0\.0 and end=0\.6"),
        (legrad.Audio(tone(), start=float("nan")), "lasts"),
        (legrad.Audio(tone(), rate=0), "positive number of Hz"),
        (legrad.Audio("no such.wav"), "no such sound"),
        (legrad.Audio(None), "a sound is a path"),
        (legrad.Audio(np.zeros((2, 2, 2))), "a sound is a path"),
    ],
)
def test_bad_sounds(explainer, x, audio, message):
    with pytest.raises(legrad.InputError, match=message) as told:
        explainer.explain(x, ["a cat", audio])
    assert "\n" not in str(told.value)


def test_a_file_that_is_no_sound(explainer, x, tmp_path):
    path = tmp_path / "broken.wav"
    path.write_bytes(b"RIFF, but not really")
    with pytest.raises(legrad.InputError, match=r"broken\.wav"):
        explainer.explain(x, legrad.Audio(path))


def test_the_file_that_cannot_be_heard_is_named(explainer, x, tmp_path):
    good, empty = write_wav(tmp_path / "good.wav", tone()), write_wav(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(legrad.InputError, match=r"empty\.wav is a sound without samples"):
        explainer.explain(x, legrad.Audio([good, empty]))


def test_rates_are_whole_numbers_of_any_type(explainer, ear, x):
    asked = [legrad.Audio(tone(), 8000.0), legrad.Audio((tone(), np.float32(8000)))]
    explainer.explain(x, asked)
    assert all(np.array_equal(one, tone()) for one in ear.heard)


def test_a_little_clipping_is_warned_of(explainer, x):
    with pytest.warns(UserWarning, match="is clipped: [3-9]% of its samples"):
        explainer.explain(x, legrad.Audio(np.clip(1.005 * tone(level=1), -1, 1)))
    with pytest.warns(UserWarning, match="is clipped: [3-9]% of its samples"):
        explainer.explain(x, legrad.Audio(np.stack([0 * tone(), np.clip(1.005 * tone(level=1), -1, 1)])))


def test_a_loud_or_quiet_sound_is_not_clipped(explainer, x):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*clipped")
        explainer.explain(x, [legrad.Audio(tone(601, level=1)), legrad.Audio(0.5 * np.clip(5 * tone(), -1, 1))])


def test_more_than_is_heard_is_warned_of(ear, x):
    hearing = legrad.AudioEncoder(RATE, ear.encode, ear, longest=0.75)
    explainer = legrad.wrap(tiny.clip(), audio_encoder=hearing)
    with pytest.warns(UserWarning, match=r"lasts 0\.80 s, the model is made for 0\.75 s at most; .*start=.*end="):
        explainer.explain(x, legrad.Audio(tone(seconds=0.8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.explain(x, legrad.Audio(tone(seconds=0.8), end=0.75))


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda waves: torch.ones(2, 32), r"\(waveforms, features\), here 1 rows; it returned \(2, 32\)"),
        (lambda waves: torch.ones(32), r"returned \(32,\)"),
        (lambda waves: [1.0], "returned list"),
        (lambda waves: torch.full((1, 32), torch.nan), "NaN"),
        (lambda waves: torch.ones(1, 31), "31 features, the model has 32"),
    ],
)
def test_a_wrong_ear(x, encode, message):
    explainer = legrad.wrap(tiny.clip(), audio_encoder=legrad.AudioEncoder(RATE, encode))
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(x, legrad.Audio(tone()))


def test_models_that_do_not_hear(x):
    message = "models that embed sounds in the space of their images, such as 'embedded:speech'"
    with pytest.raises(legrad.InputError, match=f"{message}.*legrad.AudioEncoder.*give this one a text"):
        legrad.wrap(tiny.clip()).explain(x, legrad.Audio(tone()))
    import timm

    classifier = tiny.randomised(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5))
    with pytest.raises(legrad.InputError, match=f"{message}.*give this one a class index"):
        legrad.wrap(classifier).explain(x, legrad.Audio(tone()))


def test_a_classifier_does_not_hear(ear):
    import timm

    classifier = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    message = "audio_encoder is for models that embed images and sounds in one space; VisionTransformer is a classifier"
    with pytest.raises(legrad.InputError, match=message):
        legrad.wrap(classifier, audio_encoder=legrad.AudioEncoder(RATE, ear.encode, ear))


def test_what_can_be_asked_names_sounds(explainer, x):
    with pytest.raises(legrad.InputError, match=r"legrad\.Audio\(sound\)"):
        explainer.explain(x, 3)
    from legrad.doctor import _targets

    assert _targets(explainer) == "texts, sounds, embeddings, Similar, callables"
