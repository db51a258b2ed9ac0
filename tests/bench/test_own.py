"""Folders of masks, methods and metrics of one's own, and results as tables."""

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import fakes
from helpers.fakes import block
from PIL import Image

import legrad
from legrad import plugins
from legrad.bench import ground_truth
from legrad.bench.registry import build, fitting_switches
from legrad.bench.runner import Progress, run
from legrad.bench.tasks.localisation import Localisation
from legrad.bench.tasks.segmentation import Segmentation
from legrad.datasets import MaskFolder, Sample
from legrad.methods import registry
from legrad.metrics import own
from legrad.results import table


@pytest.fixture(scope="module")
def explainer():
    return legrad.load("embedded", device="cpu")


@pytest.fixture(autouse=True)
def _forgotten():
    """What a test registers is gone behind it."""
    before = dict(registry.METHODS), dict(registry._BY_NAME), dict(own._METRICS)
    yield
    for kept, now in zip(before, (registry.METHODS, registry._BY_NAME, own._METRICS), strict=True):
        now.clear()
        now.update(kept)


@pytest.fixture
def folder(tmp_path):
    """Two scenes with masks, in the layout of class folders; the second has two objects."""
    root = tmp_path / "data"
    for index, scene in enumerate(legrad.embedded.scenes(2, seed=1, size=96, objects=(1, 2))):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(root / "images" / f"{index}.png")
        for name, mask in zip(scene.names, scene.masks, strict=True):
            (root / "masks" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / name / f"{index}.png")
    return root


@pytest.mark.parametrize("name", ["segmentation", "openvocab", "perturbation", "localisation"])
def test_a_folder_of_masks_needs_no_switch(explainer, folder, tmp_path, name):
    result = legrad.bench.measure(name, explainer, str(folder), ["legrad", "centre"], tmp_path / "out")
    assert result.content["problems"] == []
    assert [method["items"] for method in result.content["methods"].values()] == [2, 2]
    headline = next(iter(result.content["metrics"]))
    assert result.content["methods"]["legrad"]["metrics"][headline]["value"] is not None
    if name == "segmentation":
        assert result.content["settings"]["protocol"]["explained"] == "truth"


def test_a_switch_that_is_given_counts(folder):
    data = MaskFolder(folder)
    assert fitting_switches("segmentation", {"explained": "predicted"}, data) == {"explained": "predicted"}
    assert fitting_switches("ablation", {"on": "segmentation"}, data)["explained"] == "truth"
    assert fitting_switches("openvocab", {}, data) == {}
    assert fitting_switches("segmentation", {}, fakes.Data([])) == {}


def test_what_a_folder_of_masks_knows(folder):
    data = MaskFolder(folder)
    assert set(data.classes) == {path.name for path in (folder / "masks").iterdir()}
    for sample in data:
        assert sample.label == max(sample.masks, key=lambda name: sample.masks[name].sum())


@pytest.mark.filterwarnings("ignore:the embedded model never read")
def test_errors_name_the_fix(explainer, folder, tmp_path):
    (tmp_path / "one" / "masks").mkdir(parents=True)
    (folder / "images").rename(tmp_path / "one" / "images")
    for index in range(2):
        Image.fromarray(np.uint8([[0, 255], [0, 0]]).repeat(48, 0).repeat(48, 1)).save(
            tmp_path / "one" / "masks" / f"{index}.png"
        )
    with pytest.raises(legrad.InputError, match=r"at least two classes .* put masks into folders .* --names$"):
        legrad.bench.measure("perturbation", explainer, str(tmp_path / "one"), ["legrad"], tmp_path / "out")
    lines = []
    progress = Progress(problem=lines.append)
    arguments = str(tmp_path / "one"), ["centre"], tmp_path / "out"
    result = legrad.bench.measure("segmentation", explainer, *arguments, progress=progress)
    assert result.content["methods"]["centre"]["items"] == 2, lines
    assert ["the model is asked for 'object'; put them into masks/CLASS/" in line for line in lines] == [True]
    legrad.bench.measure("segmentation", explainer, *arguments, names={"object": "cow"}, progress=progress)
    assert len(lines) == 1
    images = tmp_path / "classes" / "cat"
    images.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(images / "1.png")
    for name, need in (("segmentation", "masks"), ("openvocab", "points")):
        with pytest.raises(legrad.InputError, match=rf"needs {need}, which image-folder .*; give a .*docs/"):
            legrad.bench.measure(name, explainer, str(tmp_path / "classes"), ["legrad"], tmp_path / "out")


