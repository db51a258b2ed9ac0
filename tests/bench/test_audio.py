"""Prompted by sounds: the benchmark on maps that are known, on files as published, and on scenes with spoken names."""

import sys
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import dataset_files, fakes, imagebind_model, limits, tiny
from helpers.fakes import block, scene
from helpers.pages import DOCS

import legrad
from legrad.bench import registry
from legrad.bench.data import open_data
from legrad.bench.result import Result
from legrad.bench.runner import run
from legrad.bench.tasks.audio import AudioPrompted
from legrad.cli import main
from legrad.datasets import ADE20KPrompted, Sample
from legrad.datasets.spoken import SpokenScenes
from legrad.errors import InputError
from legrad.metrics import audio

pytestmark = pytest.mark.filterwarnings("ignore:.*maps (are flat|hardly depend)")
RATE = 8000


# -- the scorer, resampled ----------------------------------------------------------------------------------------


def prompts(count=12, seed=0):
    """Scores of ten values of which every map has the least and the greatest: no quantile and no threshold rounds."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        values = rng.integers(0, 10, (6, 6)).astype(np.float32)
        values.flat[:2] = 0, 9
        mask = (values + rng.integers(0, 8, (6, 6))) > 9
        found.append(audio.Prompted("abc"[index % 3], values, mask))
    return found


@pytest.mark.parametrize("normalisation", ["dataset", "image"])
def test_a_resample_is_what_its_items_give(normalisation):
    items = prompts()
    groups = [items[0:2], items[2:5], items[5:6], items[6:12]]
    table = audio.Table(groups, normalisation)
    for weights in ([1, 1, 1, 1], [2, 0, 1, 1], [0, 3, 0, 1], [0, 0, 4, 0], [1, 0, 3, 0]):
        drawn = [one for group, count in zip(groups, weights, strict=True) for one in group * count]
        expected, once = audio.Table([[one] for one in drawn], normalisation), np.ones(len(drawn))
        found = np.array(weights, float)
        assert table.map(found) == pytest.approx(expected.map(once), rel=limits.FLOAT64)
        assert table.miou(found) == pytest.approx(expected.miou(once), rel=limits.FLOAT64)
        assert table.prevalence(found) == pytest.approx(expected.prevalence(once))
    assert np.isnan(table.miou(np.zeros(4)))


def test_thresholds_are_strict_in_resamples_too():
    """A mask of everything: the least score lies on the lowest threshold, not above it."""
    one = audio.Prompted("a", np.arange(4, dtype=np.float32).reshape(2, 2), np.ones((2, 2), bool))
    assert audio.Table([[one]], "dataset").miou(np.array([2.0])) == 0.75


def test_quantiles_are_near_the_exact_precision():
    rng = np.random.default_rng(1)
    items = []
    for index in range(20):
        mask = rng.random((32, 32)) < 0.3
        items.append(
            [audio.Prompted("ab"[index % 2], (rng.random((32, 32)) + 0.4 * mask).astype(np.float32) ** 6, mask)]
        )
    table = audio.Table(items, "dataset")
    exact = audio.Table([item * 2 for item in items], "dataset").map(np.ones(20))
    assert table.map(np.full(20, 2.0)) == pytest.approx(exact, abs=2e-3)
    assert table.map(np.full(20, 2.0)) != table.map(np.ones(20))
    assert table.map(np.ones(20)) == pytest.approx(exact, rel=limits.FLOAT64)


# -- on maps that are known ---------------------------------------------------------------------------------------


LEFT, SQUARE = block((0, 8), (0, 4)), block((2, 6), (4, 8))


@dataclass
class Ear(fakes.ModelUnderTest):
    """Maps by what was heard: the target of a clip is the clip itself."""

    draw: Any
    hears: bool = True

    def heard(self, key, clip):
        return clip().sound

    def grids(self, images, targets, method, fit="squash"):
        return [torch.stack([torch.as_tensor(self.draw(one, method)).float() for one in own]) for own in targets]


def spoken(key, masks):
    sample = scene(key, masks)
    return Sample(key, sample.image, masks=masks, extra={"clips": {name: f"{name}.wav" for name in masks}})


def test_scores_by_hand(tmp_path):
    """Two scenes; the perfect map, its inverse, one without contrast."""
    data = fakes.Data([spoken("item-0", {"square": SQUARE, "bar": LEFT}), spoken("item-1", {"square": LEFT})])
    masks = {"square.wav": SQUARE, "bar.wav": LEFT}

    def draw(clip, method):
        mask = masks[clip].astype(float)
        return {"legrad": mask, "random": 1 - mask, "uniform": 0 * mask}[method]

    model = Ear(draw)
    methods = ["legrad", "random", "uniform"]
    found = run(AudioPrompted(), model, data, methods, tmp_path, strict=True).content
    metrics = {method: one["metrics"] for method, one in found["methods"].items()}
    # square: 16 right of 16 + 32 pixels asked, 0 wrong; in the second scene all 16 are wrong. bar is perfect
    for name in ("miou", "miou_image"):
        assert metrics["legrad"][name]["value"] == pytest.approx((16 / 64 + 1) / 2)
        # not one pixel of the bar is right; of the square's 96, 32 are
        assert metrics["random"][name]["value"] == pytest.approx((32 / (96 + 16) + 0) / 2)
        assert metrics["uniform"][name]["value"] == 0
    # 16 of 32 at full score, then the remaining 32 of 128
    assert metrics["legrad"]["map"]["value"] == pytest.approx(((16 / 48) * 0.5 + (32 / 48) * 48 / 128 + 1) / 2)
    assert metrics["uniform"]["map"]["value"] == pytest.approx((48 / 128 + 0.5) / 2)
    assert found["chance"]["map"] == found["chance"]["miou"] == pytest.approx((48 / 128 + 0.5) / 2)
    assert [metrics[method]["flat"]["value"] for method in methods] == [0, 0, 1]
    again = run(AudioPrompted(), model, data, methods, tmp_path, strict=True).content
    assert again["scores"] == found["scores"]


def test_texts_ask_for_comparison(tmp_path):
    data = fakes.Data([spoken("item-0", {"square": SQUARE})])
    model = Ear(lambda target, method: SQUARE if target == "square" else LEFT, hears=False)
    found = run(AudioPrompted(prompt="text"), model, data, ["legrad"], tmp_path, strict=True).content
    assert found["methods"]["legrad"]["metrics"]["miou"]["value"] == 1
    with pytest.raises(InputError, match=r"embeds no sounds .* --prompt text"):
        run(AudioPrompted(), model, data, ["legrad"], tmp_path)


def test_items_without_a_clip_or_a_time(tmp_path):
    model = Ear(lambda target, method: SQUARE)
    data = fakes.Data([scene("item-0", {"square": SQUARE})])
    found = run(AudioPrompted(), model, data, ["legrad"], tmp_path).content
    assert [one["problem"] for one in found["problems"]] == ["item-0 has no clip"]
    data = fakes.Data([spoken("item-0", {"square": SQUARE})])
    found = run(AudioPrompted(timing="advanced"), model, data, ["legrad"], tmp_path).content
    assert "does not say when its word is spoken" in found["problems"][0]["problem"]
    data.facts = {**data.facts, "prompt": "sound"}
    with pytest.raises(InputError, match="no time of a word"):
        run(AudioPrompted(timing="advanced"), model, data, ["legrad"], tmp_path)


def test_what_a_run_lacks_is_told_once(tmp_path, monkeypatch):
    model = Ear(lambda target, method: SQUARE)
    with pytest.raises(InputError, match="hold the word alone and no time of it"):
        run(AudioPrompted(timing="advanced"), model, SpokenScenes(count=2), ["legrad"], tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="apt-get install espeak-ng"):
        run(AudioPrompted(), model, SpokenScenes(count=2, voices="espeak"), ["legrad"], tmp_path)


# -- on files as published ----------------------------------------------------------------------------------------


def write_wav(path, seconds, seed):
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture
def ade20k(tmp_path):
    """Class 3365 is the left third of an image of 60 x 40 pixels; a crop to the middle leaves a sixth of 40 in it."""
    root = tmp_path / "ADE20KSpeechPrompted"
    header = ["image_location", "ade_class_id", "speech_prompt_file", "timing"]
    rows = [["train/a.jpg", "3365", "x/one.wav", "[0.5, 0.75]"], ["train/a.jpg", "5", "x/two.wav", "[0.1, 2.0]"]]
    dataset_files.picture(root / "frames/train/a.jpg", (60, 40))
    left = np.zeros((40, 60), int)
    left[:, :20] = 1
    dataset_files.coded(root / "annotations/train/a_seg.png", left * 130, left * 37 + (1 - left) * 5)
    write_wav(root / "audio/one.wav", 1.0, 0)
    write_wav(root / "audio/two.wav", 2.05, 1)
    dataset_files.table(root / "prompted_segmentation.csv", [header, *rows])
    return root


@pytest.fixture
def heard():
    return []


@pytest.fixture
def explainer(heard):
    model = tiny.clip()
    own = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    model.visual.preprocess_cfg = {"size": (32, 32), "mode": "RGB", "fill_color": 0, **own}
    return legrad.wrap(model, tokenizer=tiny.tokenizer, audio_encoder=tiny.hearing(RATE, heard))


def test_the_word_is_cut_out(explainer, heard, ade20k, tmp_path):
    data = open_data(str(ade20k), "audio")
    assert isinstance(data, ADE20KPrompted)
    results = {}
    for timing, lengths in (("basic", [1.0, 2.05]), ("advanced", [0.65, 2.05])):
        heard.clear()
        model = registry.model_under_test("audio", explainer, data)
        benchmark = registry.build("audio", explainer.anatomy, {"timing": timing})
        results[timing] = run(benchmark, model, data, ["legrad", "raw-attention"], tmp_path, strict=True).content
        # each clip once, for all methods
        assert sorted(heard) == [round(RATE * seconds) for seconds in lengths]
    assert results["basic"]["settings"]["protocol"]["timing"] == "basic"
    assert results["basic"]["settings"]["protocol"]["widened"] is None
    assert results["advanced"]["settings"]["protocol"]["widened"] == 0.2
    assert results["advanced"]["settings"]["data"]["prompt"] == "speech"
    first, second = (results[name]["scores"]["legrad"]["2:train/a.jpg"]["prompts"][0] for name in results)
    assert first["mask"] == second["mask"]
    assert first["relevance"] != second["relevance"]


def test_numbers_are_no_prompts(explainer, ade20k, tmp_path):
    data, asked = ADE20KPrompted(ade20k), AudioPrompted(prompt="text")
    with pytest.raises(InputError, match=r"classes of ade20k-speech are numbers.*--names FILE"):
        run(asked, registry.model_under_test("audio", explainer, data), data, ["legrad"], tmp_path)
    named = registry.model_under_test("audio", explainer, data, names={"3365": "dog", "5": "sky"})
    other = ADE20KPrompted(ade20k, names={3365: "dog", 5: "sky"})
    for model, one in ((named, data), (registry.model_under_test("audio", explainer, other), other)):
        found = run(asked, model, one, ["legrad"], tmp_path / "out", strict=True).content
        assert found["methods"]["legrad"]["items"] == 2


def test_a_clip_is_heard_once_however_many_images_it_asks(explainer, heard, tmp_path):
    clip = str(tmp_path / "square.wav")
    write_wav(Path(clip), 0.5, 0)
    samples = [spoken(f"item-{index}", {"square": SQUARE}) for index in range(3)]
    for sample in samples:
        sample.extra["clips"]["square"] = clip
    data = fakes.Data(samples)
    run(AudioPrompted(), registry.model_under_test("audio", explainer, data), data, ["legrad"], tmp_path, strict=True)
    assert heard == [RATE // 2]


def test_image_and_mask_are_cropped_alike(explainer, ade20k):
    data = ADE20KPrompted(ade20k)
    model = registry.model_under_test("audio", explainer, data)
    shown = []
    grids = model.grids
    model.grids = lambda images, *rest: shown.extend(images) or grids(images, *rest)
    cropped, squashed = (
        audio.Prompted.from_json(AudioPrompted(geometry=one).measure(model, [data[0]], "legrad")[0]["prompts"][0])
        for one in ("crop", "squash")
    )
    # 60 x 40 becomes 48 x 32; the middle 32 columns begin at 8, the class ends at 16
    assert np.flatnonzero(cropped.mask.all(0)).tolist() == list(range(8))
    assert squashed.mask.mean() == pytest.approx(1 / 3, abs=0.02)
    own = data[0].image
    middle = own.resize((48, 32)).crop((8, 0, 40, 32))
    assert [one.size for one in shown] == [(32, 32)] * 2
    assert np.abs(np.asarray(shown[0], float) - np.asarray(middle, float)).mean() < 12
    assert cropped.name == "3365"
    assert cropped.relevance.shape == explainer.anatomy.grid


def test_the_maps_are_those_of_explain(explainer, ade20k):
    data = ADE20KPrompted(ade20k)
    model = registry.model_under_test("audio", explainer, data)
    (found,) = AudioPrompted(geometry="squash").measure(model, [data[1]], "legrad")
    clip = legrad.Audio(str(ade20k / "audio/two.wav"))
    expected = explainer.explain(data[1].image.resize((32, 32), 3), clip, fit="squash").relevance[0, 0]
    prompt = audio.Prompted.from_json(found["prompts"][0])
    assert limits.close(prompt.relevance, expected, maps=True)
    assert prompt.mask.mean() == pytest.approx(2 / 3, abs=0.02)


def test_imagebind_as_documented(ade20k, tmp_path, monkeypatch):
    """The snippet of docs/reproduce.md, on a model of ImageBind's structure."""
    page = (DOCS / "reproduce.md").read_text()
    code = page.split("## ADE20K")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "ADE20KSoundPrompted").symlink_to(ade20k)
    monkeypatch.chdir(tmp_path)
    exec(code, {"explainer": legrad.wrap(tiny.randomised(imagebind_model.model()))})
    contents = [Result.read(path).content for path in Path("results").glob("audio-*.json")]
    assert sorted(one["settings"]["protocol"]["timing"] for one in contents) == ["advanced", "basic"]
    for one in contents:
        assert one["problems"] == []
        assert one["settings"]["subject"]["model"] == "ImageBind"
        assert [found["items"] for found in one["methods"].values()] == [2, 2, 2]


