"""Overlays, figures and the folder of results."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from helpers import handmade
from PIL import Image

import legrad
from legrad import viz
from legrad.inputs.geometry import Placement
from legrad.results.folder import Folder

CROPPED = Placement((24, 60), (24, 24), (1.0, 1.0), (0.0, -18.0))
BARS = 1  # every figure has one colour bar


def opened(data):
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return picture


# -- overlays -----------------------------------------------------------------------------------------------------


def test_overlay():
    found = handmade.explanation()
    picture = found.overlay(0, 1)
    assert (picture.mode, picture.size) == ("RGB", (32, 24))
    assert not np.array_equal(np.asarray(picture), np.asarray(found.overlay(0, 0)))
    assert np.array_equal(np.asarray(found.overlay(-1, -1)), np.asarray(picture))


def test_overlay_is_a_mixture():
    rng = np.random.default_rng(0)
    picture, saliency = rng.integers(0, 255, (5, 7, 3), np.uint8), rng.random((5, 7))
    colours = viz.colours(saliency, "jet")
    assert (colours.shape, colours.dtype) == ((5, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(viz.overlay(picture, saliency, alpha=0)), picture)
    assert np.array_equal(np.asarray(viz.overlay(picture, saliency, alpha=1, cmap="jet")), colours)
    half = np.asarray(viz.overlay(picture, saliency, alpha=0.5, cmap="jet"), float)
    assert np.abs(half - (picture / 2 + colours / 2)).max() <= 0.5


def test_colours_are_those_of_matplotlib():
    saliency = np.array([[0.0, 0.4, 1.0, -3.0, 9.0]])
    expected = (matplotlib.colormaps["viridis"]([0.0, 0.4, 1.0, 0.0, 1.0])[:, :3] * 255).astype(np.uint8)
    assert np.abs(viz.colours(saliency, "viridis")[0].astype(int) - expected).max() <= 1


def test_unseen_pixels_are_grey_and_hatched():
    found = handmade.explanation(grid=(3, 3), placements=[CROPPED])
    picture = np.asarray(found.overlay(alpha=1)).astype(int)
    grey = (picture.max(-1) == picture.min(-1)) & ~found.seen[0].numpy()
    assert np.array_equal(grey, ~found.seen[0].numpy())
    plain = handmade.explanation(grid=(3, 3), placements=[CROPPED], images=[np.full((24, 60, 3), 90, np.uint8)])
    unseen = np.asarray(plain.overlay())[~found.seen[0].numpy()]
    assert len(np.unique(unseen)) == 2  # lines over it
    # what was seen looks as if there were nothing else
    whole = handmade.explanation(grid=(3, 3), relevance=found.relevance)
    assert np.array_equal(picture[:, 18:42], np.asarray(whole.overlay(alpha=1)))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(legrad.InputError, match=r"alpha lies in \[0, 1\]"):
        handmade.explanation().overlay(alpha=alpha)


@pytest.mark.parametrize("call", ["overlay", "figure", "layer_figure"])
def test_unknown_colour_map(call):
    with pytest.raises(legrad.InputError, match="no colour map 'rainbows'; try 'inferno'"):
        getattr(handmade.explanation(), call)(cmap="rainbows")


@pytest.mark.parametrize(("image", "target"), [(1, 0), (-2, 0), (0, 2), (0, -3)])
def test_index_out_of_range(image, target):
    with pytest.raises(legrad.InputError, match="there are 1 images and 2 targets"):
        handmade.explanation().overlay(image, target)


def test_sizes_must_agree():
    with pytest.raises(legrad.InputError, match="differ in size"):
        viz.overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4)))


# -- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("targets", "panels"), [(1, 2), (2, 3), (4, 5), (5, 10)])
def test_figure_has_a_panel_per_target(targets, panels):
    figure = handmade.explanation(targets=targets, layers=(0,)).figure()
    assert len(figure.axes) == panels + BARS
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 1 + targets
    assert shown[0].get_title() == "image 0.jpg"
    assert shown[targets].get_title().startswith(f"target {targets - 1}\n0.")


def test_figure_leaves_out_targets_that_the_image_has_not():
    found = handmade.explanation(targets=3, valid=torch.tensor([[True, False, True]]))
    titles = [axis.get_title().split("\n")[0] for axis in found.figure().axes if axis.images]
    assert titles == ["image 0.jpg", "target 0", "target 2"]


def test_layer_figure():
    figure = handmade.explanation(layers=(1, 3, 4)).layer_figure(target=1)
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles == ["image 0.jpg\ntarget 1", "layer 1", "layer 3", "layer 4"]
    assert figure.get_supxlabel() == "each layer is scaled by itself"


def test_a_flat_layer_is_not_stretched():
    layers = torch.full((1, 2, 2, 3, 4), 0.3)
    flat = handmade.explanation(layer_relevance=layers).layer_figure().axes[1].images[0].get_array()
    zero = handmade.explanation(layer_relevance=layers * 0).layer_figure().axes[1].images[0].get_array()
    assert np.array_equal(flat, zero)


def test_layer_figure_needs_layers():
    found = handmade.explanation(layer_relevance=None)
    with pytest.raises(legrad.InputError, match="keep_layers=True"):
        found.layer_figure()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3)])
def test_extreme_images_can_be_drawn(size):
    found = handmade.explanation(placements=[Placement(size, (24, 32), (24 / size[0], 32 / size[1]))])
    assert found.overlay().size == size[::-1]
    width, height = opened(found._repr_png_()).size
    assert 100 < width < 2500
    assert 100 < height < 2500


def test_long_and_odd_titles():
    labels = [
        ["a photo of a very long description that goes on and on and on", "$x_1$ $\\no{$ \u732b \U0001f408 <b>[red]"]
    ]
    found = handmade.explanation(labels=labels, names=["\u732b.png"])
    titles = [axis.get_title() for axis in found.figure().axes if axis.images]
    assert titles[1].split("\n")[0] == "a photo of a very long description th…"
    assert titles[2].startswith(labels[0][1])
    assert opened(found._repr_png_()).format == "PNG"


def test_repr_png():
    data = handmade.explanation()._repr_png_()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = opened(data).size
    assert width > height


PYPLOT = """
import sys
sys.path.insert(0, {tests!r})
from helpers import handmade
found = handmade.explanation()
assert "matplotlib" not in sys.modules, "a result needs no matplotlib"
found.saliency()
assert "matplotlib" not in sys.modules, "saliency needs no matplotlib"
found.overlay(); found.figure(); found.layer_figure(); found._repr_png_()
found.save({folder!r}, per_layer=True)
assert "matplotlib.pyplot" not in sys.modules, "pyplot has global state"
"""


def test_no_pyplot(tmp_path):
    code = PYPLOT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


# -- the folder ---------------------------------------------------------------------------------------------------


def test_save_writes_what_the_manifest_names(tmp_path):
    found = handmade.explanation(count=2, names=["a/photo.jpg", "b/photo.png"])
    files = found.save(tmp_path / "new" / "out", per_layer=True)
    folder = tmp_path / "new" / "out"
    assert sorted(files) == sorted(folder.iterdir())  # nothing else: no drafts either
    assert len(set(files)) == len(files) == 1 + 2 * (2 + 2 * 2)
    assert files[-1] == folder / "manifest.json"
    manifest = json.loads(files[-1].read_text(encoding="utf-8"))
    assert manifest["settings"] == found.settings
    assert manifest["axes"] == ["targets", "rows", "cols"]
    assert manifest["layer_axes"] == ["targets", "layers", "rows", "cols"]
    named = {"manifest.json"}
    for image, entry in enumerate(manifest["images"]):
        assert entry["image"] == found.names[image]
        assert entry["size"] == [24, 32]
        assert entry["shapes"] == {"relevance": [2, 3, 4], "scores": [2], "layer_relevance": [2, 2, 3, 4]}
        named |= {entry["figure"], entry["arrays"]}
        with np.load(folder / entry["arrays"], allow_pickle=False) as arrays:
            assert np.array_equal(arrays["relevance"], found.relevance[image].numpy())
            assert np.array_equal(arrays["scores"], found.scores[image].numpy())
            assert np.array_equal(arrays["layer_relevance"], found.layer_relevance[image].numpy())
        for target, record in enumerate(entry["targets"]):
            assert record["target"] == f"target {target}"
            assert record["score"] == float(found.scores[image, target])
            assert record["prompt_independent"] is False
            assert opened((folder / record["overlay"]).read_bytes()).size == (32, 24)
            named |= {record["overlay"], record["layers_figure"]}
    assert named == {path.name for path in files}
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
    found = handmade.explanation(targets=6, layers=(0,), labels=labels, names=["../..\\up/\u732b.tar.png"])
    files = found.save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {path.parent for path in files} == {tmp_path / "out"}
    assert all(path.is_file() for path in files)
    manifest = json.loads(files[-1].read_text(encoding="utf-8"))
    entry = manifest["images"][0]
    assert entry["image"] == found.names[0]
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


def test_targets_by_their_label():
    found = handmade.explanation(labels=[["a cat", "a dog"]])
    assert found.overlay(target="a dog").tobytes() == found.overlay(target=1).tobytes()
    assert found.overlay(target="a dog").tobytes() != found.overlay(target=0).tobytes()
    found.layer_figure(target="a dog")
    with pytest.raises(legrad.InputError, match="image 0 has no target 'a cow', only 'a cat', 'a dog'"):
        found.overlay(target="a cow")


def test_what_is_hatched_is_explained():
    found = handmade.explanation(placements=[CROPPED], covered=(24, 24))
    assert "never seen by the model" in found.figure().get_supxlabel()
    assert found.layer_figure().get_supxlabel().startswith("each layer is scaled by itself; grey with stripes")
    assert handmade.explanation().figure().get_supxlabel() == ""


@pytest.mark.parametrize(("height", "width"), [(400, 40), (400, 160), (30, 30), (40, 400)])
def test_figures_of_every_shape_fit_a_screen(height, width):
    frame = Placement((height, width), (24, 32))
    figure = handmade.explanation(targets=4, placements=[frame]).figure()
    assert max(figure.get_size_inches()) <= 17
    assert figure.get_size_inches()[1] <= 6


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
    left = {name for name in os.listdir(tmp_path) if name.startswith("a")}
    assert left == {stranger.name, "a.npz"}  # the manifest did not name this one any more
    assert outside.exists()
    assert {"b.png", "c.png", "b.npz", "c.npz", "manifest.json"} <= set(os.listdir(tmp_path))
    (tmp_path / "manifest.json").write_text("[1]")
    handmade.explanation(names=["d.png"]).save(Folder(tmp_path, clear=True))


def test_predictions_are_marked_in_the_manifest(tmp_path):
    handmade.explanation(predicted=torch.tensor([[False, True]])).save(tmp_path)
    records = json.loads((tmp_path / "manifest.json").read_text())["images"][0]["targets"]
    assert [record["predicted"] for record in records] == [False, True]
