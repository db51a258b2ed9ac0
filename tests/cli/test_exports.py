"""``legrad explain --masks --boxes --export``."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import legrad

# of pycocotools, not ours to mend
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCENE = legrad.embedded.scene(31, 1, size=384, objects=(2, 2))
NAME = SCENE.names[0]


@pytest.fixture
def scene(tmp_path):
    Image.fromarray(SCENE.image).save(tmp_path / "scene.png")
    return ["scene.png", "-t", f"a photo of a {NAME}", "--model", "embedded"]


def manifest(folder="legrad-out"):
    return json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))


def test_a_coco_file_whose_mask_covers_the_object(run, scene):
    library = pytest.importorskip("pycocotools.coco")
    code, out, err = run("explain", *scene, "--masks", "--export", "coco", "--model", "embedded")
    assert (code, err) == (0, "")
    assert "export: legrad-out/coco.json" in out
    read = library.COCO("legrad-out/coco.json")
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == [f"a photo of a {NAME}"]
    mask = read.annToMask(read.loadAnns(read.getAnnIds())[0]).astype(bool)
    assert (mask & SCENE.masks[0]).sum() / (mask | SCENE.masks[0]).sum() > 0.7
    with Image.open("legrad-out/scene--masks.png") as image:
        numbers = np.asarray(image)
    assert numbers.shape == SCENE.masks[0].shape
    assert mask[numbers == 1].mean() > 0.9
    entry = manifest()["images"][0]
    assert entry["masks"] == "scene--masks.png"
    assert entry["exports"] == ["coco.json"]
    assert {"coco.json", "scene--masks.png"} <= set(manifest()["files"])


def test_boxes_and_other_formats(run, scene):
    code, out, _ = run("explain", *scene, "--boxes", "--export", "sam, label-studio,fiftyone", "--threshold", "0.6")
    assert code == 0
    (record,) = manifest()["images"][0]["boxes"]
    explanation = legrad.Explanation.load("legrad-out")
    assert np.allclose(record["boxes"], explanation.boxes(0.6)[0][0].xyxy)
    assert record["units"] == ["pixels", "pixels"]
    assert f"box: a photo of a {NAME}: (" in out
    (prompt,) = json.loads(Path("legrad-out/sam.json").read_text())
    assert prompt["box"] == record["boxes"][0]
    (task,) = json.loads(Path("legrad-out/label-studio.json").read_text())
    assert len(task["predictions"][0]["result"]) == len(record["boxes"])
    data, labels = (json.loads(Path(f"legrad-out/fiftyone/{name}.json").read_text()) for name in ("data", "labels"))
    assert list(data.values()) == [str(Path("scene.png").absolute())]
    assert labels["classes"] == [f"a photo of a {NAME}"]
    box = labels["labels"]["000000"][0]["bounding_box"]
    left, top, right, bottom = (edge / 384 for edge in record["boxes"][0])
    assert box == pytest.approx([left, top, right - left, bottom - top], abs=1e-4)


def test_an_earlier_runs_exports_are_replaced_and_foreign_files_stay(run, scene):
    Path("legrad-out").mkdir()
    Path("legrad-out/sam.json").write_text("mine")
    run("explain", *scene, "--export", "sam", "--overwrite")
    assert Path("legrad-out/sam.json").read_text() == "mine"
    assert Path("legrad-out/sam-2.json").is_file()
    run("explain", *scene, "--overwrite")
    assert Path("legrad-out/sam.json").read_text() == "mine"
    assert not Path("legrad-out/sam-2.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--export", "voc"), ("export", "'coco'")),
        (("--export", ""), ("export", "'coco'")),
        (("--masks", "--threshold", "2"), ("threshold is one of", "[0, 1]")),
        (("--boxes", "--threshold", "halves"), ("threshold is one of",)),
        (("--export", "sam", "--resume"), ("--resume",)),
        (("--upsampling", "cubic"), ("upsampling is one of",)),
    ],
)
def test_bad_options_are_one_line(run, scene, options, words):
    code, out, err = run("explain", *scene, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not Path("legrad-out").exists()


def test_without_pycocotools(run, scene, monkeypatch):
    importing = importlib.import_module

    def absent(module, *others):
        if module.startswith("pycocotools"):
            raise ImportError(module)
        return importing(module, *others)

    monkeypatch.setattr(importlib, "import_module", absent)
    code, _, err = run("explain", *scene, "--export", "coco")
    assert code == 2
    assert err == "error: this export needs pycocotools: pip install 'legrad[export]'\n"


def test_figures_along_contours(run, scene):
    run("explain", *scene, "--out", "plain")
    code, _, _ = run("explain", *scene, "--upsampling", "guided", "--normalize", "half", "--out", "guided")
    assert code == 0
    (plain, guided) = (np.asarray(Image.open(f"{folder}/scene.png")) for folder in ("plain", "guided"))
    assert plain.shape == guided.shape
    assert (plain != guided).any()
