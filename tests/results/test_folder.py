"""The folder of results: its files and its manifest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import handmade
from PIL import Image

import legrad
from legrad import atomic
from legrad.names import fold
from legrad.results import journal
from legrad.results.folder import Folder
from legrad.results.manifest import _FILE_KEYS, Manifest


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
    assert overlays == [f"\u732b-tar--{name}.png" for name in ["a-b", "b", "a-b-2", "a-b-2-2", "x", "\u732b"]]


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


# -- whose files these are ----------------------------------------------------------------------------------------


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def named(folder):
    """Everything that the manifest names, itself included; each is there and is what was written."""
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = set()
    for entry in content["images"]:
        for record in (entry, *entry["targets"]):
            names |= {record[key] for key in _FILE_KEYS if key in record}
    assert names == set(content["files"])
    for name in names:
        assert atomic.fits(folder / name, content["files"][name]), name
    return names | {"manifest.json"}


def put(folder, image, data=b"1", targets=("t",)):
    """One image with one file for itself and one for each target, as ``save`` does it."""
    stem = folder.stem(image, image)
    entry = {"image": image, "figure": folder.write(folder.name(stem, ".png", f"{stem}--figure"), data)}
    entry["targets"] = [{"overlay": folder.write(folder.name(f"{stem}--{t}", ".png"), data)} for t in targets]
    folder.add([entry], {"settings": {}})


def test_files_of_the_user_are_never_touched(tmp_path):
    mine = {"photo.png": b"a photo", "photo--target-0.png": b"another", "manifest.json": b"[" * 200_000}
    for name, data in mine.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "photo.npz").symlink_to(tmp_path / "photo.png")
    for _ in range(2):
        files = handmade.explanation(names=["photo.png"]).save(tmp_path)
        assert sorted(path.name for path in files) == [
            "manifest-2.json",
            "photo--figure.png",
            "photo--target-0-2.png",
            "photo--target-1.png",
            "photo-2.npz",
        ]
        assert {name: (tmp_path / name).read_bytes() for name in mine} == mine
        assert (tmp_path / "photo.npz").is_symlink()
        assert len(list(tmp_path.iterdir())) == 4 + len(files)


def test_a_result_that_the_user_changed_is_the_users(tmp_path):
    handmade.explanation(names=["photo.png"]).save(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"painted over")
    files = handmade.explanation(names=["photo.png"]).save(tmp_path)
    assert (tmp_path / "photo.png").read_bytes() == b"painted over"
    assert tmp_path / "photo--figure.png" in files
    with Folder(tmp_path, clear=True) as folder:
        put(folder, "other")
    assert sorted(listing(tmp_path)) == ["manifest.json", "other--t.png", "other.png", "photo.png"]


def test_a_file_that_comes_in_between_stays(tmp_path):
    with Folder(tmp_path) as folder:
        name = folder.name("a", ".png")
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(legrad.InputError, match=r"cannot write .*a\.png: File exists"):
            folder.write(name, b"ours")
    assert listing(tmp_path) == {"a.png": b"mine"}


def test_saving_in_a_loop_loses_nothing(tmp_path):
    handmade.explanation(names=["a/photo.png"], settings={"method": "legrad"}).save(tmp_path)
    handmade.explanation(names=["b/photo.png"], settings={"method": "gradcam"}).save(tmp_path)
    assert set(listing(tmp_path)) == named(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [(entry["image"], entry["figure"]) for entry in manifest["images"]] == [
        ("a/photo.png", "photo.png"),
        ("b/photo.png", "photo-2.png"),
    ]
    assert manifest["settings"] == {"method": "gradcam"}
    assert [entry.get("settings") for entry in manifest["images"]] == [{"method": "legrad"}, None]
    handmade.explanation(names=["a/photo.png"], targets=1, settings={"method": "rise"}).save(tmp_path)
    assert set(listing(tmp_path)) == named(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {entry["image"]: len(entry["targets"]) for entry in manifest["images"]} == {
        "b/photo.png": 2,
        "a/photo.png": 1,
    }


def test_names_that_are_one_on_some_disks(tmp_path):
    labels = [["Stra\u00dfe", "STRASSE", "caf\u00e9", "cafe\u0301", "nul"]]
    files = handmade.explanation(targets=5, layers=(0,), labels=labels, names=["NUL.png"]).save(tmp_path)
    assert len({fold(path.name) for path in files}) == len(files)
    assert "x-nul.png" in {path.name for path in files}


def test_a_second_writer_is_refused(tmp_path):
    with Folder(tmp_path) as folder:
        put(folder, "a")
        with pytest.raises(legrad.InputError, match=rf"another run \(process {os.getpid()} on .*\) writes into"):
            handmade.explanation().save(tmp_path)
        put(folder, "b")
    assert set(listing(tmp_path)) == named(tmp_path)
    handmade.explanation().save(tmp_path)


def test_old_results_stay_until_new_ones_are_complete(tmp_path, monkeypatch):
    with Folder(tmp_path) as folder:
        put(folder, "a")
        put(folder, "b")
    before = listing(tmp_path)
    write, room = Path.write_bytes, [3]

    def full(path, data):
        room[0] -= 1
        if room[0] < 0:
            write(path, data[:1])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)

    def again():
        with Folder(tmp_path, clear=True) as folder:
            put(folder, "a", b"new")
            put(folder, "c", b"new")

    with pytest.raises(atomic.WriteError, match="No space left"):
        again()
    assert listing(tmp_path) == before
    assert set(before) == named(tmp_path)
    room[0] = 100
    again()
    assert (
        set(listing(tmp_path))
        == named(tmp_path)
        == {"manifest.json", *(f"{n}.png" for n in ("a", "a--t", "c", "c--t"))}
    )


def test_without_old_results_what_is_complete_stays(tmp_path):
    def interrupted():
        with Folder(tmp_path) as folder:
            for name in "abc":
                put(folder, name)
            folder.write(folder.name("d", ".png"), b"half an image")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (
        set(listing(tmp_path))
        == named(tmp_path)
        == {"manifest.json", *(f"{n}{t}.png" for n in "abc" for t in ("", "--t"))}
    )


def test_a_folder_without_results_is_not_left(tmp_path):
    def nothing(root):
        with Folder(root):
            raise legrad.InputError("nothing")

    for root in (tmp_path / "new", tmp_path):
        with pytest.raises(legrad.InputError, match="nothing"):
            nothing(root)
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.exists()


def test_the_manifest_is_written_in_proportion(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        Manifest,
        "write",
        lambda self, *to, write=Manifest.write: (written.append(len(self.entries)), write(self, *to)),
    )
    with Folder(tmp_path) as folder:
        for index in range(100):
            put(folder, f"image-{index}", targets=())
            json.loads(folder.manifest.read_text())
    assert written[-1] == 100
    assert sum(written) <= 3 * 100


@pytest.mark.parametrize("root", ["a\0b", "", None, 7, []])
def test_what_is_no_folder(root):
    with pytest.raises(legrad.InputError, match="the folder is a path, got"):
        handmade.explanation().save(root)


@pytest.mark.parametrize(
    "journal",
    [b"mine", b"{}\n", b'{"format": "other"}\n', b'{"format": "legrad results 1", "staging": "..", "manifest": "x"}\n'],
)
def test_a_journal_of_somebody_else(tmp_path, journal):
    (tmp_path / ".legrad-journal").write_bytes(journal)
    with pytest.raises(legrad.InputError, match="move it away, or save elsewhere"):
        handmade.explanation().save(tmp_path)
    assert listing(tmp_path) == {".legrad-journal": journal}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from legrad import atomic
from legrad.names import fold
from legrad.results.folder import Folder
from legrad.results.manifest import _FILE_KEYS, Manifest
from results.killed import rounds

def kill_after(count):
    def hook(event, arguments):
        nonlocal count
        if event.split(".")[0] in ("os", "open", "shutil"):
            count -= 1
            if count == -1:  # killing is an event too
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

root, steps = Path(sys.argv[1]), 0
while True:
    folder = root / str(steps)
    child = os.fork()
    if not child:
        rounds(Folder, folder, lambda: sys.addaudithook(kill_after(steps)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(steps, os.WEXITSTATUS(status))
        break
    steps += 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children")
def test_killed_at_any_moment(tmp_path):
    """A run that replaces results is killed at each of its system calls; then another run comes."""
    code = KILLED.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=600)
    steps, status = map(int, done.stdout.split())
    assert (status, done.stderr) == (0, "")
    assert steps > 30
    for step in range(steps):
        folder = tmp_path / str(step)
        assert (folder / "mine.png").read_bytes() == b"mine"
        if (folder / "manifest.json").exists():
            named(folder)  # all are there
        with Folder(folder, clear=bool(step % 2)) as again:
            put(again, "z")
        assert set(os.listdir(folder)) == named(folder) | {"mine.png"}, step
        images = {entry["image"] for entry in json.loads((folder / "manifest.json").read_text())["images"]}
        assert images in ({"z"},) if step % 2 else images in ({"z"}, {"a", "b", "z"}, {"mine", "a", "c", "z"}), step


def test_ten_thousand_results_take_their_time_once(tmp_path):
    """No name or image looks at all others: a folder of many results is as quick per image as one of few."""
    looked = [0]

    class Entries(list):
        def __iter__(self):
            looked[0] += len(self)
            return super().__iter__()

    with Folder(tmp_path) as folder:
        for index in range(50):
            put(folder, f"image-{index}", targets=())
    for clear in (False, True):
        with Folder(tmp_path, clear=clear) as folder:
            folder._old.entries = Entries(folder._old.entries)
            for index in range(50):
                put(folder, f"image-{index}", targets=())
            assert looked[0] == 0
    assert set(listing(tmp_path)) == named(tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_killed_run_loses_no_finished_image(tmp_path, resume):
    """The folder as a killed run leaves it is a copy of one in the middle of a run."""
    root = tmp_path / "running"
    names = [f"{index}.png" for index in range(6)]
    if resume:
        handmade.explanation(layers=(0,), names=names[:1]).save(root)
    with Folder(root, resume=resume) as folder:
        for name in names[int(resume) :]:
            handmade.explanation(layers=(0,), names=[name]).save(folder)
        folder.write(folder.name("unfinished", ".png"), b"x")
        shutil.copytree(root, tmp_path / "killed")
        saved = Manifest.read(tmp_path / "killed" / "manifest.json")
    assert len(saved.entries) < len(names)
    mended = journal.mended(tmp_path / "killed")
    assert [entry["image"] for entry in mended.entries] == names
    assert sorted(os.listdir(tmp_path / "killed")) == sorted([*mended.files, "manifest.json"])
    assert mended == Manifest.read(root / "manifest.json")


@pytest.mark.parametrize("name", ["../mine.png", "/mine.png", "a/../../mine.png", "a//mine.png", "./mine.png", ""])
def test_a_manifest_names_nothing_outside_its_folder(tmp_path, name):
    (tmp_path / "mine.png").write_bytes(b"mine")
    root = tmp_path / "out"
    handmade.explanation(layers=(0,), names=["a.png"]).save(root)
    content = json.loads((root / "manifest.json").read_text())
    content["files"][name] = atomic.fingerprint(b"mine")
    content["images"][0]["figure"] = name
    (root / "manifest.json").write_text(json.dumps(content))
    assert name not in Manifest.read(root / "manifest.json").files
    with Folder(root, clear=True) as folder:
        handmade.explanation(layers=(0,), names=["b.png"]).save(folder)
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize("format", ["webp", "jpg"])
def test_formats_and_parts_from_python(tmp_path, format):
    explanation = handmade.explanation(targets=1, layers=(0,), names=["a.png"])
    files = explanation.save(tmp_path / "all", format=format)
    assert [file.suffix for file in files] == [f".{format}", ".npz", f".{format}", ".json"]
    files = explanation.save(tmp_path / "arrays", figures=False, overlays=False)
    assert [file.name for file in files] == ["a.npz", "manifest.json"]
    files = explanation.save(tmp_path / "overlays", figures=False, arrays=False)
    assert [file.suffix for file in files] == [".png", ".json"]
    with pytest.raises(legrad.InputError, match="format is one of 'png', 'jpg', 'webp', got 'tiff'"):
        explanation.save(tmp_path / "none", format="tiff")
    with pytest.raises(legrad.InputError, match="figures is True or False"):
        explanation.save(tmp_path / "none", figures="no")
    assert not (tmp_path / "none").exists()
