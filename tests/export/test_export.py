"""Ways out, read back with the libraries that they are for."""

import importlib
import itertools
import json

import numpy as np
import pytest
import torch
from helpers import handmade
from PIL import Image

import legrad
from legrad import export
from legrad.inputs.geometry import Placement

# of pycocotools, not ours to mend
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def explained(count=2):
    """Two images of different sizes with two targets, blobs apart from each other."""
    relevance = torch.zeros(count, 2, 8, 10)
    relevance[:, 0, 1:3, 1:4] = 1
    relevance[:, 1, 5:7, 6:9] = 1
    relevance[:, 1, 1:3, 7:9] = 1
    placements = [Placement((64 * (i + 1), 80), (64, 80), (1 / (i + 1), 1.0)) for i in range(count)]
    images = [np.full((*place.original, 3), 90, np.uint8) for place in placements]
    return handmade.explanation(
        count=count, grid=(8, 10), relevance=relevance, placements=placements, images=images, covered=(64, 80)
    )


def test_coco_is_read_by_its_own_library(tmp_path):
    coco_library = pytest.importorskip("pycocotools.coco")
    found = explained()
    content = export.coco(found, tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text()) == content
    read = coco_library.COCO(str(tmp_path / "coco.json"))
    assert [read.cats[i]["name"] for i in sorted(read.cats)] == ["target 0", "target 1"]
    assert [(read.imgs[i]["height"], read.imgs[i]["width"]) for i in (1, 2)] == [(64, 80), (128, 80)]
    assert [read.imgs[i]["file_name"] for i in (1, 2)] == found.names
    masks = found.masks()
    for image in (1, 2):
        for category in (1, 2):
            ids = read.getAnnIds(imgIds=[image], catIds=[category])
            assert len(ids) == category
            union = np.zeros(masks[image - 1].shape[1:], bool)
            for annotation in read.loadAnns(ids):
                part = read.annToMask(annotation).astype(bool)
                union |= part
                assert annotation["area"] == part.sum()
                left, top, width, height = annotation["bbox"]
                rows, cols = np.nonzero(part.any(1))[0], np.nonzero(part.any(0))[0]
                assert [cols[0], rows[0], cols[-1] + 1 - cols[0], rows[-1] + 1 - rows[0]] == [left, top, width, height]
                assert 0.5 < annotation["score"] <= 1
            assert np.array_equal(union, masks[image - 1][category - 1].numpy())
    # what is found is what COCO's evaluation takes
    evaluated = read.loadRes([dict(one) for one in content["annotations"]])
    assert len(evaluated.anns) == len(content["annotations"])