def test_the_command(explainer, ade20k, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(legrad, "load", lambda name, device=None: asked.append(name) or explainer)
    arguments = ["bench", "audio", "--data", ade20k, "--methods", "legrad,random", "--timing", "advanced"]
    arguments += ["--out", tmp_path / "out"]

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["legrad", *map(str, arguments), *more])
        with pytest.raises(SystemExit) as stopped:
            main.main()
        return stopped.value.code, capsys.readouterr().out

    assert call("--items", "1")[0] == 0
    code, out = call()
    assert (code, asked) == (0, ["embedded:speech"] * 2)
    assert "mAP" in out
    (path,) = Path(tmp_path / "out").glob("audio-*.json")
    content = Result.read(path).content
    assert [one["items"] for one in content["methods"].values()] == [2, 2]
    # the second run measured what the first had left
    assert len((tmp_path / "out/audio.jsonl").read_text().splitlines()) == 4
    page = (tmp_path / "out/report.md").read_text()
    assert "timing = advanced" in page
    assert call("--timing", "exact")[0] == 2


# -- scenes with spoken names -------------------------------------------------------------------------------------


def test_scenes_with_the_clips_of_the_package():
    data = open_data("embedded", "audio")
    assert (data.facts["voices"], data.facts["prompt"]) == ("shipped clips: bell, butterfly, cow, parachute", "speech")
    assert len(data) == 10_000
    sample = data[3]
    assert sample.key == data.keys()[3] == "spoken-1-3"
    assert 2 <= len(sample.masks) <= 4
    assert set(sample.masks) <= {"bell", "butterfly", "cow", "parachute"}
    assert {name: Path(clip).name for name, clip in sample.extra["clips"].items()} == {
        name: f"{name}.wav" for name in sample.masks
    }
    assert all(mask.any() for mask in sample.masks.values())
    assert {len(open_data("embedded:3", "audio")[i].masks) for i in range(4)} == {3}
    with pytest.raises(InputError, match="largest <= 4"):
        open_data("embedded:2-5", "audio")
    with pytest.raises(IndexError):
        data[10_000]
    with pytest.raises(InputError, match="trained on"):
        SpokenScenes(legrad.embedded.TRAINING_SEEDS[0])


def test_scenes_with_voices_of_espeak(monkeypatch):
    from legrad.embedded.speech import synthesis

    said = []
    monkeypatch.setattr(synthesis, "synthesise", lambda all_: said.extend(all_) or [np.ones(9, np.float32)] * len(all_))
    data = open_data("embedded:5-6:espeak", "audio")
    assert data.facts["voices"] == "espeak-ng, new voices"
    sample = data[2]
    assert 5 <= len(sample.masks) <= 6
    assert list(sample.extra["clips"]) == list(sample.masks)
    waveform, rate = next(iter(sample.extra["clips"].values()))
    assert (len(waveform), rate) == (9, 16000)
    assert [legrad.embedded.NAMES[one.concept] for one in said] == list(sample.masks)
    assert all(one.voice.split("+")[1] in synthesis.HELD_OUT_VARIANTS for one in said)


def test_other_scenes_are_as_they_were():
    """Choosing among all is what no choice is."""
    every = legrad.embedded.scene(5, 1, among=range(len(legrad.embedded.NAMES)))
    assert every.names == legrad.embedded.scene(5, 1).names
    assert np.array_equal(every.image, legrad.embedded.scene(5, 1).image)
