"""Explanations are saved and loaded, taken apart and put together."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from helpers import handmade
from PIL import Image

import legrad
from legrad.inputs.geometry import Placement, Timing

FIELDS = ("relevance", "layer_relevance", "scores", "valid", "prompt_independent", "predicted")


def same(a, b):
    """Equal in all numbers, names and places."""
    for name in FIELDS:
        first, second = getattr(a, name), getattr(b, name)
        assert (first is None) == (second is None), name
        assert first is None or (first.dtype == second.dtype and torch.equal(first, second)), name
    for name in ("labels", "placements", "patch_grids", "names", "settings", "axes", "layers", "frequencies"):
        assert getattr(a, name) == getattr(b, name), name
    return True


def save(explanation, folder):
    explanation.save(folder)
    return legrad.Explanation.load(folder)


def changed(path, **facts):
    """The file with other facts, or other arrays."""
    with np.load(path, allow_pickle=False) as loaded:
        arrays = dict(loaded)
    about = json.loads(str(arrays["explanation"])) | {k: v for k, v in facts.items() if k not in arrays}
    arrays |= {k: v for k, v in facts.items() if k in arrays}
    arrays["explanation"] = np.array(json.dumps(about))
    np.savez(path, **arrays)


@pytest.mark.parametrize("kept", [True, False], ids=["layers", "no-layers"])
def test_what_is_loaded_is_what_was_saved(tmp_path, kept):
    explanation = handmade.explanation(
        2,
        targets=3,
        valid=torch.tensor([[True, True, True], [True, True, False]]),
        labels=[["a", "a", "c\n"], ["x", "é", ""]],
        predicted=torch.tensor([[True, False, False], [False, True, False]]),
        placements=[Placement((24, 60), (24, 24), (1.0, 1.0), (0.0, -18.0)), Placement((24, 32), (24, 32))],
        **({} if kept else {"layer_relevance": None}),
    )
    explanation.relevance[1, 2], explanation.scores[1, 2] = 0, 0
    if kept:
        explanation.layer_relevance[1, 2] = 0
    loaded = save(explanation, tmp_path)
    assert same(loaded, explanation)
    for image in range(2):
        assert np.array_equal(loaded.images[image], explanation.images[image])
        assert np.array_equal(np.asarray(loaded.overlay(image)), np.asarray(explanation.overlay(image)))
    loaded.figure(1)
    (single,) = tmp_path.glob("*1.npz")
    assert same(legrad.Explanation.load(single), explanation[1])
    assert same(legrad.Explanation.load(tmp_path / "manifest.json"), explanation)
    assert same(legrad.Explanation.load(str(tmp_path)), loaded)


def test_float64_videos_and_names_that_are_no_utf8(tmp_path):
    explanation = handmade.explanation(
        names=["folder/\udc80.gif"],
        relevance=torch.rand(1, 2, 2, 3, 4, dtype=torch.float64),
        layer_relevance=None,
        scores=torch.rand(1, 2, dtype=torch.float64),
        axes=("frames", "rows", "cols"),
        images=[np.zeros((4, 24, 32, 3), np.uint8)],
        timings=[Timing((0, 3, 5, 7), (0.0, 0.3, 0.5, 0.7), 0.9)],
    )
    loaded = save(explanation, tmp_path)
    assert same(loaded, explanation)
    assert loaded.timings == explanation.timings
    assert loaded.saliency().shape == explanation.saliency().shape


def test_an_original_that_is_a_file_is_named_and_not_copied(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "in" / "cat.png"
    path.parent.mkdir()
    Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)).save(path)
    explainer = legrad.load("embedded")
    explanation = explainer.explain(path, ["a cow", "a pig"])
    explanation.save(tmp_path / "out")
    file = tmp_path / "out" / "cat.npz"
    with np.load(file, allow_pickle=False) as arrays:
        assert set(arrays.files) == {"relevance", "scores", "explanation"}
    loaded = legrad.Explanation.load(file)
    assert same(loaded, explanation)
    assert np.array_equal(loaded.images[0], explanation.images[0])
    moved = path.rename(tmp_path / "out" / "moved.png")
    assert same(legrad.Explanation.load(file), explanation)
    with pytest.raises(legrad.InputError, match=r"the original .*cat\.png is gone or was changed .* put it back"):
        legrad.Explanation.load(file).overlay()
    assert legrad.Explanation.load(file).saliency().shape == (1, 2, 300, 400)  # needs no pixels
    with pytest.raises(legrad.InputError, match="is gone since it was explained"):
        loaded[0].overlay()
    moved.rename(tmp_path / "out" / "unused.png")
    (tmp_path / "out" / "cat.png").unlink()
    (tmp_path / "out" / "unused.png").rename(tmp_path / "out" / "cat.png")
    assert np.array_equal(legrad.Explanation.load(file).images[0], explanation.images[0])  # beside the results


def test_pickles_of_results_from_files(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    explanation = legrad.load("embedded").explain(tmp_path / "a.png", "a cow")
    again = pickle.loads(pickle.dumps(explanation))
    assert isinstance(explanation.images, list)
    assert np.array_equal(again.images[0], explanation.images[0])
    again.save(tmp_path / "out")
    with np.load(tmp_path / "out/a.npz", allow_pickle=False) as arrays:
        assert "pixels" not in arrays.files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.unlink(), "no such file: .*x.npz"),
        (lambda path: path.write_bytes(b""), "x.npz is no NPZ file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), "x.npz is no NPZ file"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05")), "cannot be read"),
        (lambda path: np.savez(path, a=np.zeros(3)), "x.npz is no explanation of legrad"),
        (lambda path: np.savez(path, relevance=np.zeros(3)), "hold no geometry: explain the image again"),
        (lambda path: np.savez(path, explanation=np.array([{}], object)), "cannot be read"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "x.npz is no explanation of legrad"),
        (lambda path: changed(path, version=2), "newer legrad: its format is 2, this one reads up to 1; update"),
        (lambda path: changed(path, format="other"), "x.npz was saved by a legrad"),
        (lambda path: changed(path, labels=["one"]), "x.npz is damaged"),
        (lambda path: changed(path, labels=3), "x.npz is damaged"),
        (lambda path: changed(path, axes=["rows"]), "x.npz is damaged"),
        (lambda path: changed(path, placement={}), "x.npz is damaged"),
        (lambda path: changed(path, relevance=np.zeros((2, 3), np.int64)), "x.npz is damaged"),
        (lambda path: changed(path, scores=np.zeros(7, np.float32)), "x.npz is damaged"),
        (lambda path: changed(path, pixels=np.zeros((2, 2, 3), np.uint8)), "x.npz is damaged"),
        (lambda path: changed(path, predicted=[1, 2]), "x.npz is damaged"),
        (lambda path: changed(path, prompt_independent=None), "x.npz is damaged"),
    ],
    ids=range(19),
)
def test_files_that_are_none_of_ours(tmp_path, make, message):
    handmade.explanation(names=["x.jpg"]).save(tmp_path)
    make(tmp_path / "x.npz")
    with pytest.raises(legrad.InputError, match=message) as told:
        legrad.Explanation.load(tmp_path / "x.npz")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("what", ["absent", "empty", "text", "", 3, "foreign"])
def test_folders_that_hold_no_explanations(tmp_path, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("{}")
    with pytest.raises(legrad.InputError, match=r"no file or folder|holds no explanations|the folder is a path"):
        legrad.Explanation.load(tmp_path / what if isinstance(what, str) and what else what)


def test_results_of_two_methods_in_one_folder(tmp_path):
    handmade.explanation(names=["a.jpg"]).save(tmp_path)
    other = {"model": "none", "method": "rollout"}
    handmade.explanation(names=["b.jpg"], settings=other).save(tmp_path)
    with pytest.raises(legrad.InputError, match=r"explanations of one method become one, got 'legrad' for a\.jpg"):
        legrad.Explanation.load(tmp_path)
    assert legrad.Explanation.load(tmp_path / "b.npz").settings == other


def test_parts_of_an_explanation():
    explanation = handmade.explanation(3, targets=2, labels=[["a", "b"], ["b", "a"], ["c", ""]])
    explanation.valid[2, 1] = False
    assert len(explanation) == 3
    assert bool(explanation)
    assert [part.names for part in explanation] == [[name] for name in explanation.names]
    assert torch.equal(explanation[1].relevance, explanation.relevance[1:2])
    assert explanation[-1].labels == [["c"]]
    assert explanation[1:].names == explanation.names[1:]
    only = explanation["a"]
    assert only.labels == [["a"], ["a"], [""]]
    assert only.valid.tolist() == [[True], [True], [False]]
    assert torch.equal(only.relevance[:2, 0], torch.stack([explanation.relevance[0, 0], explanation.relevance[1, 1]]))
    assert not only.relevance[2].any()
    assert torch.equal(explanation[1]["b"].scores, explanation.scores[1:2, :1])
    assert "a" in explanation
    assert "nothing" not in explanation
    assert same(legrad.Explanation.cat(list(explanation)[:2]), explanation[:2])
    assert explanation["a"].layer_relevance.shape == (3, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (3, "there are 3 images"),
        (-4, "there are 3 images"),
        ("x", "no target 'x'; there are 'target 0', 'target 1'"),
        (slice(5, 9), "no image in slice"),
        (1.5, "image is a whole number, got 1.5"),
        (None, "image is a whole number, got None"),
    ],
    ids=range(6),
)
def test_parts_that_are_not_there(key, message):
    with pytest.raises(legrad.InputError, match=message):
        handmade.explanation(3)[key]


def test_explanations_of_several_grids_and_targets_together():
    a, b = handmade.explanation(1, targets=1, grid=(2, 5)), handmade.explanation(2, targets=3, grid=(4, 3))
    both = legrad.Explanation.cat([a, b])
    assert both.relevance.shape == (3, 3, 4, 5)
    assert both.layer_relevance.shape == (3, 3, 2, 4, 5)
    assert both.valid.tolist() == [[True, False, False]] + [[True] * 3] * 2
    assert same(both[0], a)
    assert same(both[1:], b)
    for wrong in ([], 3, [a, "b"], [a, handmade.explanation(layers=(0, 1))], [a, None]):
        with pytest.raises(legrad.InputError, match=r"no explanations|takes explanations|explanations of one layers"):
            legrad.Explanation.cat(wrong)


def test_a_figure_is_shown(monkeypatch, recwarn):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda image, title=None: shown.append((image.size, title)))
    monkeypatch.setenv("DISPLAY", ":0")
    handmade.explanation().show()
    assert [title for _, title in shown] == ["legrad"]
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.warns(UserWarning, match="there is no screen"):
        handmade.explanation().show()
    with pytest.raises(legrad.InputError, match="no image 4"):
        handmade.explanation().show(4)


def test_originals_of_videos_are_read_again(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    from legrad.inputs.readers import video_reader

    assert video_reader(2)(str(tmp_path / "a.gif")).shape == (2, 8, 8, 3)
