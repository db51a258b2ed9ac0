"""Erasing time-frequency patches: what a model of sounds does without what its map calls relevant."""

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers import fakes, limits, tiny
from helpers.zoo import media as zoo_media
from PIL import Image

import legrad
from legrad.bench import registry
from legrad.bench.data import open_data
from legrad.bench.listener import Listener
from legrad.bench.result import Result
from legrad.bench.runner import run
from legrad.bench.tasks.perturbation import Perturbation
from legrad.cli import main
from legrad.datasets import Sample, SoundFolder
from legrad.embedded.speech import model as speech
from legrad.errors import InputError, UnsupportedModelError

RATE = 16000
LABELS = ["hum", "hiss", "horn", "bell", "bark"]

pytestmark = pytest.mark.filterwarnings("ignore:.*maps (are flat|hardly depend)")


def write_wav(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return path


def noise(steps, seed):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, 400 + (steps - 1) * 160)


@pytest.fixture(scope="module")
def extractor():
    return transformers.ASTFeatureExtractor(num_mel_bins=20, max_length=40)


@pytest.fixture(scope="module")
def explainer(extractor):
    return legrad.wrap(zoo_media.build("ast"), transform=extractor, labels=LABELS)


@pytest.fixture
def folder(tmp_path):
    """Clips of 17 to 31 of 40 steps."""
    for index, name in enumerate(("bell", "bell", "bark")):
        write_wav(tmp_path / "sounds" / name / f"{index}.wav", noise(17 + 7 * index, index))
    return tmp_path / "sounds"


def test_a_folder_of_sounds(folder):
    write_wav(folder / "stray.wav", [0.1])
    (folder / "empty").mkdir()
    data = open_data(str(folder), "perturbation")
    assert isinstance(data, SoundFolder)
    assert data.keys() == ["bark/2.wav", "bell/0.wav", "bell/1.wav"]
    assert data.classes == ["bark", "bell"]
    assert (data[1].key, data[1].label, data[1].image) == ("bell/0.wav", "bell", str(folder / "bell/0.wav"))
    assert [line.partition(";")[0] for line in data.facts["problems"]] == [
        "1 x a class folder without sounds",
        "1 x a sound outside the class folders, left out",
    ]
    with pytest.raises(IndexError):
        data[3]
    with pytest.raises(InputError, match="holds no sounds in class folders"):
        SoundFolder(folder / "bell")


def test_black_is_silence_and_padding_is_left_alone(explainer, folder):
    model = Listener(explainer, labels=("bark", "bell"))
    paths = [str(folder / name) for name in ("bell/0.wav", "bell/1.wav")]
    quiet = np.concatenate([np.zeros(1600), noise(9, 0)]).astype(np.float32)
    pixels = model.pixels([*paths, quiet])
    assert pixels.shape == (3, 1, 20, 40)
    assert limits.close(model.seen(pixels), model.features(model.inputs([*paths, quiet])))
    assert pixels[2, 0, :, :6].abs().max() < limits.FLOAT32
    assert pixels[2, 0, :, 10:15].min() > 0.1
    assert model.extents(paths) == [(20, 17), (20, 24)]
    assert model.extents(paths, patch=8) == [(16, 16), (16, 24)]
    assert model.settings["black"] == "the extractor's value of digital silence"


def test_only_what_can_be_erased_is_ranked_and_erased():
    """The fake model sees the left half and the right one; only columns 0 to 3, the lighter half, can be erased."""
    sides = fakes.block((0, 8), (0, 4))
    light = (sides[..., None].repeat(3, 2) * 200 + 20).astype(np.uint8)
    sample = Sample("one", Image.fromarray(light), "square")
    data = fakes.Data([sample])
    model = fakes.ModelUnderTest(data, lambda *_: 1 - sides.astype(float))  # all of it on what cannot be erased
    model.extents = lambda images, patch=1: [(8, 4)]
    shown = []
    seen = model.seen
    model.seen = lambda pixels: shown.append(pixels) or seen(pixels)
    (found,) = Perturbation(patch=4).measure(model, [sample], "legrad")
    every, clean = torch.cat(shown), model.pixels([sample.image])
    assert (every[..., 4:] == clean[..., 4:]).all()
    assert ((every == clean) | (every == 0)).all()
    assert (every[..., :4] == 0).flatten(1).all(1).any()
    # two patches of 4 x 4: at 50 % one is left, which is lighter than the dark half by 115 to 20
    assert found["target"]["positive"] == [1] * 10
    assert found["target"]["insertion"][0] < 0.5 < found["target"]["insertion"][-1]


