"""The benchmarks on real tiny models, the report, and the command line."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import limits, tiny
from PIL import Image

import legrad
from legrad import heads
from legrad.bench import registry
from legrad.bench.cache import MapCache
from legrad.bench.classes import classifier_output, zero_shot_choices
from legrad.bench.data import open_data
from legrad.bench.model import ModelUnderTest
from legrad.bench.report import figures
from legrad.bench.report import page as report
from legrad.bench.result import Result
from legrad.bench.runner import Limits, Progress, run
from legrad.bench.study import FULL, PARTS, QUICK, Scale, StudyPart, study
from legrad.bench.tasks.layer_shares import LayerImportance
from legrad.bench.tasks.localisation import Localisation
from legrad.bench.tasks.sanity import Sanity, shuffled, stages
from legrad.bench.tasks.speed import Speed
from legrad.bench.weights import weights_digest
from legrad.cli import main
from legrad.datasets import MaskFolder, PointsCsv
from legrad.datasets.embedded import EmbeddedScenes
from legrad.errors import InputError, UnsupportedModelError
from legrad.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.*maps (are flat|hardly depend)")


def transform(size=32):
    from torchvision import transforms as t

    return t.Compose([t.Resize((size, size)), t.ToTensor(), t.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])


@pytest.fixture(scope="module")
def clip():
    model = tiny.clip()
    model.visual.preprocess_cfg = {
        "size": (32, 32),
        "mode": "RGB",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    }
    return legrad.wrap(model, tokenizer=tiny.tokenizer, audio_encoder=tiny.hearing())


@pytest.fixture(scope="module")
def classifier():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    return legrad.wrap(tiny.randomised(model))


@pytest.fixture(scope="module")
def scenes():
    return EmbeddedScenes(1, (2, 3), count=6)


def under_test(explainer, data, **options):
    return ModelUnderTest(explainer, labels=data.classes, **options)


# -- the embedded data set ----------------------------------------------------------------------------------------


def test_embedded_scenes(scenes):
    assert len(scenes) == len(scenes.keys()) == 6
    sample, again = scenes[2], scenes[2]
    assert sample.key == scenes.keys()[2]
    assert np.array_equal(sample.image, again.image)
    assert max(sample.masks, key=lambda name: sample.masks[name].sum()) == sample.label
    assert set(sample.masks) == set(sample.points) <= set(scenes.classes)
    for name, (positive, negative) in sample.points.items():
        rows, cols = np.floor(positive[:, 1]).astype(int), np.floor(positive[:, 0]).astype(int)
        assert sample.masks[name][rows, cols].all()
        rows, cols = np.floor(negative[:, 1]).astype(int), np.floor(negative[:, 0]).astype(int)
        assert not sample.masks[name][rows, cols].any()
        others = np.any([mask for other, mask in sample.masks.items() if other != name], axis=0)
        assert others[rows, cols].sum() == 2
        assert len(positive) == len(negative) == 5
    with pytest.raises(IndexError):
        scenes[6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": legrad.embedded.TRAINING_SEEDS[0]}, "trained on"),
        ({"seed": -1}, "negative"),
        ({"objects": (0, 2)}, "smallest"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_embedded_scenes_refuse(arguments, message):
    with pytest.raises(InputError, match=message):
        EmbeddedScenes(**arguments)


# -- the model under test -----------------------------------------------------------------------------------------


def test_maps_are_explains_in_the_pixels_of_the_input(clip, scenes):
    asked = under_test(clip, scenes)
    images = [scenes[0].image, scenes[1].image]
    names = [["dog", "cat"], ["sun"]]
    maps = asked.maps(images, [[asked.classes.target(name) for name in own] for own in names], "legrad")
    assert [tuple(one.shape) for one in maps] == [(2, 32, 32), (1, 32, 32)]
    expected = clip.explain(images[1], ["a photo of a sun"], fit="squash")
    grid = asked.grids(images[1:], [[asked.classes.target("sun")]], "legrad")[0]
    assert limits.close(grid, expected.relevance[0], maps=True)
    last = asked.grids(images[1:], [[asked.classes.target("sun")]], "legrad:layers=1:readout=native")[0]
    expected = clip.explain(images[1], ["a photo of a sun"], fit="squash", layers=1, readout="native")
    assert limits.close(last, expected.relevance[0], maps=True)


@pytest.mark.parametrize("kind", ["token", "pooler"])
def test_another_input_size(clip, kind, scenes, tmp_path):
    """As ``explain(size=...)`` has it, recorded in the settings."""
    from dataclasses import replace

    explainer = clip
    if kind == "pooler":
        adapter = legrad.wrap(tiny.TOWERS["siglip"](), tokenizer=tiny.tokenizer).adapter
        explainer = legrad.Explainer(replace(adapter, transform=clip.adapter.transform))
    with tiny.left_as_found(explainer.model):
        asked = under_test(explainer, scenes, size=48)
        assert (asked.size, asked.settings["size"], asked.explainer.anatomy.grid) == (48, 48, (6, 6))
        (grid,) = asked.grids([scenes[0].image], [[asked.classes.target("sun")]], "legrad")
    expected = explainer.explain(scenes[0].image, ["a photo of a sun"], fit="squash", size=48)
    assert limits.close(grid, expected.relevance[0], maps=True)
    assert asked.pixels([scenes[0].image]).shape == (1, 3, 48, 48)
    result = run(Localisation(), asked, scenes, ["legrad", "gradcam"], tmp_path, Limits(2)).content
    assert (result["problems"], result["unsupported"]) == ([], {})
    assert "size" not in under_test(explainer, scenes).settings
    with pytest.raises(InputError, match="smaller than one patch"):
        under_test(explainer, scenes, size=4)


@pytest.fixture
def counted(clip, monkeypatch):
    """How many maps each call of ``explain`` made."""
    calls, explain = [], type(clip).explain

    def counting(self, images, targets, *arguments, **options):
        calls.append(sum(map(len, targets)))
        return explain(self, images, targets, *arguments, **options)

    monkeypatch.setattr(type(clip), "explain", counting)
    return calls


def test_a_study_computes_a_map_once(clip, scenes, counted):
    memory = MapCache()
    first, second = (under_test(clip, scenes, cache=memory) for _ in range(2))
    images = [scenes[index].image for index in range(3)]
    targets = [[first.classes.target(name) for name in own] for own in (("dog", "cat"), ("sun",), ("dog",))]
    maps, scores = first.evidence(images, targets, "legrad")
    more = [[*targets[0], first.classes.target("koala")], targets[1], targets[2]]
    again, known = second.evidence(images, more, "legrad")
    assert counted == [4, 1]
    second.evidence(images[:1], targets[:1], "gradcam")
    second.evidence(images[:1], targets[:1], "legrad", fit="model")
    assert counted == [4, 1, 2, 2]
    for one, other in ((maps, again), (scores, known)):
        assert all(torch.equal(a, b[: len(a)]) for a, b in zip(one, other, strict=True))
    plain, plain_scores = under_test(clip, scenes).evidence(images, more, "legrad")
    for one, other in ((again, plain), (known, plain_scores)):
        assert all(limits.close(a, b) for a, b in zip(one, other, strict=True))


def test_other_weights_are_other_maps(clip, scenes, counted):
    asked = under_test(clip, scenes, cache=MapCache())
    arguments = [scenes[0].image], [[asked.classes.target("dog")]], "legrad"
    before, answer = asked.grids(*arguments)[0], asked.answers([scenes[0].image])
    with shuffled(list(clip.anatomy.blocks[-1].parameters()), 0):
        assert limits.error(asked.grids(*arguments)[0], before) > limits.DIFFERENT
        assert limits.error(asked.answers([scenes[0].image]), answer) > limits.DIFFERENT
    assert torch.equal(asked.grids(*arguments)[0], before)
    assert len(counted) == 3


@pytest.mark.parametrize("method", ["legrad", "legrad-norelu"])
def test_any_number_of_layers_comes_from_one_pass(clip, scenes, method, counted):
    asked, plain = under_test(clip, scenes, cache=MapCache()), under_test(clip, scenes)
    images, targets = [scenes[0].image], [[asked.classes.target("dog"), asked.classes.target("sun")]]
    names = [f"{method}:layers={count}:readout=native" for count in range(1, 5)]
    found = [asked.evidence(images, targets, name) for name in names]
    assert counted == [2]
    for name, (maps, scores) in zip(names, found, strict=True):
        expected, values = plain.evidence(images, targets, name)
        assert limits.close(maps[0], expected[0], maps=True)
        assert limits.close(scores[0], values[0])
    assert limits.error(found[0][0][0], found[1][0][0]) > limits.DIFFERENT
    with pytest.raises(UnsupportedModelError, match="layers=9 but the model has 4 blocks"):
        asked.evidence(images, targets, f"{method}:layers=9")
    with pytest.raises(UnsupportedModelError, match="cannot use layers"):
        asked.evidence(images, targets, "random:layers=1")


def test_heads_are_remembered_apart(clip, scenes):
    asked, plain = under_test(clip, scenes, cache=MapCache()), under_test(clip, scenes)
    images, targets = [scenes[0].image], [[asked.classes.target("dog")]]
    names = ["legrad:heads=0", "legrad:heads=1", "legrad:layers=1:heads=1", "legrad:heads=strongest"]
    for name in names * 2:
        (found,), (expected,) = (one.grids(images, targets, name) for one in (asked, plain))
        assert limits.close(found, expected, maps=True)


def test_answers_are_the_logits_of_whole_images(clip, scenes):
    images = [scenes[0].image, scenes[1].image]
    plain, remembering = under_test(clip, scenes), under_test(clip, scenes, cache=MapCache())
    expected = plain.classes.logits(plain.features(plain.inputs(images)))
    assert torch.equal(plain.answers(images), expected)
    for _ in range(2):
        assert limits.close(remembering.answers(images), expected)
    assert limits.close(remembering.answers(images[1:]), expected[1:])


def test_logits_are_similarities_with_the_names(clip, scenes):
    asked = under_test(clip, scenes)
    logits = asked.classes.logits(asked.features(asked.inputs([scenes[0].image])))
    assert logits.shape == (1, 200)
    place = asked.classes.column("koala")
    expected = clip.explain(scenes[0].image, ["a photo of a koala"], fit="squash").scores
    assert limits.close(logits[0, place], expected[0, 0], of=logits)
    assert torch.equal(asked.classes.at_column(place), asked.classes.target("koala"))
    pixels = asked.pixels([scenes[0].image])
    assert pixels.min() >= -limits.FLOAT32
    assert pixels.max() <= 1 + limits.FLOAT32
    assert limits.close(asked.classes.logits(asked.seen(pixels)), logits)
    with pytest.raises(InputError, match="class 'unicorn' is not among the 200"):
        asked.classes.column("unicorn")
    with pytest.raises(InputError, match="does not list; explain the true"):
        ModelUnderTest(clip).classes.column("koala")


def test_names_and_templates(clip, scenes):
    plain = under_test(clip, scenes).classes.target("dog")
    renamed = under_test(clip, scenes, names={"dog": "cat"}).classes.target("dog")
    assert torch.equal(renamed, under_test(clip, scenes).classes.target("cat"))
    assert not torch.equal(plain, under_test(clip, scenes, templates=("{}!",)).classes.target("dog"))


def test_classes_of_a_classifier(classifier):
    labels = ("ant", "bee", "cow", "dog", "eel")
    asked = ModelUnderTest(classifier, labels=labels)
    assert not asked.classes.zero_shot
    assert (asked.classes.target("cow"), asked.classes.column("cow"), asked.classes.at_column(2)) == (2, 2, 2)
    with pytest.raises(InputError, match="'fox' is unknown to the model: it has 5 outputs"):
        asked.classes.target("fox")


def test_imagenet_classes():
    assert classifier_output("n01443537", (), None, 1000) == 1
    assert len(zero_shot_choices(["n01440764", "n01443537"], {})) == 1000
    assert zero_shot_choices(["dog", "n01443537"], {}) == ("dog", "n01443537")
    assert zero_shot_choices(["dog", "n99999999"], {}) == ("dog",)
    assert zero_shot_choices(["dog", "n99999999"], {"n99999999": "yeti"}) == ("dog", "n99999999")
    # a hypernym is no class of the 1000
    with pytest.raises(InputError, match="n00001740"):
        classifier_output("n00001740", (), None, 1000)


def test_digests_tell_weights_apart():
    first, again, other = tiny.clip(), tiny.clip(), tiny.clip(seed=1)
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)


def test_models_that_cannot_be_measured(clip):
    from dataclasses import replace

    wide = legrad.Explainer(replace(clip.adapter, anatomy=replace(clip.anatomy, image_size=(32, 48), grid=(4, 6))))
    with pytest.raises(UnsupportedModelError, match="square"):
        ModelUnderTest(wide)


# -- benchmarks that need a real model ----------------------------------------------------------------------------


def test_sanity_leaves_the_model_as_found(clip, scenes, tmp_path):
    data = under_test(clip, scenes)
    with tiny.left_as_found(clip.model):
        result = run(Sanity(), data, scenes, ["legrad", "centre"], tmp_path, Limits(2)).content
    scores = result["scores"]["legrad"]
    for one in scores.values():
        assert len(one["cascade"]) == len(one["alone"]) == len(clip.anatomy.blocks) + 1
        assert len(one["gibberish"]) == 1
        assert one["cascade"][0] == one["alone"][0] != 1
    assert all(one["cascade"] == pytest.approx([1] * 5) for one in result["scores"]["centre"].values())
    assert result["methods"]["centre"]["metrics"]["gibberish"]["value"] == pytest.approx(1)


def test_every_parameter_of_the_tower_is_shuffled_once(clip):
    parts = stages(clip.anatomy.tower, clip.anatomy.blocks)
    assert len(parts) == len(clip.anatomy.blocks) + 1
    flat = [id(p) for part in parts for p in part]
    assert sorted(flat) == sorted(id(p) for p in clip.anatomy.tower.parameters())
    assert {id(p) for p in parts[0]} == {id(p) for p in clip.anatomy.blocks[-1].parameters()}
    before = parts[0][0].detach().clone()
    with contextlib.suppress(RuntimeError), shuffled(parts[0], 0):
        assert not torch.equal(parts[0][0], before)
        assert torch.equal(parts[0][0].flatten().sort().values, before.flatten().sort().values)
        raise RuntimeError
    assert torch.equal(parts[0][0], before)


def test_layer_importance_is_each_layers_share_of_the_relevance(clip, scenes, tmp_path):
    result = run(
        LayerImportance.of(clip.anatomy),
        under_test(clip, scenes),
        scenes,
        ["legrad", "legrad:layers=1", "rollout"],
        tmp_path,
    ).content
    explanation = clip.explain(scenes[0].image, [f"a photo of a {scenes[0].label}"], fit="squash", keep_layers=True)
    sums = explanation.layer_relevance[0, 0].sum((1, 2))
    assert limits.close(result["scores"]["legrad"][scenes.keys()[0]]["layers"], sums / sums.sum())
    assert set(result["unsupported"]) == {"legrad:layers=1", "rollout"}
    assert result["problems"] == []


def test_layer_importance_of_one_layer_and_of_flat_maps(clip, scenes, tmp_path, monkeypatch):
    methods = ["legrad", "raw-attention", "attentioncam", "textspan"]
    benchmark, explain = LayerImportance(4), ModelUnderTest.explain

    def flat(self, images, targets, method, **arguments):
        found = explain(self, images, targets, method, **arguments)
        if method == "textspan":
            found.layer_relevance[0] = 0
        return found

    monkeypatch.setattr(ModelUnderTest, "explain", flat)
    result = run(benchmark, under_test(clip, scenes), scenes, methods, tmp_path, Limits(2)).content
    assert result["unsupported"] == dict.fromkeys(("raw-attention", "attentioncam"), "reads 1 of the 4 layers only")
    numbers = result["methods"]["textspan"]["metrics"]
    assert (numbers["depth"]["value"], numbers["layer_0"]["value"], numbers["flat"]["value"]) == (None, None, 1)
    report.report(tmp_path)


@pytest.mark.parametrize("kind", ["class token", "pooler"])
def test_layer_importance_has_every_heads_share(clip, kind, scenes, tmp_path):
    from dataclasses import replace

    explainer = clip
    if kind == "pooler":
        model = tiny.TOWERS["siglip"]()
        adapter = legrad.wrap(model, tokenizer=tiny.tokenizer).adapter
        explainer = legrad.Explainer(replace(adapter, transform=clip.adapter.transform))
    asked = under_test(explainer, scenes)
    benchmark = registry.build("layer-importance", explainer.anatomy, {})
    layers = len(explainer.anatomy.blocks)
    assert (benchmark.layers, benchmark.heads) == (layers, 2)
    result = run(benchmark, asked, scenes, ["legrad", "legrad-norelu"], tmp_path).content
    target = [[asked.classes.target(scenes[0].label)]]
    maps = heads.head_relevance(explainer, scenes[0].image, target, fit="squash")[0, 0].sum((2, 3))
    own = result["scores"]["legrad"][scenes.keys()[0]]
    assert limits.close(own["heads"], maps / maps.sum())
    assert limits.close(own["layers"], np.sum(own["heads"], 1))
    assert np.sum(own["heads"]) == pytest.approx(1)
    assert "heads" not in result["scores"]["legrad-norelu"][scenes.keys()[0]]
    numbers = result["methods"]["legrad"]["metrics"]
    every = [one["heads"] for one in result["scores"]["legrad"].values()]
    assert len(every) == 6
    found = [[numbers[f"head_{layer}_{head}"]["value"] for head in range(2)] for layer in range(layers)]
    assert limits.close(found, np.mean(every, 0))
    assert numbers["head_0_1"]["low"] <= numbers["head_0_1"]["value"] <= numbers["head_0_1"]["high"]
    assert result["methods"]["legrad-norelu"]["metrics"]["head_0_1"]["value"] is None
    # the page has the layers, the figure and the table for computing the heads
    page = report.report(tmp_path).read_text()
    assert "layer 0" in page
    assert "layer 0, head 1" not in page
    assert "heads for half" in page
    assert len([line for line in (tmp_path / "report.csv").read_text().splitlines() if ",head_0_1," in line]) == 2
    figure = figures.curves(Result.read(next(tmp_path.glob("layer-importance-*.json"))).content)
    drawn = figure.axes[0].images[0].get_array()
    assert limits.close(drawn, found)
    assert [figure.axes[0].get_xlabel()[:4], figure.axes[0].get_ylabel()] == ["head", "layer"]


def test_the_ablation_shows_layers_and_heads():
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6}
    variants = ["legrad", "legrad:layers=1:readout=native", "legrad:layers=2:readout=native"]
    one_head = ["legrad:heads=strongest", "legrad:layers=1:heads=1"]

    def drawn(methods):
        content = {"benchmark": "ablation", "metrics": {"pointing": {"title": "pointing game"}}}
        values = {method: {**numbers, "value": 0.5 + 0.01 * place} for place, method in enumerate(methods)}
        content["methods"] = {name: {"metrics": {"pointing": one}} for name, one in values.items()}
        return figures.curves(content)

    left, right = drawn(variants + one_head).axes
    assert [line.get_label() for line in left.lines] == ["legrad, native"]
    assert left.lines[0].get_ydata().tolist() == [0.51, 0.52]
    rows = [label.get_text() for label in right.get_yticklabels()]
    assert rows == ["last layer, head 1", "strongest, all layers", "all heads, all layers"]
    assert [line.get_xdata()[0] for line in right.lines[1::2]] == [0.54, 0.53, 0.5]
    assert len(drawn(variants).axes) == 1


def test_heads_for_half_of_the_relevance():
    half = LayerImportance(2, 2).metrics["half"].statistic
    items = [{"heads": [[0.25, 0.25], [0.25, 0.25]]}, {"heads": [[0.1, 0.1], [0.5, 0.3]]}, {"layers": [1, 0]}]
    assert [half([item])(np.ones(1)) for item in items[:2]] == [0.5, 0.25]
    assert half(items)(np.ones(3)) == 0.375
    assert np.isnan(half([{"heads": [[None, None], [None, None]]}])(np.ones(1)))


def test_layer_importance_of_folded_heads_has_layers_only(clip, scenes, tmp_path):
    result = run(LayerImportance(4), under_test(clip, scenes), scenes, ["legrad"], tmp_path, Limits(2)).content
    assert all(set(one) == {"layers"} for one in result["scores"]["legrad"].values())
    assert not [name for name in result["metrics"] if name.startswith("head")]


def test_variants_of_some_heads(clip, scenes):
    asked = under_test(clip, scenes)
    images, targets = [scenes[0].image], [[asked.classes.target("sun")]]
    every = heads.head_relevance(clip, images, targets, fit="squash", layers=1)[0, 0, 0]
    assert limits.close(asked.grids(images, targets, "legrad:layers=1:heads=1")[0][0], every[1])
    assert limits.close(asked.grids(images, targets, "legrad:heads=0+1:layers=1")[0][0], every.mean(0))
    strongest = asked.grids(images, targets, "legrad:layers=1:heads=strongest")[0][0]
    assert limits.close(strongest, every[every.sum((1, 2)).argmax()])
    for wrong in ("gradcam:heads=0", "legrad:heads=best", "legrad:heads=", "legrad:heads=0+-1"):
        with pytest.raises(InputError, match="a variant is METHOD:layers=K"):
            asked.grids(images, targets, wrong)


def test_arguments_that_a_method_cannot_use(clip, scenes, tmp_path):
    """Those of the run are for the methods that know them; those of a variant are a mistake, told once."""
    asked = under_test(clip, scenes, layers=1, readout="native")
    targets = [[asked.classes.target("sun")]]
    found = {name: asked.grids([scenes[0].image], targets, name)[0] for name in ("legrad", "rollout", "random")}
    expected = under_test(clip, scenes).grids([scenes[0].image], targets, "legrad:layers=1:readout=native")[0]
    assert torch.equal(found["legrad"], expected)
    assert torch.equal(
        found["rollout"], under_test(clip, scenes).grids([scenes[0].image], targets, "rollout:layers=1")[0]
    )
    data = open_data("embedded", "localisation")
    result = run(Localisation(), asked, data, ["legrad", "random:layers=1"], tmp_path, Limits(3)).content
    assert "'random' cannot use layers" in result["unsupported"]["random:layers=1"]
    assert result["problems"] == []
    wrong = ("legrad:layers=9", "legrad:heads=7", "gradcam:layers=0")
    result = run(Localisation(), under_test(clip, scenes), data, wrong, tmp_path, Limits(3)).content
    assert {name: why[:30] for name, why in result["unsupported"].items()} == {
        "legrad:layers=9": "layers=9 but the model has 4 b",
        "legrad:heads=7": "no head 7: the explained atten",
        "gradcam:layers=0": "layers=0 but the model has 4 b",
    }
    assert result["problems"] == []
    with pytest.raises(InputError, match="layers=9 but the model has 4 blocks"):
        under_test(clip, scenes, layers=9)
    with pytest.raises(InputError, match="no mine read-out, only"):
        under_test(clip, scenes, readout="mine")


def test_speed_measures_both(clip, scenes, tmp_path):
    result = run(Speed(1), under_test(clip, scenes), scenes, ["legrad", "random"], tmp_path, Limits(3)).content
    for method in ("legrad", "random"):
        assert all(one["seconds"] > 0 < one["forward"] for one in result["scores"][method].values())
    numbers = result["methods"]["legrad"]["metrics"]
    assert numbers["fps"]["value"] < numbers["fps_forward"]["value"]
    assert numbers["slowdown"]["value"] > 1


@pytest.mark.parametrize(
    "name", [name for name in registry.NAMES if name not in ("speed", "sanity", "layer-importance")]
)
def test_every_benchmark_on_a_tiny_model(clip, name, tmp_path):
    data = open_data("embedded", name)
    benchmark = registry.build(name, clip.anatomy, {})
    result = run(benchmark, under_test(clip, data), data, ["legrad", "random"], tmp_path, Limits(2)).content
    assert (result["problems"], result["unsupported"], result["complete"]) == ([], {}, True)
    assert result["methods"]["legrad"]["items"] == 2
    json.dumps(result["settings"])
    headline = next(iter(result["metrics"]))
    assert 0 <= result["methods"]["random"]["metrics"][headline]["value"] <= 90


@pytest.mark.parametrize("name", ["segmentation", "perturbation", "localisation", "presence", "sanity"])
def test_every_kind_of_benchmark_on_a_classifier(classifier, name, tmp_path):
    labels = ("ant", "bee", "cow", "dog", "eel")
    root = tmp_path / "data"
    for folder in ("images", *(f"masks/{label}" for label in labels[:2])):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(root / f"images/{index}.png")
        for label in labels[:2]:
            mask = np.zeros((40, 30), np.uint8)
            mask[:20] = 255 * (label == "ant")
            mask[20:] = 255 * (label == "bee")
            Image.fromarray(mask).save(root / f"masks/{label}/{index}.png")

    from dataclasses import replace

    class Labelled(MaskFolder):
        def __getitem__(self, index):
            return replace(super().__getitem__(index), label="bee")

    data = Labelled(root)
    data.classes = labels
    result = run(
        registry.build(name, classifier.anatomy, {}), under_test(classifier, data), data, ["legrad", "random"], tmp_path
    ).content
    assert result["problems"] == []
    assert result["methods"]["legrad"]["items"] == 2


@pytest.mark.parametrize("name", ["perturbation", "presence", "sanity"])
def test_a_class_without_a_name_is_its_own_images_problem(clip, name, tmp_path):
    for label in ("cat", "dog", "n99999999"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(tmp_path / "data" / label / "a.png")
    data = open_data(str(tmp_path / "data"), name)
    result = run(registry.build(name, clip.anatomy, {}), under_test(clip, data), data, ["legrad"], tmp_path).content
    assert {(one["key"], one["problem"]) for one in result["problems"]} == {
        ("n99999999/a.png", "'n99999999' is no ImageNet synset; give a file of class names")
    }
    assert result["methods"]["legrad"]["items"] == 2


# -- switches and data --------------------------------------------------------------------------------------------


def test_switches(clip):
    anatomy = clip.anatomy
    assert registry.build("segmentation", anatomy, {"explained": "truth", "fill": None}).explained == "truth"
    made = registry.build("ablation", anatomy, {"on": "segmentation", "explained": "truth"})
    assert (made.base.name, made.base.explained) == ("segmentation", "truth")
    assert len(registry.methods("ablation", anatomy)) == 1 + 2 * 2 * 4 + len(heads.CHOICES) + 2
    assert "rise" not in registry.methods("localisation", anatomy)
    wrong = [
        ("nonsense", {}, "no benchmark 'nonsense'"),
        ("segmentation", {"fill": "black"}, "segmentation has no switch --fill; its switches: --explained, --geometry"),
        ("speed", {"threshold": 0.5}, "speed has no switch --threshold; its switches: none"),
        ("segmentation", {"explained": "both"}, "one of 'predicted', 'truth', got 'both'"),
        ("ablation", {"on": "speed"}, "--on of ablation is one of"),
    ]
    for name, switches, message in wrong:
        with pytest.raises(InputError, match=message):
            registry.build(name, anatomy, switches)


def test_what_data_names(tmp_path):
    assert open_data("embedded", "perturbation").objects == (1, 1)
    assert open_data("embedded", "segmentation", explained="truth").objects == (2, 4)
    assert open_data("embedded:3", "perturbation").objects == (3, 3)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    Image.new("L", (8, 8)).save(tmp_path / "masks/a.png")
    assert isinstance(open_data(str(tmp_path), "segmentation"), MaskFolder)
    points = tmp_path / "points.csv"
    points.write_text("image,class,x,y,label\na.png,dog,1,1,yes\n")
    assert isinstance(open_data(str(points), "openvocab", images=tmp_path / "images"), PointsCsv)
    points.write_text("image,class,x,y,label\na.png,dog,0.5,0.5,yes\n")
    shares = open_data(str(points), "openvocab", images=tmp_path / "images", unit="relative")
    assert shares[0].points["dog"][0].tolist() == [[4, 4]]
    Image.new("L", (8, 8), 7).save(tmp_path / "masks/a.png")
    ids = open_data(str(tmp_path), "segmentation", names={"7": "dog"})
    assert list(ids[0].masks) == ["dog"]
    latin = tmp_path / "latin.csv"
    latin.write_bytes("image,class,x,y,label\na.png,b\xeate,1,1,yes\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.csv is not a CSV table in UTF-8"):
        open_data(str(latin), "openvocab", images=tmp_path / "images")
    wrong = [("absent", "no file or folder 'absent'"), (str(points), "--images"), ("embedded:x", "LOW-HIGH")]
    for name, message in wrong:
        with pytest.raises(InputError, match=message):
            open_data(name, "openvocab")


# -- study, report, command line ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    """A study of a tiny model, with a few methods."""
    out = tmp_path_factory.mktemp("study")
    methods = ("legrad", "random", "rollout")
    items, seconds = (20, 2), (1, 1)
    parts = [
        StudyPart("layer-importance", items, seconds, methods=("legrad",)),
        StudyPart(
            "ablation",
            items,
            seconds,
            methods=("legrad", "legrad:layers=1:readout=native", "legrad:layers=2:readout=native"),
        ),
        StudyPart("sanity", items, seconds, methods=methods),
        StudyPart("localisation", items, seconds, methods=methods),
        StudyPart("perturbation", items, seconds, methods=methods),
        StudyPart("segmentation", items, seconds, {"explained": "truth"}, methods),
        StudyPart("speed", (20, 0), (1, 0), methods=methods),
    ]
    results = study(clip, "embedded", out / "tiny", Scale(None, "quick"), parts=parts)
    assert [one.content["methods"]["legrad"]["items"] for one in results] == [2] * 6
    return out


def test_what_a_scale_does():
    """Every method has the items that it was promised: nobody but a black box gets fewer than the others."""
    default, quick, full = (scale.parts(PARTS) for scale in (Scale(), QUICK, FULL))
    assert {part.items[0] for part in default if part.name in ("localisation", "openvocab")} == {1000}
    assert [part.items[0] for part in default if part.name == "perturbation"] == [200]
    assert all(part.black_box <= 100 for part in full)
    assert all(0 < part.items[0] <= 80 and part.black_box == 0 for part in quick)
    assert full == list(PARTS)
    assert default == [part for part in PARTS if not part.full] != full
    # what was measured fits what is allowed
    for parts, scale in ((default, Scale()), (quick, QUICK)):
        assert sum(part.seconds[0] for part in parts) <= 1.05 * scale.seconds
    assert {part.switches["on"] for part in full if part.name == "ablation"} == {
        "localisation",
        "segmentation",
        "openvocab",
        "perturbation",
    }
    for part in PARTS:
        if part.methods and part.name in ("localisation", "openvocab", "segmentation", "perturbation"):
            assert set(METHODS) - set(part.methods) <= {"uniform"}


def test_parts_share_time_and_maps(clip, monkeypatch, tmp_path):
    now, seen = [0.0], []

    def fake(benchmark, model, data, methods, out, limits, *others):
        seen.append((limits.seconds, limits.per_method, data.objects, model._cache))
        now[0] += limits.seconds / 2

    monkeypatch.setattr("legrad.bench.study.run", fake)
    parts = [
        StudyPart("localisation", (10, 1), (1, 9), black_box=7),
        StudyPart("ablation", (10, 0), (1, 0), {"on": "perturbation"}),
        StudyPart("segmentation", (10, 1), (2, 9), full=True),
    ]
    study(clip, "embedded", tmp_path, Scale(100.0), parts=parts, clock=lambda: now[0])
    assert [seconds for seconds, *_ in seen] == [50, 75]  # what the first one left is the second one's
    assert seen[0][1] == {"rise": 7, "occlusion": 7}
    assert [objects for _, _, objects, _ in seen] == [(2, 4), (1, 1)]
    assert seen[0][3] is seen[1][3] is not None


def test_a_part_that_cannot_run_leaves_the_others(clip, tmp_path):
    (tmp_path / "data/dog").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "data/dog/a.png")
    parts = [StudyPart(name, (1, 1), (1, 1), methods=("centre",)) for name in ("presence", "perturbation")]
    told = []
    results = study(clip, str(tmp_path / "data"), tmp_path, FULL, parts=parts, progress=Progress(problem=told.append))
    assert [one.content["benchmark"] for one in results] == ["perturbation"]
    why = "presence needs a data set that lists two classes at least; image-folder does not"
    assert told == [f"presence left out: {why}"]
    for options in ({"strict": True, "parts": parts}, {"parts": parts[:1]}):
        with pytest.raises(InputError, match=why):
            study(clip, str(tmp_path / "data"), tmp_path, FULL, **options)


def test_report(folder):
    page = report.report(folder)
    text = page.read_text()
    assert text.startswith("# Benchmark report")
    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    chosen = [r for r in rows if (r["benchmark"], r["method"], r["metric"]) == ("localisation", "random", "pointing")]
    assert len(chosen) == 1
    (path,) = (folder / "tiny").glob("localisation-*.json")
    content = Result.read(path).content
    assert float(chosen[0]["value"]) == content["methods"]["random"]["metrics"]["pointing"]["value"]
    for benchmark in ("layer-importance", "ablation (localisation)", "sanity", "perturbation", "segmentation (truth)"):
        assert f"\n## {benchmark}, {content['settings']['subject']['model']}\n" in text
    model = content["settings"]["subject"]["model"]
    assert text.index(f"\n## Where does legrad stand? {model}\n") < text.index("\n## layer-importance")
    pointing = content["methods"]["random"]["metrics"]["pointing"]
    assert f"| random | 2 | {pointing['value']:.3f} [" in text
    assert "- **segmentation (truth): mIoU**: legrad " in text
    assert "| *chance* |" in text
    images = [line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")]
    assert len(images) == 11
    for name in images:
        with Image.open(folder / name) as figure:
            assert min(figure.size) > 100
    # headings of a table and its rows have as many cells
    for block in text.split("\n\n"):
        if block.startswith("| "):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_report_of_nothing(tmp_path):
    with pytest.raises(InputError, match="no result"):
        report.report(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        report.report(tmp_path / "absent")
    (tmp_path / "a.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"a.json is not a result"), pytest.raises(InputError, match="no result"):
        report.report(tmp_path)


@pytest.mark.filterwarnings("always:left out of the report")
def test_a_report_leaves_out_what_is_no_result(call, tmp_path):
    (tmp_path / "out").mkdir()
    Path("out/a.json").write_text('{"schema": 1}')
    Path("out/b.json").write_text("[")
    arguments = ("bench", "localisation", "--methods", "centre", "--items", "1", "--out", "out")
    code, _, err = call(*arguments, "--layers", "2", "--readout", "native", "--template", "{}.")
    assert code == 0
    assert re.findall("warning: left out of the report: out/(.).json is not a result", err) == ["a", "b"]
    assert err.count("\n") == 2
    text, table = Path("out/report.md").read_text(), Path("out/report.csv").read_text()
    assert "\n## localisation (layers = 2, readout = native, templates = '{}.'), embedded\n" in text
    assert "**localisation (layers = 2, readout = native, templates = '{}.'): pointing game**" in text
    assert "; layers = 2; readout = native; templates = '{}.'\n" in text
    assert {row["settings"] for row in csv.DictReader(table.splitlines())} == {
        "layers = 2; readout = native; templates = '{}.'"
    }


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run_cli(*arguments):
        monkeypatch.setattr(sys, "argv", ["legrad", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run_cli


def test_the_command(call):
    code, out, err = call("bench", "localisation", "--methods", "random,centre", "--items", "2", "--out", "results")
    assert (code, err) == (0, "")
    assert "report: results/report.md" in out
    (path,) = Path("results").glob("localisation-embedded-*.json")
    assert set(Result.read(path).content["methods"]) == {"random", "centre"}
    assert call("bench", "report", "results")[0] == 0


def test_strict_and_what_the_reader_found(call, tmp_path):
    """Of three lines one point is usable: told, listed, and the end of a strict run; without any item status is 1."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.png")
    lines = ["image,class,x,y,label", "a.png,dog,2,2,yes", "a.png,dog,x,2,yes", "b.png,dog,2,2,yes"]
    Path("points.csv").write_text("\n".join(lines))
    arguments = ("bench", "openvocab", "--methods", "centre", "--data", "points.csv", "--images", "images")
    code, _, err = call(*arguments, "--out", "out")
    assert code == 0
    assert "points: 1 x a point whose x and y are not numbers of pixels" in err
    assert "points: 1 x an image with points that is not in the folder; first: b.png" in err
    code, out, err = call(*arguments, "--out", "strict", "--strict")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "points: 1 x a point whose x" in err
    Path("points.csv").write_text("\n".join(lines[:2]))
    (tmp_path / "images/a.png").write_bytes(b"broken")
    code, _, err = call(*arguments, "--out", "nothing")
    assert code == 1
    assert "a.png" in err


