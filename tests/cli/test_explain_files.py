"""``legrad explain`` for many files: folders, lists, where results go, and how a run goes on."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import limits
from helpers.commands import assert_error, manifest, photo
from PIL import Image

import legrad

# whether a map is flat or hardly depends on the text is the weights' business
pytestmark = pytest.mark.filterwarnings("ignore:.*(maps (are flat|hardly depend)|model never read)")

DOG = ("-t", "a dog")


def contents(folder):
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def images(folder="legrad-out"):
    return [entry["image"] for entry in manifest(folder)["images"]]


# -- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_means_its_sub_folders_too_and_results_mirror_them(run):
    for name in ("a.png", "Holiday 1/a.png", "Holiday 1/deep/b.png", ".hidden/c.png", "._d.png"):
        photo(f"photos/{name}")
    Path("photos/again").symlink_to("Holiday 1", target_is_directory=True)
    code, out, err = run("explain", "photos", *DOG, "--out", "out")
    assert code == 0
    assert err == "note: of the folder photos this is left out, for its suffix or as a link: again/\n"
    figures = [entry["figure"] for entry in manifest("out")["images"]]
    assert figures == ["a.png", "Holiday 1/a.png", "Holiday 1/deep/b.png"]
    with np.load("out/Holiday 1/deep/b.npz", allow_pickle=False) as arrays:
        assert arrays["relevance"].shape == (1, 12, 12)
    assert "Holiday 1/a--a-dog.png" in "".join(out.split("\n"))
    # nothing but what the manifest names
    written = {str(Path(name).relative_to("out")) for name in contents("out")}
    assert written == {*manifest("out")["files"], "manifest.json"}


def test_replaced_results_take_their_empty_folders_along(run):
    photo("photos/sub/a.png")
    photo("photos/b.png")
    run("explain", "photos", *DOG)
    Path("legrad-out/sub/mine.txt").write_text("mine")
    photo("photos/other/a.png")
    run("explain", "photos/other", "photos/b.png", *DOG, "--overwrite")
    assert sorted(os.listdir("legrad-out/sub")) == ["mine.txt"]
    Path("legrad-out/sub/mine.txt").unlink()
    Path("legrad-out/sub").rmdir()
    run("explain", "photos", *DOG, "--overwrite")
    run("explain", "photos/b.png", *DOG, "--overwrite")
    assert sorted(os.listdir("legrad-out")) == ["b--a-dog.png", "b.npz", "b.png", "manifest.json", "table.csv"]


def test_a_file_or_link_in_the_place_of_a_folder_stays(run):
    photo("photos/sub/a.png")
    photo("photos/tie/a.png")
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    Path("out/sub").write_text("mine")
    Path("out/tie").symlink_to(Path("elsewhere").resolve(), target_is_directory=True)
    code, _, _ = run("explain", "photos", *DOG, "--out", "out")
    assert code == 0
    assert [entry["figure"] for entry in manifest("out")["images"]] == ["sub-2/a.png", "tie-2/a.png"]
    assert Path("out/sub").read_text() == "mine"
    assert os.listdir("elsewhere") == []


def test_results_inside_the_folder_are_not_explained(run):
    photo("photos/sub/a.png")
    run("explain", "photos", *DOG, "--out", "photos/maps")
    code, _, err = run("explain", "photos", *DOG, "--out", "other")
    assert (code, err) == (0, "warning: 2 images are results of an earlier run and left out\n")
    assert images("other") == ["photos/sub/a.png"]


# -- where results go -----------------------------------------------------------------------------------------------


def test_overwrite_and_resume_exclude_each_other(run, monkeypatch):
    monkeypatch.setattr(legrad, "load", None)
    photo("a.png")
    assert_error(run("explain", "a.png", *DOG, "--overwrite", "--resume"), "exclude each other")


def test_an_error_says_nothing_of_another_folder(run):
    photo("a.png")
    run("explain", "a.png", *DOG)
    assert_error(run("explain", "a.png", *DOG, "--layers", "7"), "6 blocks")
    assert sorted(os.listdir()) == ["a.png", "legrad-out"]


def test_resume_explains_what_is_missing(run, monkeypatch, explainer):
    for name in "abc":
        photo(f"photos/{name}.png")
    Path("photos/b.png").write_text("not an image")
    assert run("explain", "photos", *DOG, "--resume")[0] == 1  # nothing there yet: a run like any other
    (failure,) = manifest()["failures"]
    assert failure["image"] == "photos/b.png"
    assert failure["error"].startswith("photos/b.png is not an image that Pillow can read")
    before = contents("legrad-out")
    photo("photos/b.png")
    photo("photos/sub/d.png")
    explained = []
    original = explainer.explain

    def explain(images, *arguments, **options):
        explained.append(len(images))
        return original(images, *arguments, **options)

    monkeypatch.setattr(explainer, "explain", explain)
    code, out, err = run("explain", "photos", *DOG, "--resume")
    assert (code, err, explained) == (0, "", [2])
    assert "2 images were finished before, 2 are new" in out
    assert sorted(images()) == ["photos/a.png", "photos/b.png", "photos/c.png", "photos/sub/d.png"]
    assert "failures" not in manifest()
    after = contents("legrad-out")
    for name in before.keys() - {"legrad-out/manifest.json", "legrad-out/table.csv"}:
        assert after[name] == before[name]
    with open("legrad-out/table.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert run("explain", "photos", *DOG, "--resume")[0] == 0
    assert explained == [2]
    assert contents("legrad-out") == after


def test_resume_explains_a_changed_image_again(run):
    photo("a.png")
    photo("b.png")
    run("explain", "a.png", "b.png", *DOG)
    photo("a.png", size=(50, 40), seed=3)
    assert run("explain", "a.png", "b.png", *DOG, "--resume")[0] == 0
    sizes = {entry["image"]: entry["size"] for entry in manifest()["images"]}
    assert sizes == {"a.png": [40, 50], "b.png": [43, 64]}
    assert sorted(os.listdir("legrad-out")) == sorted([*manifest()["files"], "manifest.json"])


def test_resume_is_for_the_same_options(run):
    photo("a.png")
    run("explain", "a.png", *DOG)
    result = run("explain", "a.png", "-t", "a cat", "--resume")
    assert_error(result, "text was ['a dog'] in legrad-out, and is ['a cat'] now")
    assert_error(run("explain", "a.png", *DOG, "--layers", "2", "--resume"), "layers was not given in")
    legrad.load("embedded").explain("a.png", "a dog").save("python")
    assert_error(run("explain", "a.png", *DOG, "--out", "python", "--resume"), "results of another command")


def interrupted_at(explainer, monkeypatch, width):
    original = explainer.explain

    def explain(images, targets, **options):
        if any(image.width == width for image in images):
            raise KeyboardInterrupt
        return original(images, targets, **options)

    monkeypatch.setattr(explainer, "explain", explain)


def test_an_interrupted_resume_keeps_what_it_finished(run, monkeypatch, explainer):
    names = [f"{index}.png" for index in range(17)]
    for index, name in enumerate(names):
        Image.new("RGB", (33 if index == 16 else 40, 30)).save(name)
    run("explain", names[0], *DOG)
    with monkeypatch.context() as patch:
        interrupted_at(explainer, patch, 33)
        code, _, err = run("explain", *names, *DOG, "--resume")
    assert (code, err) == (130, "interrupted: 8 images are in legrad-out; the same command with --resume goes on\n")
    assert images() == names[:9]
    assert run("explain", *names, *DOG, "--resume")[0] == 0
    assert images() == names
    assert sorted(os.listdir("legrad-out")) == sorted([*manifest()["files"], "manifest.json"])


# -- lists ----------------------------------------------------------------------------------------------------------


def targets(folder="legrad-out"):
    return {entry["image"]: [record["target"] for record in entry["targets"]] for entry in manifest(folder)["images"]}


def test_a_list_of_images(run):
    for name in ("a.png", "lists/b.png", "c d.png"):
        photo(name)
    Path("lists/list.txt").write_text("a.png\n\nb.png\nmissing.png\n", encoding="utf-8")
    code, _, err = run("explain", "c d.png", "--from", "lists/list.txt", *DOG)
    assert (code, err) == (1, "error: no such image: missing.png\n")
    assert images() == ["c d.png", "a.png", "lists/b.png"]
    assert manifest()["failures"] == [{"image": "missing.png", "error": "no such image: missing.png"}]


@pytest.mark.parametrize("arguments", [["-"], ["--from", "-"]])
@pytest.mark.parametrize("data", [b"a.png\nb.png\n", b"a.png\0b.png\0"])
def test_the_standard_input(run, monkeypatch, arguments, data):
    photo("a.png")
    photo("b.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("explain", *arguments, *DOG)[0] == 0
    assert images() == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,text\na.png,a cow\nb.png,a pig\na.png,a guitar\n"),
        ("t.csv", "id,texts,path\n1,a cow|a guitar,a.png\n2,a pig,b.png\n"),
        ("t.csv", "a.png,a cow,a guitar\nb.png,a pig,\n"),
        ("t.tsv", "image\ttext1\ttext2\na.png\ta cow\ta guitar\nb.png\ta pig\t\n"),
        ("t.txt", "image,text\na.png,a cow|a guitar\nb.png,a pig\n"),
        ("t.jsonl", '{"image": "a.png", "texts": ["a cow", "a guitar"]}\n{"image": "b.png", "text": "a pig"}\n'),
        ("t.txt", '{"image": "a.png", "texts": ["a cow", "a guitar"]}\n{"path": "b.png", "prompt": "a pig"}\n'),
    ],
)
def test_a_table_of_images_and_their_texts(run, explainer, name, text):
    photo("a.png")
    photo("b.png", seed=1)
    Path(name).write_text(text, encoding="utf-8")
    code, _, err = run("explain", "--from", name)
    assert (code, err) == (0, "")
    assert targets() == {"a.png": ["a cow", "a guitar"], "b.png": ["a pig"]}
    expected = explainer.explain("a.png", ["a cow", "a guitar"])
    with np.load("legrad-out/a.npz", allow_pickle=False) as arrays:
        assert limits.error(arrays["relevance"], expected.relevance[0].numpy()) < limits.FLOAT32


def test_a_table_with_texts_for_all(run):
    photo("a.png")
    photo("b.png")
    Path("t.csv").write_text("image,text\na.png,a cow\nb.png,\n")
    assert run("explain", "--from", "t.csv", *DOG)[0] == 0
    assert targets() == {"a.png": ["a cow", "a dog"], "b.png": ["a dog"]}
    assert run("explain", "--from", "t.csv", *DOG, "--resume")[0] == 0
    code, _, err = run("explain", "--from", "t.csv", "--out", "b")
    assert (code, err) == (1, "error: b.png: the list has no text for this image; give one, or -t for all\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.txt", None, "--from: cannot read absent.txt: "),
        ("e.txt", "\n \n", "--from: there is no image in e.txt"),
        ("e.csv", "image,text\n", "--from: there is no image in e.csv"),
        ("e.jsonl", '{"image": "a.png"}\n{"text": "a cow"}', 'e.jsonl, line 2: expected {"image": "a.jpg"'),
        ("e.jsonl", "{", "e.jsonl, line 1 is no JSON"),
        ("e.csv", 'image,text\na.png,"a cow', "e.csv is no table"),
        ("e.csv", "image,text\n,a cow", "row 2 of e.csv names no image"),
    ],
)
def test_lists_that_cannot_be_read(run, monkeypatch, name, text, message):
    monkeypatch.setattr(legrad, "load", None)
    if text is not None:
        Path(name).write_text(text)
    assert_error(run("explain", "--from", name, *DOG), message)


# -- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("PNG", "PNG")])
def test_formats(run, format, kind):
    photo("a.png")
    assert run("explain", "a.png", *DOG, "--format", format, "--per-layer")[0] == 0
    ending = format.lower()
    overlay, figure = f"a--a-dog.{ending}", f"a.{ending}"
    for name in (overlay, figure, f"a--a-dog--layers.{ending}"):
        with Image.open(Path("legrad-out") / name) as image:
            assert image.format == kind
    assert manifest()["images"][0]["figure"] == figure


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--no-figures"], ["a--a-dog.png", "a.npz"]),
        (["--arrays", "only"], ["a.npz"]),
        (["--arrays", "no"], ["a--a-dog.png", "a.png"]),
        (["--no-figures", "--arrays", "no"], ["a--a-dog.png"]),
    ],
)
def test_what_is_written(run, options, names):
    photo("a.png")
    code, out, err = run("explain", "a.png", *DOG, *options)
    assert (code, err) == (0, "")
    assert sorted(os.listdir("legrad-out")) == sorted([*names, "manifest.json", "table.csv"])
    assert names[0] in out
    assert run("explain", "a.png", *DOG, *options, "--overwrite")[0] == 0
    assert sorted(os.listdir("legrad-out")) == sorted([*names, "manifest.json", "table.csv"])


def test_nothing_is_drawn_for_arrays_only(run, monkeypatch):
    monkeypatch.setattr(legrad.Explanation, "view", None)
    photo("a.png")
    assert run("explain", "a.png", *DOG, "--arrays", "only")[0] == 0


def test_the_end_of_a_large_run_is_short(run):
    texts = [part for index in range(11) for part in ("-t", f"thing {index}")]
    photo("a.png")
    photo("b.png")
    code, out, _ = run("explain", "a.png", "b.png", *texts, "--no-figures")
    assert code == 0
    assert out.count("thing") == 20 + 20  # target and overlay
    assert "... and 2 more rows in legrad-out/table.csv" in out
    with open("legrad-out/table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows] == [f"thing {index}" for index in range(11)] * 2
    records = [record for entry in manifest()["images"] for record in entry["targets"]]
    assert [float(row["score"]) for row in rows] == [record["score"] for record in records]


def test_json(run):
    photo("a.png")
    Path("b.png").write_text("not an image")
    code, out, err = run("explain", "a.png", "b.png", *DOG, "--json")
    content = json.loads(out)
    assert (code, err.count("\n")) == (1, 1)
    assert content["images"] == manifest()["images"]
    assert content["failures"] == manifest()["failures"]
    assert (content["folder"], content["manifest"]) == ("legrad-out", "legrad-out/manifest.json")


def test_maps_that_share_their_range(run, explainer):
    photo("a.png")
    options = ["-t", "a dog", "-t", "a hot air balloon", "--normalize", "shared"]
    assert run("explain", "a.png", *options)[0] == 0
    explanation = explainer.explain("a.png", options[1:4:2])
    for target, record in enumerate(manifest()["images"][0]["targets"]):
        with Image.open(Path("legrad-out") / record["overlay"]) as overlay:
            shared = explanation.overlay(0, target, normalize="shared")
            assert np.array_equal(np.asarray(overlay), np.asarray(shared))


def test_a_null_target(run, explainer):
    photo("a.png")
    assert run("explain", "a.png", *DOG, "--null-target", "a photo of a")[0] == 0
    expected = explainer.explain("a.png", "a dog", null_target="a photo of a")
    with np.load("legrad-out/a.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["relevance"], expected.relevance[0].numpy())


def test_type_and_device_reach_the_model(run, monkeypatch, explainer):
    calls = []
    monkeypatch.setattr(legrad, "load", lambda *names, **options: calls.append((names, options)) or explainer)
    photo("a.png")
    run("explain", "a.png", *DOG, "--dtype", "float16", "--device", "cpu")
    assert calls == [(("embedded",), {"device": "cpu", "dtype": "float16"})]


# -- names forgiven -------------------------------------------------------------------------------------------------


def test_words_in_another_case(run):
    photo("a.png")
    code, _, err = run("explain", "a.png", *DOG, "--method", "Grad-CAM", "--fit", "PAD", "--layers", "1")
    assert (code, err) == (0, "")
    assert (manifest()["settings"]["method"], manifest()["settings"]["fit"]) == ("gradcam", "pad")


def test_a_list_of_names_in_one(run, monkeypatch):
    monkeypatch.setattr(legrad, "load", None)
    photo("a.png")
    result = run("explain", "a.png", "--zeroshot", "cat, red fox")
    assert_error(result, "got 'cat, red fox': was a list meant? Then write --zeroshot cat --zeroshot 'red fox'")


def test_json_of_failures_only(run):
    Path("b.png").write_text("not an image")
    code, out, err = run("explain", "b.png", *DOG, "--json")
    content = json.loads(out)
    assert (code, err.count("\n"), content["images"], content["manifest"]) == (2, 1, [], None)
    assert [failure["image"] for failure in content["failures"]] == ["b.png"]


@pytest.mark.parametrize("arguments", [["methods"], ["models", "torchvision:vit_b"], ["doctor", "embedded"]])
def test_lists_as_json(run, arguments):
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert isinstance(content, list)
    assert len(content) > 1