def test_points_out_of_masks():
    image, small, large = Image.new("RGB", (200, 100)), np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    small[3, 4], large[:, :100] = True, True
    sample = Sample("a", image, None, {"small": small, "large": large})
    named = ground_truth.points(sample)
    positive, negative = named["large"]
    assert len(positive) == len(negative) == 64 * 64 // 2
    assert positive[:, 0].max() < 100 < negative[:, 0].min()
    assert named["small"][0].tolist() == [[4.5, 3.5]]
    for name, mask in (("small", small), ("large", large)):
        x, y = named[name][0].astype(int).T
        assert mask[y, x].all()
    given = {"dot": (np.zeros((1, 2)), np.zeros((0, 2)))}
    assert ground_truth.points(Sample("a", image, None, {"large": large}, given)) is given
    ignore = np.zeros((100, 200), bool)
    ignore[:, 100:] = True
    points = ground_truth.points(Sample("a", image, None, {"large": large}, extra={"ignore": ignore}))
    assert len(points["large"][1]) == 0


def brightness(call):
    pixels = call.batch.mean(1, keepdim=True)
    return call.same_for_all_targets(torch.nn.functional.adaptive_avg_pool2d(pixels, call.anatomy.grid)[:, 0])


def test_a_method_of_ones_own(explainer, folder, tmp_path):
    method = legrad.register_method("brightness", brightness, needs="nothing", summary="how bright", targets=False)
    assert legrad.list_methods()[-1] == "brightness"
    image = Image.open(folder / "images" / "0.png")
    maps = explainer.explain(image, method="brightness")
    assert torch.equal(maps.relevance, explainer.explain(image, method=method).relevance)
    result = legrad.bench.measure("localisation", explainer, folder, ["legrad", "brightness"], tmp_path / "out")
    assert result.content["methods"]["brightness"]["items"] == 2
    key = [json.loads(line)["content"] for line in (tmp_path / "out/localisation.jsonl").read_text().splitlines()]
    legrad.register_method("brightness", lambda call: -brightness(call), needs="nothing", targets=False)
    legrad.bench.measure("localisation", explainer, folder, ["legrad", "brightness"], tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out/localisation.jsonl").read_text().splitlines()]
    assert len(records) == len(key) + 2  # the changed method alone was measured again
    assert {record["method"] for record in records[len(key) :]} == {"brightness"}


@pytest.mark.parametrize(
    ("arguments", "facts", "message"),
    [
        (("gradcam", brightness), {}, "'gradcam' is a method of the library"),
        (("a:b", brightness), {}, "a text without ':' and ','"),
        (("", brightness), {}, "a text without ':' and ','"),
        (("mine", 3), {}, "a method is a function of a MethodInput, got 3"),
        ((3,), {}, "register_method takes a legrad.methods.Method, or a name and a function, got 3"),
        (("mine", brightness), {"layer": 3}, "a method has no field 'layer'; there are"),
    ],
    ids=range(6),
)
def test_what_is_no_method(arguments, facts, message):
    with pytest.raises(legrad.InputError, match=message):
        legrad.register_method(*arguments, **facts)


@pytest.mark.parametrize("benchmark", [Segmentation("truth"), Localisation()], ids=["segmentation", "localisation"])
def test_a_metric_of_ones_own(tmp_path, benchmark):
    scenes = [
        fakes.scene(f"item-{i}", {"square": block((0, 4), (0, 4)), "bar": block((4, 8), (0, 8))}) for i in range(3)
    ]
    data = fakes.Data(scenes)
    model = fakes.ModelUnderTest(data, lambda sample, name, method: sample.masks[name])
    without = run(benchmark, model, data, ["legrad"], tmp_path)
    assert "covered" not in without.content["metrics"]
    legrad.register_metric("covered", lambda saliency, mask: saliency[mask].mean() * 0.5, title="half", meaning="of it")
    result = run(benchmark, model, data, ["legrad"], tmp_path)
    assert result.content["methods"]["legrad"]["metrics"]["covered"]["value"] == 0.5
    assert result.content["metrics"]["covered"]["title"] == "half"
    assert result.content["settings"]["protocol"]["own metrics"].keys() == {"covered"}
    legrad.register_metric("covered", lambda saliency, mask: None)
    other = run(benchmark, model, data, ["legrad"], tmp_path)
    assert other.content["methods"]["legrad"]["metrics"]["covered"]["value"] is None
    legrad.register_metric("covered", lambda saliency, mask: "much")
    result = run(benchmark, model, data, ["legrad"], tmp_path)
    assert "metric 'covered' returns a number or None, got 'much'" in result.content["problems"][0]["problem"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a b", len), "the name of a metric"),
        ((3, len), "the name of a metric"),
        (("mine",), "a metric is a function of a map and a mask, got None"),
        (("mine", len, "up"), "better is one of 'higher', 'lower'"),
    ],
    ids=range(4),
)
def test_what_is_no_metric(arguments, message):
    with pytest.raises(legrad.InputError, match=message):
        legrad.register_metric(*arguments)