def test_a_coco_file_of_several_explanations():
    pytest.importorskip("pycocotools")
    collected = export.CocoFile(min_area=0.0)
    collected.add(explained(1))
    collected.add(explained(2))
    content = collected.content
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert [one["id"] for one in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert len(content["categories"]) == 2


def test_supervision_detections():
    sv = pytest.importorskip("supervision")
    found = explained()
    detections = export.supervision(found, 1)
    assert isinstance(detections, sv.Detections)
    assert detections.class_id.tolist() == [0, 1, 1]
    assert detections.data["class_name"].tolist() == ["target 0", "target 1", "target 1"]
    boxes = found.boxes()[1]
    assert np.array_equal(detections.xyxy[0], boxes[0].xyxy[0].numpy())
    assert detections.mask.shape == (3, 128, 80)
    assert np.array_equal(detections.mask[0], boxes[0].parts[0].numpy())
    nothing = handmade.explanation(relevance=torch.zeros(1, 2, 3, 4))
    with pytest.warns(legrad.FlatMapWarning):
        assert len(export.supervision(nothing)) == 0


def test_fiftyone_labels():
    fo = pytest.importorskip("fiftyone")
    found = explained()
    labels = export.fiftyone(found, 0)
    assert isinstance(labels["detections"], fo.Detections)
    assert isinstance(labels["segmentation"], fo.Segmentation)
    assert [one.label for one in labels["detections"].detections] == ["target 0", "target 1", "target 1"]
    assert isinstance(labels["heatmaps"]["target 0"], fo.Heatmap)


def test_a_palette(tmp_path):
    found = explained()
    export.palette(found, 0).save(tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as image:
        assert (image.mode, image.size) == ("P", (80, 64))
        numbers, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    masks = found.masks()[0].numpy()
    assert np.array_equal(numbers == 1, masks[0] & ~masks[1])
    assert np.array_equal(numbers > 0, masks.any(0))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 3
    assert not colours[numbers == 0].any()


def test_prompts_for_sam(tmp_path):
    found = explained()
    prompts = export.sam(found, tmp_path / "points.json", k=1, negative=2)
    assert json.loads((tmp_path / "points.json").read_text()) == prompts
    assert [(one["image"], one["target"]) for one in prompts] == [
        (name, f"target {target}") for name in found.names for target in range(2)
    ]
    points_of_all, boxes_of_all = (itertools.chain(*rows) for rows in (found.points(1, 2), found.boxes()))
    for one, points, boxes in zip(prompts, points_of_all, boxes_of_all, strict=True):
        assert one["point_coords"] == points.xy.tolist()
        assert one["point_labels"] == [1, 0, 0]
        assert one["box"] == boxes.xyxy[0].tolist()


def test_label_studio_tasks(tmp_path):
    found = explained()
    tasks = export.label_studio(found, tmp_path / "tasks.json")
    assert json.loads((tmp_path / "tasks.json").read_text()) == tasks
    results = tasks[1]["predictions"][0]["result"]
    assert [one["value"]["rectanglelabels"] for one in results] == [["target 0"], ["target 1"], ["target 1"]]
    left, top, right, bottom = found.boxes()[1][0].xyxy[0].tolist()
    value = results[0]["value"]
    assert [value["x"], value["y"]] == pytest.approx([100 * left / 80, 100 * top / 128])
    assert [value["width"], value["height"]] == pytest.approx([100 * (right - left) / 80, 100 * (bottom - top) / 128])
    assert len({one["id"] for one in results}) == len(results)


def test_a_parquet_file(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = explained()
    export.table(found, tmp_path / "rows.parquet")
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [(row["image"], row["target"]) for row in rows] == [
        (name, f"target {target}") for name in found.names for target in range(2)
    ]
    assert rows[0]["grid"] == [8, 10]
    assert rows[0]["relevance"] == found.relevance[0, 0].flatten().tolist()
    assert rows[1]["boxes"] == found.boxes()[0][1].xyxy.tolist()
    assert rows[3]["mask_area"] == pytest.approx(float(found.masks()[1][1].float().mean()))


LIBRARIES = {
    "coco": ("pycocotools", "export"),
    "supervision": ("supervision", "export"),
    "fiftyone": ("fiftyone", "fiftyone"),
    "table": ("pyarrow", "export"),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_without_its_library(name, monkeypatch):
    package, extra = LIBRARIES[name]
    importing = importlib.import_module

    def absent(module, *others):
        if module.partition(".")[0] == package:
            raise ImportError(module)
        return importing(module, *others)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(legrad.InputError, match=rf"needs {package}: pip install 'legrad\[{extra}\]'"):
        getattr(export, name)(explained())


@pytest.mark.parametrize("name", ["palette", "sam", "label_studio"])
def test_sounds_videos_and_other_things_are_refused(name):
    with pytest.raises(legrad.InputError, match=r"is for still images, this explanation's axes are frequency, time"):
        getattr(export, name)(handmade.explanation(axes=("frequency", "time")))
    with pytest.raises(legrad.InputError, match="takes an explanation"):
        getattr(export, name)([1, 2])


def test_no_such_image_and_no_place_to_write(tmp_path):
    with pytest.raises(legrad.InputError, match="image is a whole number below 2, got 2"):
        export.palette(explained(), 2)
    with pytest.raises(legrad.InputError, match="nowhere"):
        export.sam(explained(), tmp_path / "nowhere" / "points.json")
    with pytest.raises(legrad.InputError, match="path is"):
        export.sam(explained(), 3.5)


def test_nothing_is_loaded_before_it_is_needed(loaded_by):
    assert not {"pycocotools", "supervision", "fiftyone", "pyarrow"} & loaded_by("import legrad.export")