def test_every_method_that_can(explainer, folder, tmp_path):
    data = open_data(str(folder), "perturbation")
    benchmark = registry.build("perturbation", explainer.anatomy, {})
    assert benchmark.protocol()["patch"] == 8
    model = registry.model_under_test("perturbation", explainer, data)
    with tiny.left_as_found(explainer.model):
        found = run(benchmark, model, data, ["legrad", "random", "raw-attention", "rise"], tmp_path).content
    assert found["problems"] == []
    assert list(found["unsupported"]) == ["rise"]
    for method in ("legrad", "random", "raw-attention"):
        assert found["methods"][method]["items"] == 3
        assert found["methods"][method]["metrics"]["deletion"]["value"] is not None
    # both ends of a curve are the clean and the silent clip, whatever the method
    ends = {
        tuple(found["scores"][method]["bell/0.wav"]["predicted"]["deletion"][i] for i in (0, -1))
        for method in ("legrad", "random")
    }
    assert len(ends) == 1


def test_a_clip_without_anything_to_hear_is_a_problem(explainer, folder, tmp_path):
    write_wav(folder / "bark/silent.wav", np.zeros(RATE))
    data = open_data(str(folder), "perturbation")
    model = registry.model_under_test("perturbation", explainer, data)
    found = run(
        registry.build("perturbation", explainer.anatomy, {}), model, data, ["legrad"], tmp_path / "out"
    ).content
    (problem,) = found["problems"]
    assert problem["key"] == "bark/silent.wav"
    assert problem["problem"].endswith("silent.wav is silent")
    assert found["methods"]["legrad"]["items"] == 3


def test_refused(explainer, folder, tmp_path):
    data = open_data(str(folder), "perturbation")
    with pytest.raises(UnsupportedModelError, match="still images; of sounds there is `legrad bench perturbation`"):
        registry.model_under_test("segmentation", explainer, data)
    with pytest.raises(InputError, match=r"folder of class folders with sounds.*'embedded'"):
        registry.model_under_test("perturbation", explainer, open_data("embedded", "perturbation"))
    with pytest.raises(InputError, match="folder of class folders with sounds"):
        registry.model_under_test("perturbation", legrad.wrap(tiny.clip()), data)
    with pytest.raises(InputError, match="no feature extractor"):
        Listener(legrad.wrap(zoo_media.build("ast")))
    for other in (tiny.clip(), zoo_media.build("waveform-hubert")):
        with pytest.raises(UnsupportedModelError, match="models of spectrograms"):
            Listener(legrad.wrap(other))


@pytest.mark.filterwarnings("ignore:the embedded.speech model never read")
def test_the_embedded_ear(folder, tmp_path, monkeypatch):
    """Of a model that sees and hears, sounds are measured on its audio tower, by the names of the folders."""
    torch.manual_seed(0)
    tower = tiny.ear()
    monkeypatch.setattr(speech, "load", lambda: tower)
    data = open_data(str(folder), "perturbation")
    model = registry.model_under_test("perturbation", legrad.load("embedded:speech"), data)
    benchmark = registry.build("perturbation", model.explainer.anatomy, {})
    assert benchmark.protocol()["patch"] == 8
    pixels = model.pixels([str(folder / "bell/0.wav")])
    # 17 steps and a little more, silence in front of them and behind
    assert pixels.shape == (1, 1, speech.MELS, speech.FRAMES)
    assert pixels.min() == 0
    heard = pixels[0, 0].amax(0) > 0.5
    assert 17 <= int(heard.sum()) <= 24
    assert pixels[..., :50].abs().max() < limits.FLOAT32
    found = run(benchmark, model, data, ["legrad", "random"], tmp_path, strict=True).content
    assert [one["items"] for one in found["methods"].values()] == [3, 3]
    assert found["settings"]["subject"]["templates"] == ["a photo of a {}"]


def test_command_line(extractor, folder, tmp_path, monkeypatch, capsys):
    model = zoo_media.build("ast")
    model.config.id2label = dict(enumerate(LABELS))
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    arguments = ["--data", folder, "--model", f"hf:{tmp_path / 'model'}", "--methods", "legrad,random"]
    monkeypatch.setattr(
        sys, "argv", ["legrad", "bench", "perturbation", *map(str, arguments), "--out", str(tmp_path / "out")]
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 0
    (path,) = Path(tmp_path / "out").glob("perturbation-*.json")
    content = Result.read(path).content
    assert {name: one["items"] for name, one in content["methods"].items()} == {"legrad": 3, "random": 3}
    assert content["settings"]["subject"]["black"] == "the extractor's value of digital silence"