def test_packages_bring_methods_and_metrics(monkeypatch):
    class Point:
        def __init__(self, name, value):
            self.name, self.value, self._loaded = name, "package:thing", value

        def load(self):
            if isinstance(self._loaded, Exception):
                raise self._loaded
            return self._loaded

    groups = {
        "legrad.methods": [Point("bright", brightness), Point("torn", ImportError("no module")), Point("gradcam", len)],
        "legrad.metrics": [Point("size", lambda saliency, mask: mask.mean()), Point("none", 3)],
    }
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: groups[group])
    monkeypatch.setattr(registry, "_load_entry_points", registry._load_entry_points.__wrapped__)
    monkeypatch.setattr(own, "_load_entry_points", own._load_entry_points.__wrapped__)
    with pytest.warns(UserWarning, match="is left out") as told:
        names = [*legrad.list_methods(), *own.own_metrics()]
    assert {"bright", "size"} <= set(names)
    texts = " ".join(str(warning.message) for warning in told)
    for part in ("'torn' of legrad.methods (package:thing) is left out: no module", "method of the library", "got 3"):
        assert part in texts


def test_packages_on_the_command_line(tmp_path):
    """A real package: its method is listed, cited and measured."""
    (tmp_path / "thing.py").write_text(
        "import torch\nfrom legrad.methods import Method\n"
        "def bright(call):\n"
        "    return call.same_for_all_targets(torch.ones(len(call.batch), *call.anatomy.grid))\n"
        "method = Method('bright', 'how bright', 'us', bright, 'nothing', 'none', targets=False, bibtex='@misc{b,}')\n"
    )
    about = tmp_path / "thing-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[legrad.methods]\nbright = thing:method\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from legrad.cli.main import app\n"
        "for line in (['methods'], ['cite', 'bright'], ['bench', 'localisation', '--items', '1', '--methods', "
        f"'bright,centre', '--out', {str(tmp_path / 'out')!r}]):\n"
        "    app(line, standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "how bright" in done.stdout
    assert "@misc{b,}" in done.stdout
    assert '"bright"' in next((tmp_path / "out").glob("*.json")).read_text()


def test_digests_follow_the_source():
    import functools

    assert plugins.source_digest(brightness) == plugins.source_digest(brightness)
    digests = {plugins.source_digest(f) for f in (brightness, len, functools.partial(brightness, 1))}
    digests |= {plugins.source_digest(eval("lambda x: x + 1")), plugins.source_digest(eval("lambda x: x + 2"))}
    assert len(digests) == 5
    assert registry.own_digest("gradcam") == registry.own_digest("legrad:layers=2") == ""


def test_results_as_rows(explainer, folder, tmp_path):
    for name in ("localisation", "segmentation"):
        result = legrad.bench.measure(name, explainer, folder, ["legrad", "centre"], tmp_path / "out" / name)
    rows = table.rows_of(tmp_path / "out")
    assert {row["benchmark"] for row in rows} == {"localisation", "segmentation"}
    (row,) = [r for r in rows if r["method"] == "centre" and r["metric"] == "miou"]
    assert row["value"] == result.content["methods"]["centre"]["metrics"]["miou"]["value"]
    assert row["items"] == 2
    explainer.explain(folder / "images/0.png", ["a cow", "a pig"]).save(tmp_path / "saved")
    rows = table.rows_of(tmp_path / "saved")
    assert [(row["image"], row["target"]) for row in rows] == [
        (str(folder / "images/0.png"), "a cow"),
        (str(folder / "images/0.png"), "a pig"),
    ]
    pandas = pytest.importorskip("pandas")
    frame = legrad.results.load(tmp_path / "out")
    assert isinstance(frame, pandas.DataFrame)
    assert frame.pivot_table("value", "method", "metric").loc["legrad", "miou"] > 0


def test_a_folder_without_results_and_no_pandas(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(legrad.InputError, match=r"holds no results of|no folder"):
            legrad.results.load(folder)
    monkeypatch.setattr(table, "rows_of", lambda folder: [{"a": 1}])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(legrad.InputError, match=r"pip install 'legrad\[bench\]'"):
        legrad.results.load(tmp_path)


def test_own_metrics_in_an_ablation():
    legrad.register_metric("covered", lambda saliency, mask: 1.0)
    anatomy = legrad.load("embedded", device="cpu").anatomy
    assert "covered" in build("ablation", anatomy, {"on": "segmentation"}).metrics
