"""Audio models: maps against the slow twin, overlapping patches, sounds of every kind in, spectrograms out."""

import copy
import dataclasses
import json
import re
import warnings
import wave

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import generic_twin, limits, tiny
from helpers.handmade import explanation
from helpers.tiny import left_as_found
from helpers.twin import distance
from helpers.zoo import media as zoo_media

import legrad
from legrad.core import hooks
from legrad.embedded.speech import model as speech
from legrad.inputs import prepare, sounds, spectrograms
from legrad.inputs.geometry import PatchGrid, Placement, Timing
from legrad.models.embedded import speech_anatomy

RATE = 16000
NAMES = [name for name in zoo_media.names() if name.startswith("ast")]


def second(feature):
    return feature[:, 1]


def batch_of(anatomy, count=2, dtype=torch.float64):
    return torch.randn(count, *anatomy.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def chirp(steps=30, rate=RATE):
    """A waveform that gives ``steps`` steps of the spectrogram, from low to high."""
    time = np.arange(400 + (steps - 1) * 160) / RATE
    time = np.arange(round(len(time) / RATE * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 12000 * time) * time)).astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    return transformers.ASTFeatureExtractor(num_mel_bins=20, max_length=40)


@pytest.fixture(scope="module")
def explainer(extractor):
    return legrad.wrap(zoo_media.build("ast"), transform=extractor)


# -- maps and places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", NAMES)
def test_maps_equal_the_twin(name, readout):
    model = zoo_media.build(name).double()
    explainer = legrad.wrap(model)
    batch = batch_of(explainer.anatomy)
    with left_as_found(model):
        explanation = explainer.explain(batch, second, readout=readout, keep_layers=True)
    expected = generic_twin.layer_maps(model, lambda m: legrad.wrap(m).anatomy, batch, second, readout)
    assert explanation.axes == ("frequency", "time")
    assert explanation.relevance.shape[2:] == explainer.anatomy.grid
    assert distance(explanation.layer_relevance[:, 0], expected) < limits.FLOAT64
    alone = explainer.explain(batch[1:], second, readout=readout)
    assert distance(alone.relevance[0], explanation.relevance[1]) < limits.FLOAT64


@pytest.mark.parametrize("name", ["ast", "ast-side-by-side"])
def test_what_a_patch_covers_is_its_token(name):
    """One changed point of the spectrogram changes the tokens of all patches that cover it, and no other."""
    anatomy = legrad.wrap(zoo_media.build(name)).anatomy
    batch = batch_of(anatomy, 1, torch.float32)
    cells, cols = anatomy.patch_grid, anatomy.grid[1]

    def block_input(x):
        with torch.no_grad():
            return hooks.block_input(lambda: anatomy.run(x), anatomy.blocks[0])[0]

    assert anatomy.num_prefix_keys == anatomy.num_prefix_tokens
    before = block_input(batch)
    for frequency, time in [(0, 0), (6, 13), (12, 7), (15, 31), (19, 39)]:
        changed = batch.clone()
        changed[0, time, frequency] += 1
        moved = (block_input(changed) - before).abs().amax(-1).nonzero().flatten().tolist()
        covering = [
            2 + row * cols + col
            for row in range(anatomy.grid[0])
            for col in range(cols)
            if 0 <= frequency - row * cells.stride[0] < cells.patch[0]
            and 0 <= time - col * cells.stride[1] < cells.patch[1]
        ]
        assert moved == covering


@pytest.mark.parametrize("wrong", [{"num_prefix_keys": 1}, {"num_prefix_keys": 0}, {"grid": (6, 3)}])
def test_a_broken_anatomy_is_noticed(wrong):
    from dataclasses import replace

    model = zoo_media.build("ast").double()
    anatomy = legrad.wrap(model).anatomy
    batch = batch_of(anatomy)
    right = legrad.wrap(model).explain(batch, second).relevance
    explainer = legrad.wrap(model, anatomy=replace(anatomy, **wrong))
    if "num_prefix_keys" in wrong:
        with pytest.raises(legrad.TruthCheckError, match="20 keys"):
            explainer.explain(batch, second)
    else:
        relevance = explainer.explain(batch, second).relevance
        assert relevance.shape != right.shape or distance(relevance, right) > limits.DIFFERENT