def test_class_ids_get_their_names(call, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data/images/a.png")
    mask = Image.new("L", (8, 8))
    mask.paste(7, (0, 0, 4, 8))
    mask.save(tmp_path / "data/masks/a.png")
    Path("ids.txt").write_text("7 dog")
    arguments = ("bench", "segmentation", "--explained", "truth", "--methods", "centre", "--data", "data")
    code, _, err = call(*arguments, "--out", "named", "--names", "ids.txt")
    assert (code, err) == (0, "")
    (path,) = Path("named").glob("*.json")
    content = Result.read(path).content
    assert content["settings"]["data"]["names"] == {"7": "dog"}
    assert content["methods"]["centre"]["items"] == 1
    _, _, err = call(*arguments, "--out", "nameless")
    assert "holds the values 0, 7" in err


def test_the_study_tells_where_legrad_stands(call, monkeypatch):
    parts = [StudyPart("localisation", (9, 2), (1, 1), methods=("legrad", "random"))]
    monkeypatch.setattr("legrad.bench.study.PARTS", parts)
    code, out, err = call("bench", "all", "--quick", "--out", "results")
    assert (code, err) == (0, "")
    name, pointing, energy, page = out.splitlines()
    assert (name, page) == ("embedded", "report: results/report.md")
    assert re.fullmatch(
        r"localisation: pointing game: legrad \d\.\d+ \[.*\], 2 images\. Too few images for a verdict .*: .*\.",
        pointing,
    )
    assert energy.startswith("localisation: energy in the mask: legrad ")
    assert "\n## Where does legrad stand? embedded\n" in Path("results/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ablation", "--on", "segmentation", "--fill", "black"), "no switch --fill"),
        (("localisation", "--methods", "legrat"), "no method 'legrat'"),
        (("localisation", "--data", "absent"), "no file or folder 'absent'"),
        (("localisation", "--model", "absent"), "unknown model"),
        (("localisation", "--unit", "pixels"), "--unit is of the points in a table"),
        (("all", "--quick", "--full"), "exclude each other"),
        (("report", "absent"), "no folder"),
    ],
)
def test_wrong_commands(call, arguments, message):
    code, out, err = call("bench", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", registry.NAMES)
def test_a_command_has_the_options_of_its_benchmark_and_no_others(call, name):
    code, out, _ = call("bench", name, "--help")
    options = set(re.findall(r"│ --([a-z-]+)", out))
    every = {switch for other in registry.NAMES for switch in registry.switches(other)}
    assert code == 0
    assert options & every == set(registry.switches(name))
    assert {"model", "methods", "data", "out", "items", "strict"} <= options


def test_the_switches_of_a_benchmark_are_the_marked_fields_of_its_class():
    assert list(registry.switches("segmentation")) == ["explained", "geometry"]
    assert list(registry.switches("perturbation")) == ["explained", "fill", "patch", "ties"]
    assert registry.switches("localisation")["tolerance"].kind is float
    assert registry.switches("speed") == registry.switches("layer-importance") == {}
    both = registry.switches("ablation")["explained"]
    assert (both.allowed, both.default) == (("predicted", "truth", "both"), None)


def test_switches_reach_the_benchmark(call):
    arguments = ("bench", "segmentation", "--methods", "centre", "--items", "1", "--out", "results")
    for more in ((), ("--explained", "predicted"), ("--explained", "truth", "--geometry", "crop")):
        assert call(*arguments, *more)[0] == 0
    protocols = [Result.read(path).content["settings"]["protocol"] for path in Path("results").glob("*.json")]
    settings = sorted((one["explained"], one["geometry"]) for one in protocols)
    assert settings == [("predicted", "squash"), ("truth", "crop")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segmentation", "--fill", "black"), "No such option: --fill"),
        (("speed", "--threshold", "0.5"), "No such option: --threshold"),
        (("segmentation", "--explained", "both"), "'both' is not one of 'predicted', 'truth'"),
    ],
)
def test_options_of_other_benchmarks_are_unknown(call, arguments, message):
    code, out, err = call("bench", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_the_old_name_of_a_benchmark_works_with_one_warning(call):
    arguments = ("--items", "1", "--out", "results")
    code, _, err = call("bench", "fingerprint", *arguments)
    assert code == 0
    assert err == "warning: `legrad bench fingerprint` is called `legrad bench layer-importance` now\n"
    (path,) = Path("results").glob("layer-importance-*.json")
    assert call("bench", "layer-importance", *arguments)[::2] == (0, "")
    # files of the last release have the old name
    path.write_text(path.read_text().replace('"benchmark": "layer-importance"', '"benchmark": "fingerprint"', 1))
    assert Result.read(path).content["benchmark"] == "layer-importance"
    assert "fingerprint" not in call("bench", "--help")[1]


def test_ctrl_c_is_one_line(call, monkeypatch):
    arguments = ("bench", "localisation", "--methods", "random", "--items", "3", "--out", "results")
    measure, calls = Localisation.measure, []

    def interrupted(self, model, samples, method):
        calls.append(len(samples))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return measure(self, model, samples, method)

    monkeypatch.setattr(Localisation, "measure", interrupted)
    assert call(*arguments) == (130, "", "interrupted; the same command goes on where this one stopped\n")
    (path,) = Path("results").glob("*.json")
    content = Result.read(path).content
    assert (content["complete"], content["methods"]["random"]["items"]) == (False, 1)
    monkeypatch.setattr(Localisation, "measure", measure)
    assert call(*arguments)[0] == 0
    content = Result.read(path).content
    assert (content["complete"], content["methods"]["random"]["items"]) == (True, 3)


def test_a_killed_command_goes_on(tmp_path):
    """A real process, really killed."""
    command = [sys.executable, "-m", "legrad.cli", "bench", "localisation", "--methods", "random,centre"]
    command += ["--items", "40", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(legrad.__file__).parents[1])}
    journal = tmp_path / "out" / "localisation.jsonl"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 10):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_bytes().count(b"\n")
    assert 10 < before < 80
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=300)
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(records) == len({(one["key"], one["method"]) for one in records}) == 80


def test_help_is_fast(loaded_by):
    assert not {"sklearn", "h5py", "legrad.bench.runner"} & loaded_by("import legrad.cli.main")
