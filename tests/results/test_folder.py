"""The folder of results: its files and its manifest."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import handmade
from PIL import Image

import legrad
from legrad.results.folder import Folder


def test_save_writes_what_the_manifest_names(tmp_path):
    explanation = handmade.explanation(count=2, names=["a/photo.jpg", "b/photo.png"])
    files = explanation.save(tmp_path / "new" / "out", per_layer=True)
    folder = tmp_path / "new" / "out"
    assert sorted(files) == sorted(folder.iterdir())  # nothing else: no drafts either
    assert len(set(files)) == len(files) == 1 + 2 * (2 + 2 * 2)
    assert files[-1] == folder / "manifest.json"
    manifest = json.loads(files[-1].read_text(encoding="utf-8"))
    assert manifest["settings"] == explanation.settings
    assert manifest["axes"] == ["targets", "rows", "cols"]
    assert manifest["layer_axes"] == ["targets", "layers", "rows", "cols"]
    names = {"manifest.json"}
    for image, entry in enumerate(manifest["images"]):
        assert entry["image"] == explanation.names[image]
        assert entry["size"] == [24, 32]
        assert entry["shapes"] == {"relevance": [2, 3, 4], "scores": [2], "layer_relevance": [2, 2, 3, 4]}
        names |= {entry["figure"], entry["arrays"]}
        with np.load(folder / entry["arrays"], allow_pickle=False) as arrays:
            assert np.array_equal(arrays["relevance"], explanation.relevance[image].numpy())
            assert np.array_equal(arrays["scores"], explanation.scores[image].numpy())
            assert np.array_equal(arrays["layer_relevance"], explanation.layer_relevance[image].numpy())
        for target, record in enumerate(entry["targets"]):
            assert record["target"] == f"target {target}"
            assert record["score"] == float(explanation.scores[image, target])
            assert record["prompt_independent"] is False
            with Image.open(folder / record["overlay"]) as overlay:
                assert overlay.size == (32, 24)
            names |= {record["overlay"], record["layers_figure"]}
    assert names == {path.name for path in files}
    assert [entry["figure"] for entry in manifest["images"]] == ["photo.png", "photo-2.png"]


def test_saved_without_layers(tmp_path):
    handmade.explanation(layer_relevance=None).save(tmp_path)
    entry = json.loads((tmp_path / "manifest.json").read_text())["images"][0]
    assert set(entry["shapes"]) == {"relevance", "scores"}
    assert "layers_figure" not in entry["targets"][0]


def test_saved_targets_are_those_of_the_image(tmp_path):
    valid = torch.tensor([[True, True], [True, False]])
    labels = [["one", "two"], ["three", ""]]
    handmade.explanation(count=2, valid=valid, labels=labels).save(tmp_path)
    entries = json.loads((tmp_path / "manifest.json").read_text())["images"]
    assert [[record["target"] for record in entry["targets"]] for entry in entries] == [["one", "two"], ["three"]]
    assert entries[1]["shapes"]["relevance"] == [1, 3, 4]


def test_odd_labels_and_names_become_safe_files(tmp_path):
    labels = [["a/b", "../b", "A B", "a-b-2", "", "\u732b"]]
    explanation = handmade.explanation(targets=6, layers=(0,), labels=labels, names=["../..\\up/\u732b.tar.png"])
    files = explanation.save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {path.parent for path in files} == {tmp_path / "out"}
    assert all(path.is_file() for path in files)
    manifest = json.loads(files[-1].read_text(encoding="utf-8"))
    entry = manifest["images"][0]
    assert entry["image"] == explanation.names[0]
    assert [record["target"] for record in entry["targets"]] == labels[0]
    overlays = [record["overlay"] for record in entry["targets"]]
    assert overlays == [f"tar--{name}.png" for name in ["a-b", "b", "a-b-2", "a-b-2-2", "x", "x-2"]]


def test_a_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    handmade.explanation(names=[name]).save(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["images"][0]["image"] == name


def test_saving_twice_replaces(tmp_path):
    first = handmade.explanation(targets=1).save(tmp_path)
    again = handmade.explanation(targets=1).save(tmp_path)
    assert first == again
    assert sorted(tmp_path.iterdir()) == sorted(again)


def test_many_into_one_folder(tmp_path):
    folder = Folder(tmp_path)
    for count in (1, 2):
        files = handmade.explanation(layers=(0,), names=["photo.png"]).save(folder)
        assert len(files) == 1 + 2 + 2  # its own, and the manifest
        entries = json.loads(folder.manifest.read_text())["images"]
        assert len(entries) == count  # up to date after each
    assert entries == folder.entries
    assert {entry["figure"] for entry in entries} == {"photo.png", "photo-2.png"}
    assert sorted([*folder.files, folder.manifest]) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"per_layer": True}, {"cmap": "rainbows"}, {"alpha": 2}])
def test_wrong_arguments_leave_no_files(tmp_path, arguments):
    with pytest.raises(legrad.InputError, match=r"keep_layers=True|colour map|alpha"):
        handmade.explanation(layer_relevance=None).save(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(legrad.InputError, match="cannot write into"):
            handmade.explanation().save(folder)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(legrad.InputError, match=r"cannot write .*image-0\.png: .*Permission denied"):
        handmade.explanation().save(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    handmade.explanation().save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def half(path, data):
        write(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(legrad.InputError, match="No space left"):
        handmade.explanation(targets=2, labels=[["new", "newer"]]).save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(legrad.InputError, match=r"cannot write .*manifest\.json"):
        handmade.explanation().save(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_the_folder_vanishes(tmp_path):
    folder = Folder(tmp_path / "out")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    with pytest.raises(legrad.InputError, match="cannot write"):
        handmade.explanation().save(folder)


def test_a_reused_folder_holds_one_run(tmp_path):
    handmade.explanation(names=["a.png"]).save(tmp_path, per_layer=True)
    written = set(os.listdir(tmp_path))
    stranger = tmp_path / "a--mine.png"
    stranger.write_text("mine")
    outside = tmp_path.parent / "outside.png"
    outside.write_text("mine")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["images"][0]["arrays"] = "../outside.png"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    folder = Folder(tmp_path, clear=True)
    assert set(os.listdir(tmp_path)) == written | {stranger.name}  # until there is something new
    handmade.explanation(names=["b.png"]).save(folder)
    handmade.explanation(names=["c.png"]).save(folder)
    remaining = {name for name in os.listdir(tmp_path) if name.startswith("a")}
    assert remaining == {stranger.name, "a.npz"}  # the manifest did not name this one any more
    assert outside.exists()
    assert {"b.png", "c.png", "b.npz", "c.npz", "manifest.json"} <= set(os.listdir(tmp_path))
    (tmp_path / "manifest.json").write_text("[1]")
    handmade.explanation(names=["d.png"]).save(Folder(tmp_path, clear=True))


def test_predictions_are_marked_in_the_manifest(tmp_path):
    handmade.explanation(predicted=torch.tensor([[False, True]])).save(tmp_path)
    records = json.loads((tmp_path / "manifest.json").read_text())["images"][0]["targets"]
    assert [record["predicted"] for record in records] == [False, True]