def spectrogram_map(row, col, heard=300, **changes):
    """AST's own layout: 128 x 1024, patches of 16 every 10; one hot cell."""
    relevance = torch.zeros(1, 1, 12, 101)
    relevance[0, 0, row, col] = 1
    return explanation(
        targets=1,
        relevance=relevance,
        layer_relevance=relevance[:, :, None].repeat(1, 1, 2, 1, 1),
        placements=[Placement((128, heard), (128, 1024))],
        patch_grids=[PatchGrid((12, 101), (16, 16), (10, 10))],
        images=[spectrograms.as_image(torch.rand(heard, 128, generator=torch.Generator().manual_seed(0)))],
        axes=("frequency", "time"),
        **changes,
    )


def test_a_hot_cell_lands_where_its_patch_is():
    """Not 16 but 10 columns apart: the patch in row 2, column 20 covers frequencies 20 to 36 and times 200 to 216."""
    saliency = spectrogram_map(2, 20).saliency()[0, 0]
    assert saliency.shape == (128, 300)
    hot = (saliency > 0.5).nonzero()
    assert hot.double().mean(0).tolist() == pytest.approx([27.5, 207.5])
    assert hot.amin(0).tolist()[0] >= 20
    assert hot.amax(0).tolist()[1] < 216


def test_low_frequencies_are_drawn_at_the_bottom():
    found = spectrogram_map(0, 5)
    overlay = np.asarray(found.overlay(alpha=1)).astype(int).sum(-1)
    assert overlay.shape == (128, 300)
    assert np.unravel_index(overlay.argmax(), overlay.shape)[0] > 110
    # 128 - 126 rows under the patches are unseen, at the top
    assert found.seen[0].any(1).tolist() == [True] * 126 + [False] * 2
    figure = found.figure()
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_ylabel() for axis in shown] == ["frequency (mel bins)"] * 2
    assert [axis.get_xlabel() for axis in shown] == ["time (spectrogram frames)"] * 2
    assert shown[0].images[0].get_extent() == [0, 300, 0, 128]
    assert np.array_equal(shown[0].images[0].get_array(), found.images[0][::-1])
    assert np.array_equal(shown[1].images[0].get_array(), np.asarray(found.overlay()))
    assert len([axis for axis in found.layer_figure().axes if axis.images]) == 3
    timed = dataclasses.replace(found, timings=[Timing(duration=3.0)]).figure().axes[0]
    assert (timed.get_xlabel(), timed.images[0].get_extent()) == ("time (seconds)", [0, 3, 0, 128])
    assert found._repr_png_().startswith(b"\x89PNG")


# -- sounds in ----------------------------------------------------------------------------------------------------


def write_wav(path, waveform, rate=RATE, width=2, channels=1):
    values = np.round(np.clip(waveform, -1, 1) * ((1 << (8 * width - 1)) - 1)).astype("<i4")
    if width == 1:
        raw = (values + 128).astype(np.uint8).tobytes()
    else:
        raw = values[:, None].view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


def test_only_what_was_heard_is_shown(explainer, extractor):
    waveform = chirp(30)
    explanation = explainer.explain(waveform, 1)
    assert explanation.placements[0] == Placement((20, 30), (20, 40))
    assert explanation.images[0].shape == (20, 30, 3)
    assert explanation.saliency().shape == (1, 1, 20, 30)
    assert explanation.names == ["sound 0"]
    own = extractor(waveform, sampling_rate=RATE, return_tensors="pt")
    for tensor in (own, own["input_values"]):
        same = explainer.explain(tensor, 1)
        assert distance(same.relevance, explanation.relevance) < limits.FLOAT32
        assert same.placements[0] == Placement((20, 40), (20, 40))
    # a rising tone: later columns are brightest further up
    brightest = explanation.images[0][..., 0].argmax(0)
    assert brightest[2] < brightest[27]


def test_the_same_sound_in_many_forms(explainer, tmp_path):
    waveform = chirp()
    stereo = np.stack([waveform * 1.5, waveform * 0.5])
    integers = np.round(waveform * 32767).astype(np.int16)
    sources = [
        waveform,
        waveform.astype(np.float64),
        torch.from_numpy(waveform),
        (waveform, RATE),
        (stereo, RATE),
        (torch.from_numpy(stereo.T), np.int64(RATE)),
        integers,
        write_wav(tmp_path / "mono.wav", waveform),
        str(write_wav(tmp_path / "deep.wav", waveform, width=3)),
        write_wav(tmp_path / "deeper.wav", waveform, width=4),
        write_wav(tmp_path / "stereo.wav", stereo.T.reshape(-1), channels=2),
    ]
    expected = explainer.explain(waveform, 1)
    for source in sources:
        explanation = explainer.explain(source, 1)
        assert distance(explanation.relevance, expected.relevance) < 0.05
        assert explanation.placements == expected.placements
    together = explainer.explain([waveform, (stereo, RATE)], 1)
    assert together.names == ["sound 0", "sound 1"]
    assert explainer.explain(tmp_path / "mono.wav", 1).names == [str(tmp_path / "mono.wav")]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(tmp_path, width):
    waveform = np.array([0, 0.5, -0.5, 0.99, -0.99], np.float32)
    (found,), rate, name = sounds.opened(write_wav(tmp_path / "a.wav", waveform, width=width), 1)
    assert rate == RATE
    assert found == pytest.approx(waveform, abs=2 / (1 << (8 * width - 1)))
    assert name.endswith("a.wav")


def test_a_sound_that_is_too_long_warns(explainer):
    with pytest.warns(UserWarning, match=r"lasts 1\.\d s, the model hears the first 0\.4 s"):
        explanation = explainer.explain(chirp(100), 1)
    assert explanation.images[0].shape == (20, 40, 3)
    assert explainer.explain(chirp(40), 1).images[0].shape == (20, 40, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.wav", "no such sound: absent.wav"),
        (np.zeros(0, np.float32), "without samples"),
        (np.zeros((2, 2, 2), np.float32), "a sound is a path"),
        ([chirp(), np.full(4000, np.nan, np.float32)], "sound 1 holds NaN"),
        (np.zeros(10, np.float32), r"sound 0 is too short: 0\.001 s are left to hear"),
        (np.zeros(4000, np.float32), "sound 0 is silent$"),
        (np.full(4000, 0.3, np.float32), r"sound 0 is silent \(all samples are about 0\.3\)"),
        ([chirp(), np.clip(20 * chirp(), -1, 1)], r"sound 1 is clipped: \d\d% of its samples"),
        ((np.stack([chirp(), -chirp()]), RATE), "sound 0 is silent once its 2 channels are averaged"),
        (["a", 3], "no such sound: a"),
        ([3], "got int"),
        ((np.zeros(4000, np.float32), -1), "positive number of Hz"),
        ([], "no images"),
        (torch.zeros(1, 30, 20), r"only, got \(batch, time 30, frequency 20\)"),
        (torch.zeros(40, 20), r"\(batch, time, frequency\)"),
    ],
)
def test_what_is_no_sound(explainer, source, message):
    with pytest.raises(legrad.InputError, match=message):
        explainer.explain(source, 1)


@pytest.mark.parametrize("kind", ["hearing", "hubert"])
def test_nothing_to_hear_is_not_explained(kind, request, tmp_path):
    """By the embedded ear and a model of waveforms."""
    explainer = request.getfixturevalue(kind)
    silent = write_wav(tmp_path / "silent.wav", np.zeros(RATE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(legrad.InputError, match=r"silent\.wav is silent$"):
            explainer.explain_audio([chirp(), silent], lambda feature: feature[:, 0])
        with pytest.raises(legrad.InputError, match="sound 0 is too short"):
            explainer.explain_audio(chirp()[:10], lambda feature: feature[:, 0])


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_file_that_is_cut_short(explainer, tmp_path, subtype):
    import soundfile

    path = tmp_path / "a.wav"
    soundfile.write(path, chirp(), RATE, subtype=subtype)
    explainer.explain(path, 1)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(legrad.InputError, match=r"a\.wav is cut short: \d+ of \d+ bytes of samples are there"):
        explainer.explain(path, 1)


def test_sounds_have_no_size(explainer):
    with pytest.raises(legrad.InputError, match="neither size nor fit"):
        explainer.explain(chirp(), 1, fit="pad")


def test_other_rates(explainer, monkeypatch):
    other = (chirp(rate=8000), 8000)
    if any(map(sounds.importlib.util.find_spec, ("soxr", "torchaudio", "scipy"))):
        assert explainer.explain(other, 1).images[0].shape[1] in (29, 30)
    monkeypatch.setattr(sounds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(legrad.InputError, match="sampled at 8000 Hz, the model takes 16000 Hz; install soxr"):
        explainer.explain(other, 1)


def test_other_files_need_soundfile(explainer, tmp_path, monkeypatch):
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    monkeypatch.setattr(sounds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(legrad.InputError, match=r"no plain PCM \.wav file .* install soundfile"):
        explainer.explain(tmp_path / "a.flac", 1)


def test_other_files(explainer, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.flac", chirp(), RATE)
    soundfile.write(tmp_path / "a.wav", chirp(), RATE, subtype="FLOAT")
    expected = explainer.explain(chirp(), 1)
    for name in ("a.flac", "a.wav"):
        assert distance(explainer.explain(tmp_path / name, 1).relevance, expected.relevance) < 0.05
    (tmp_path / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(legrad.InputError, match="as a sound"):
        explainer.explain(tmp_path / "broken.flac", 1)


def test_command_line(extractor, tmp_path, monkeypatch):
    from legrad.cli import main

    model = zoo_media.build("ast")
    model.config.id2label = dict(enumerate(["hum", "hiss", "horn", "bell", "bark"]))
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    sound = write_wav(tmp_path / "sound.wav", chirp())
    out = tmp_path / "out"
    arguments = [
        "legrad",
        "explain",
        str(sound),
        "--class",
        "horn",
        "-t",
        "bell",
        "--model",
        f"hf:{tmp_path / 'model'}",
    ]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 0
    assert {path.name for path in out.iterdir()} == {
        "sound.png",
        "sound.npz",
        "sound--horn.png",
        "sound--bell.png",
        "manifest.json",
        "table.csv",
    }


def test_one_bad_sound_of_several_is_named_once(explainer, tmp_path, monkeypatch, capsys):
    from legrad.cli import main

    write_wav(tmp_path / "good.wav", chirp())
    write_wav(tmp_path / "silent.wav", np.zeros(RATE))
    monkeypatch.setattr(legrad, "load", lambda name, **_: explainer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["legrad", "explain", "good.wav", "silent.wav", "--class", "1", "--model", "hf:ast"]
    )
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 1
    assert capsys.readouterr().err.strip() == "error: silent.wav is silent"


def test_another_size_of_spectrogram_is_named_by_its_axes():
    explainer = legrad.wrap(zoo_media.build("ast"))
    time, frequency = explainer.anatomy.shape
    with pytest.raises(legrad.InputError) as caught:
        explainer.explain(torch.randn(1, frequency, time), 0)
    assert f"spectrograms (batch, time {time}, frequency {frequency}) only" in str(caught.value)
    assert f"got (batch, time {frequency}, frequency {time})" in str(caught.value)
    values = {finding.what: finding.value for finding in legrad.doctor.examine(explainer).findings}
    assert values["input sizes"] == f"time {time} x frequency {frequency} only"
    assert values["grid"].endswith(f"at {time} x {frequency} (time, frequency)")


def test_a_folder_is_loaded_in_silence(tmp_path, capsys, recwarn):
    zoo_media.build("ast").save_pretrained(tmp_path)
    transformers.ASTFeatureExtractor().save_pretrained(tmp_path)
    capsys.readouterr()
    recwarn.clear()
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        legrad.load(f"hf:{tmp_path}")
    assert capsys.readouterr().err == ""
    assert [str(one.message) for one in recwarn if "mel filter" in str(one.message)] == []
    assert transformers.utils.logging.is_progress_bar_enabled() == enabled


# -- seconds and Hz -----------------------------------------------------------------------------------------------


def test_the_axes_of_a_file_are_seconds_and_hz(tmp_path):
    """A tone lies at its own frequency and time, in the library's own spectrogram."""
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=100)
    model = zoo_media.ast(num_mel_bins=64, max_length=100)
    time = np.arange(RATE) / RATE
    tone = np.where((time > 0.5) & (time < 0.8), 0.9 * np.sin(2 * np.pi * 2000 * time), 0).astype(np.float32)
    explanation = legrad.wrap(model, transform=extractor).explain(write_wav(tmp_path / "tone.wav", tone), 1)
    (centres,) = explanation.frequencies
    assert len(centres) == 64
    assert 20 < centres[0] < centres[-1] < 8000
    row, column = np.unravel_index(explanation.images[0][..., 0].argmax(), explanation.images[0].shape[:2])
    assert centres[row] == pytest.approx(2000, abs=(centres[row + 1] - centres[row - 1]) / 2)
    axis = explanation.figure().axes[1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("time (seconds)", "frequency (Hz)")
    right, top = axis.images[0].get_extent()[1::2]
    assert 0.49 < column / explanation.images[0].shape[1] * right < 0.8
    ticks = {tick.get_text(): place for tick, place in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)}
    assert ticks["2000"] == pytest.approx(row + 0.5, abs=1)
    assert 0 < ticks["500"] < ticks["5000"] < top == 64


def test_bins_lie_where_the_librarys_own_filters_do():
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=40, sampling_rate=22050)
    filters = transformers.audio_utils.mel_filter_bank(
        257, 40, 20, 11025, 22050, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    hertz = np.linspace(0, 11025, 257)
    # a triangle in mel leans a little to the left in Hz; the lowest ones are narrower than a step of the transform
    mean = (filters * hertz[:, None]).sum(0) / filters.sum(0)
    assert np.asarray(spectrograms.frequencies(extractor))[8:] == pytest.approx(mean[8:], rel=0.04)


# -- one call for whatever listens --------------------------------------------------------------------------------


def test_explain_audio_is_explain(explainer):
    explanation = explainer.explain_audio(chirp(), [1, 2], layers=1, readout="native")
    expected = explainer.explain(chirp(), [1, 2], layers=1, readout="native")
    assert torch.equal(explanation.relevance, expected.relevance)


def test_explain_audio_asks_the_audio_tower(explainer):
    """A model that sees and hears: its audio tower is explained, its images are left alone."""
    seeing = legrad.wrap(tiny.clip())
    both = legrad.explainer.Explainer(dataclasses.replace(seeing.adapter, audio_adapter=explainer.adapter))
    explanation = both.explain_audio(chirp(), 1)
    assert explanation.axes == ("frequency", "time")
    assert torch.equal(explanation.relevance, explainer.explain(chirp(), 1).relevance)


def test_what_does_not_listen_is_refused():
    with pytest.raises(legrad.UnsupportedModelError, match=r"CLIP has no audio tower .* axes rows, cols; load"):
        legrad.wrap(tiny.clip()).explain_audio(chirp(), 1)


# -- the embedded ear ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hearing():
    """The embedded model with an ear that was not trained."""
    torch.manual_seed(0)
    tower = tiny.ear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "load", lambda: tower)
        return legrad.load("embedded:speech")


@pytest.mark.parametrize("readout", ["native", "published"])
def test_maps_of_the_ear_equal_the_twin(hearing, readout):
    tower = copy.deepcopy(hearing.audio_explainer.model).double()
    batch = batch_of(speech_anatomy(tower))
    with left_as_found(tower):
        explanation = legrad.wrap(tower, anatomy=speech_anatomy(tower)).explain(
            batch, second, readout=readout, keep_layers=True
        )
    expected = generic_twin.layer_maps(tower, speech_anatomy, batch, second, readout)
    assert distance(explanation.layer_relevance[:, 0], expected) < limits.FLOAT64
    assert explanation.axes == ("frequency", "time")


def test_what_the_ear_hears_is_explained(hearing):
    """Texts and sounds are targets of a sound; what is explained is what a target is made of."""
    clip, other = tone_at(1000, 0.3), tone_at(3000, 0.9)
    explanation = hearing.explain_audio([clip, other], ["a photo of a cow", legrad.Audio(clip, speech.RATE)])
    with torch.no_grad():
        heard = F.normalize(hearing.audio_explainer.model.hear([clip, other]), dim=-1)
        text = F.normalize(hearing.adapter.encode_text(hearing.adapter.tokenize(["a photo of a cow"])), dim=-1)
    assert limits.close(explanation.scores, torch.stack([heard @ text[0], heard @ heard[0]], 1))
    # nothing of the silence in front of them and behind
    assert [picture.shape[1] for picture in explanation.images] == [30, 90]
    assert [timing.duration for timing in explanation.timings] == pytest.approx([0.3, 0.9])
    for picture, centres, hertz in zip(explanation.images, explanation.frequencies, (1000, 3000), strict=True):
        assert centres[int(picture[..., 0].sum(1).argmax())] == pytest.approx(hertz, rel=0.05)
        assert picture[..., 0].max(0).min() > 200


def test_a_long_sound_is_shown_at_the_time_that_was_heard(hearing):
    clip = np.concatenate([0.01 * tone_at(500, 2), tone_at(500, 1), 0.01 * tone_at(500, 2)])
    explanation = hearing.explain_audio(clip, "a photo of a cow")
    (timing,) = explanation.timings
    assert timing.duration == pytest.approx(speech.SAMPLES / RATE)
    assert timing.start == pytest.approx(3 + (speech.TRAILING_SAMPLES - speech.SAMPLES) / RATE, abs=0.05)
    axis = explanation.figure().axes[1]
    assert axis.images[0].get_extent() == pytest.approx([timing.start, timing.start + timing.duration, 0, speech.MELS])
    loud = explanation.images[0][..., 0].max(0) > 200
    seconds = timing.start + np.flatnonzero(loud)[[0, -1]] * 0.01
    assert seconds == pytest.approx([2, 3], abs=0.05)


def test_silence_in_front_of_a_sound_is_not_shown_as_its_beginning(hearing):
    """A short sound is laid at the end of what is heard: its map begins there too."""
    clip = tone_at(1000, 0.3)
    explanation = hearing.explain_audio(clip, "a photo of a cow")
    (frame,), cells = explanation.placements, hearing.audio_explainer.anatomy.patch_grid
    skipped = speech.FRAMES - speech.TRAILING_SAMPLES // speech.HOP - 30
    assert frame.offset[1] == pytest.approx(skipped, abs=2)
    raw = explanation.saliency(normalize=None)[0, 0]
    column = round(frame.offset[1] + 15) // cells.stride[1]
    middle = round((column + 0.5) * cells.stride[1] - frame.offset[1] - 0.5)
    assert raw[speech.MELS // 4, middle] == pytest.approx(float(explanation.relevance[0, 0, 0, column]), rel=0.2)


def test_the_map_moves_along_with_the_word(hearing):
    word = tone_at(1000, 0.3)
    moments, found = (0.0, 0.5, 1.5), []
    for seconds in moments:
        clip = np.pad(word, (round(seconds * RATE), RATE // 4))
        found.append(hearing.explain_audio(clip, "a photo of a cow"))
    begins = [one.timings[0].start - one.placements[0].offset[1] * 0.01 for one in found]
    assert [begin - begins[0] for begin in begins] == pytest.approx(moments, abs=0.011)
    assert all(distance(one.relevance, found[0].relevance) < 0.05 for one in found)


def test_sounds_on_the_command_line_go_to_the_ear(hearing, tmp_path, monkeypatch, capsys):
    from legrad.cli import main

    monkeypatch.setattr(legrad, "load", lambda name, **_: hearing)
    sound = write_wav(tmp_path / "cow.wav", tone_at(1000, 0.5))
    arguments = ["legrad", "explain", sound, "-t", "a photo of a cow", "--model", "embedded:speech"]
    monkeypatch.setattr("sys.argv", [*map(str, arguments), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["axes"] == ["targets", "frequency", "time"]
    assert manifest["images"][0]["duration"] == pytest.approx(0.5)
    with pytest.raises(legrad.InputError, match="neither size nor fit"):
        hearing.audio_explainer.explain(sound, "a cow", size=64)
    # a folder of sounds is as good as its sounds
    arguments[2] = tmp_path
    monkeypatch.setattr("sys.argv", [*map(str, arguments), "--out", str(tmp_path / "folder")])
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 0
    manifest = json.loads((tmp_path / "folder/manifest.json").read_text())
    assert [one["image"] for one in manifest["images"]] == [str(sound)]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("ast", ["sound.wav", "--audio", "sound.wav"], "--audio is for models that embed sounds .*; hf:ast does not"),
        ("ast", ["--audio", "sound.wav"], "--audio is for models that embed sounds"),
        ("ast", ["-t", "bell"], "hf:ast listens, and the sample scene is an image: say which sounds to explain"),
        (
            "clip",
            ["sound.wav", "-t", "a cow"],
            r"sound\.wav: embedded explains images, not .*--model embedded:speech",
        ),
        ("clip", ["sounds", "-t", "a cow"], "sounds: embedded explains images, not sounds; take --model embedded:sp"),
    ],
)
def test_sounds_for_models_that_do_not_take_them(explainer, model, arguments, message, tmp_path, monkeypatch, capsys):
    from legrad.cli import main

    (tmp_path / "sounds").mkdir()
    for name in ("sound.wav", "sounds/sound.wav"):
        write_wav(tmp_path / name, chirp())
    loaded = explainer if model == "ast" else legrad.wrap(tiny.clip())
    monkeypatch.setattr(legrad, "load", lambda name, **_: loaded)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["legrad", "explain", *arguments, *(["--model", "hf:ast"] * (model == "ast"))])
    with pytest.raises(SystemExit) as done:
        main.main()
    assert done.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


# -- waveforms ----------------------------------------------------------------------------------------------------

WAVEFORMS = [name for name in zoo_media.names() if name.startswith("waveform")]


@pytest.fixture(scope="module")
def hubert():
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    return legrad.wrap(zoo_media.build("waveform-hubert"), transform=extractor)


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", WAVEFORMS)
def test_maps_of_waveforms_equal_the_twin(name, readout):
    model = zoo_media.build(name).double()
    batch = torch.randn(2, 500, dtype=torch.float64)
    with torch.no_grad():
        model(batch)  # the library hangs hooks of its own into a model at its first pass
        state = torch.get_rng_state()
        model(batch)
    # some versions of transformers draw a number per layer, in evaluation too: that is the model's doing
    draws = not torch.equal(state, torch.get_rng_state())
    with left_as_found(model), torch.random.fork_rng(devices=(), enabled=draws):
        explanation = legrad.wrap(model).explain(batch, second, readout=readout, keep_layers=True)
    expected = generic_twin.layer_maps(model, lambda m: legrad.wrap(m).anatomy.at((1, 500)), batch, second, readout)
    assert explanation.relevance.shape == (2, 1, 1, (500 - 17) // 6 + 1)
    assert distance(explanation.layer_relevance[:, 0], expected) < limits.FLOAT64


def test_what_a_token_of_a_waveform_covers():
    """One changed sample changes the convolutions' output at all tokens that cover it, and at no other."""
    model = zoo_media.build("waveform-wav2vec2-norm-first")
    cells = legrad.wrap(model).anatomy.at((1, 300)).patch_grid
    wave = torch.randn(1, 300)
    for sample in (0, 8, 150, 291):
        changed = wave.clone()
        changed[0, sample] += 1
        with torch.no_grad():
            features = [model.wav2vec2.feature_extractor(one) for one in (wave, changed)]
        assert features[0].shape[-1] == cells.grid[1]
        moved = (features[1] - features[0]).abs().amax((0, 1)).nonzero().flatten().tolist()
        covering = [i for i in range(cells.grid[1]) if 0 <= sample - i * cells.stride[1] < cells.patch[1]]
        assert moved == covering


def test_a_waveform_is_shown_as_a_spectrogram(hubert, tmp_path):
    """One row of tokens: columns of seconds, all frequencies alike."""
    clip = np.concatenate([np.zeros(4000), tone_at(3000, 0.25)]).astype(np.float32)
    explanation = hubert.explain_audio([write_wav(tmp_path / "a.wav", clip), clip[:5000]], [1, legrad.PREDICTED])
    assert explanation.grids == [(1, (8000 - 17) // 6 + 1), (1, (5000 - 17) // 6 + 1)]
    assert [timing.duration for timing in explanation.timings] == pytest.approx([0.5, 5000 / RATE])
    saliency = explanation.saliency()[0][0]
    assert saliency.shape == explanation.images[0].shape[:2] == (201, 101)
    assert torch.equal(saliency[0][explanation.seen[0][0]], saliency[200][explanation.seen[0][200]])
    # what is drawn lies at its place: silence in the first half, the tone's frequency in the second
    grey = explanation.images[0][..., 0]
    assert grey[:, :45].max() == 0
    assert explanation.frequencies[0][int(grey[:, 75].argmax())] == pytest.approx(3000, abs=50)
    axis = explanation.figure(0).axes[1]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("time (seconds)", "frequency (Hz)")
    assert axis.images[0].get_extent() == pytest.approx([0, 0.5, 0, 201])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["0", "1000", "2000", "5000"]
    # where the strongest token is, the map is
    best = int(explanation.relevance[0, 0, 0].argmax())
    assert abs(int(saliency[100].argmax()) - (best * 6 + 8.5) / 80) <= 1
    alone = hubert.explain(clip[:5000], 1)
    assert distance(alone.relevance[0], explanation.relevance[1, :1, :, : alone.relevance.shape[-1]]) < limits.FLOAT32


def test_tensors_of_waveforms(hubert):
    batch = torch.randn(2, 700)
    explanation = hubert.explain(batch, 1)
    assert explanation.names == ["sound 0", "sound 1"]
    assert explanation.relevance.shape == (2, 1, 1, (700 - 17) // 6 + 1)
    assert explanation.figure().axes[1].get_xlabel() == "time (spectrogram frames)"
    with pytest.raises(legrad.InputError, match=r"normalised float \(batch, samples\)"):
        hubert.explain(torch.randn(1, 2, 700), 1)
    with pytest.raises(legrad.InputError, match="smaller than one patch"):
        hubert.explain(torch.randn(1, 5), 1)


def test_methods_on_waveforms(hubert):
    """A norm behind both branches: what a block adds is no part of a sum."""
    for method, reason in (("textspan", "no residual block"), ("rise", "for images")):
        with pytest.raises(legrad.UnsupportedModelError, match=reason):
            hubert.explain(torch.randn(1, 500), 1, method=method)
    assert hubert.explain(torch.randn(1, 500), 1, method="rollout").relevance.any()


def test_a_mixture_of_all_layers_is_refused():
    with pytest.raises(legrad.UnsupportedModelError, match="use_weighted_layer_sum mixes the tokens of all blocks"):
        legrad.wrap(zoo_media.waveform(use_weighted_layer_sum=True))


def tone_at(hertz, seconds):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_files_are_read_when_they_are_needed(explainer, tmp_path):
    paths = [tmp_path / f"{index}.wav" for index in range(3)]
    for path in paths:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((chirp() * 32767).astype("<i2").tobytes())
    queue = prepare.sources(paths, explainer.anatomy, explainer.adapter.transform)
    paths[2].unlink()
    windows = queue.windows(1)
    assert next(windows)[0].name == str(paths[0])
    with pytest.raises(legrad.InputError, match=r"2\.wav"):
        list(windows)
