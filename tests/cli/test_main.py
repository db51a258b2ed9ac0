"""The command line end to end, offline, with the embedded model (whose weights are not judged here)."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import limits
from helpers.commands import assert_error, manifest, photo
from PIL import Image

import legrad
from legrad.cli import batches, consoles
from legrad.cli.options import parse_layers, parse_size
from legrad.results.folder import Folder

# whether a map is flat or hardly depends on the text is the weights' business
pytestmark = pytest.mark.filterwarnings("ignore:.*(maps (are flat|hardly depend)|model never read)")

TEXTS = ("-t", "a hot air balloon", "-t", "a guitar")


# -- a real process -----------------------------------------------------------------------------------------------


def shell(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "legrad.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"},
    )


def test_the_readme_call_on_any_jpeg(tmp_path):
    photo(tmp_path / "photo.jpg", size=(640, 427))
    done = shell("explain", "photo.jpg", *TEXTS, cwd=tmp_path)
    assert done.returncode == 0
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    assert "a hot air balloon" in done.stdout
    assert "figure: legrad-out/photo.png" in done.stdout
    overlays = ["photo--a-guitar.png", "photo--a-hot-air-balloon.png"]
    names = ["manifest.json", *overlays, "photo.npz", "photo.png", "table.csv"]
    assert sorted(path.name for path in (tmp_path / "legrad-out").iterdir()) == names
    with Image.open(tmp_path / "legrad-out" / "photo--a-guitar.png") as overlay:
        assert overlay.size == (640, 427)


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = shell("explain", "absent.jpg", "-t", "a dog", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no such image: absent.jpg\n"
    assert not list(tmp_path.iterdir())


# -- images -----------------------------------------------------------------------------------------------------


def test_nothing_given_explains_the_sample(run):
    code, out, err = run("explain")
    assert (code, err) == (0, "")
    (entry,) = manifest()["images"]
    assert entry["image"] == str(legrad.embedded.SAMPLE)
    names = [f"a photo of a {name}" for name in legrad.embedded.sample_names()]
    assert [record["target"] for record in entry["targets"]] == names
    assert len(names) >= 2
    assert "all files: legrad-out/manifest.json" in out


def test_sample_with_a_text(run):
    code, _, _ = run("explain", "-t", "a guitar")
    assert code == 0
    assert [record["target"] for record in manifest()["images"][0]["targets"]] == ["a guitar"]


def test_one_image_two_texts(run, explainer):
    photo("photo.png")
    code, out, err = run("explain", "photo.png", *TEXTS, "--out", "results/new")
    assert (code, err) == (0, "")
    written = manifest("results/new")
    (entry,) = written["images"]
    assert entry["size"] == [43, 64]
    assert [record["target"] for record in entry["targets"]] == list(TEXTS[1::2])
    # the same numbers as from Python
    expected = explainer.explain("photo.png", list(TEXTS[1::2]))
    with np.load("results/new/photo.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["relevance"], expected.relevance[0].numpy())
    assert limits.close([record["score"] for record in entry["targets"]], expected.scores[0])
    for record in entry["targets"]:
        assert f"{record['score']:.3f}" in out
    assert written["settings"] == json.loads(json.dumps(expected.settings))
    assert written["settings"]["model"] == "embedded"
    assert written["settings"]["layers"] == list(range(6))
    assert set(written["settings"]["versions"]) == {"legrad", "torch", "open_clip"}


def test_folder_and_glob(run):
    # more images than one batch
    paths = [photo(f"photos/{i}.png", seed=i) for i in range(batches.BATCH + 1)]
    photo("photos/deeper/x.webp")
    code, out, _ = run("explain", "photos", "-t", "a dog", "--out", "a")
    assert code == 0
    assert [entry["image"] for entry in manifest("a")["images"]] == [*map(str, paths), "photos/deeper/x.webp"]
    assert f"and {len(paths) - 4} more figures" in out
    code, _, _ = run("explain", "photos/[12].png", "photos/**/*.webp", "-t", "a dog", "--out", "b")
    assert code == 0
    names = [Path(entry["image"]).name for entry in manifest("b")["images"]]
    assert names == ["1.png", "2.png", "x.webp"]


def test_same_names_in_two_folders(run):
    paths = [photo("a/photo.png"), photo("b/photo.png", seed=1)]
    code, _, _ = run("explain", *paths, "-t", "a dog")
    assert code == 0
    assert [entry["figure"] for entry in manifest()["images"]] == ["photo.png", "photo-2.png"]


@pytest.mark.parametrize("source", ["absent.png", "*.png", "empty", ""])
def test_nothing_to_explain(run, source):
    Path("empty").mkdir()
    assert_error(run("explain", source, "-t", "a dog"), source)
    assert not Path("legrad-out").exists()


def test_one_broken_image_among_good_ones(run):
    folder = "a-long-folder-name-" * 6  # messages are not wrapped at the terminal's width
    good = [photo(f"{folder}/a.png"), photo(f"{folder}/c.png")]
    Path(f"{folder}/b.png").write_text("not an image")
    code, out, err = run("explain", folder, "-t", "a dog")
    assert code == 1
    assert err.startswith(f"error: {folder}/b.png is not an image that Pillow can read")
    assert err.count("\n") == 1
    assert [entry["image"] for entry in manifest()["images"]] == [str(path) for path in good]
    assert "a.png" in out
    assert "c.png" in out


def test_only_broken_images(run):
    Path("a.png").write_text("not an image")
    assert_error(run("explain", "a.png", "-t", "a dog"), "a.png is not an image")


def test_odd_names(run):
    name = "[red] :cat: \u732b.png"
    photo(name)
    code, out, err = run("explain", name, "-t", "[b] :dog: \u72ac /../x")
    assert (code, err) == (0, "")
    assert ":cat:" in out
    assert ":dog:" in out
    assert "[red]" in out
    assert "[b]" in out
    assert manifest()["images"][0]["targets"][0]["overlay"] == "red-cat-\u732b--b-dog-\u72ac-x.png"
    assert_error(run("explain", "[red] :dog:.png", "-t", "a dog"), "[red] :dog:.png")


@pytest.mark.skipif(sys.platform != "linux", reason="only there are file names bytes")
def test_a_file_name_that_is_no_utf8(run):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        photo(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    code, out, err = run("explain", name, "-t", "a dog")
    assert (code, err) == (0, "")
    assert r"caf\udce9.png" in out
    assert manifest()["images"][0]["image"] == name


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [("2", [4, 5]), ("0,3,-1", [0, 3, 5]), ("-1,", [5])])
def test_layers(run, given, expected):
    photo("a.png")
    code, _, _ = run("explain", "a.png", "-t", "a dog", "--layers", given)
    assert code == 0
    assert manifest()["settings"]["layers"] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", "--layers takes a number or a list such as 0,3,-1, got 'x'"),
        ("1,x", "got '1,x'"),
        ("0", "layers=0 but the model has 6 blocks"),
        ("-1", "for one block, counted from the end, add a comma: '-1,'"),
        ("7", "6 blocks"),
        ("0,6", "layer 6"),
        ("5,-1", "twice"),
        (",", "empty"),
    ],
)
def test_wrong_layers(run, given, message):
    photo("a.png")
    assert_error(run("explain", "a.png", "-t", "a dog", "--layers", given), message)


@pytest.mark.parametrize(
    ("given", "size", "grid"),
    [("64", [64, 64], [4, 4]), ("64x96", [64, 96], [4, 6]), ("256X192", [256, 192], [16, 12])],
)
def test_size(run, given, size, grid):
    photo("a.png")
    code, _, _ = run("explain", "a.png", "-t", "a dog", "--size", given)
    assert code == 0
    assert manifest()["settings"]["input_size"] == size
    entry = manifest()["images"][0]
    assert entry["shapes"]["relevance"] == [1, *grid]
    with Image.open(Path("legrad-out") / entry["targets"][0]["overlay"]) as overlay:
        assert overlay.size == (64, 43)


@pytest.mark.parametrize("given", ["abc", "256x", "x", "1x2x3", "0", "-5", "256x0", "2.5", "8"])
def test_wrong_size(run, given):
    photo("a.png")
    assert_error(run("explain", "a.png", "-t", "a dog", "--size", given), "patch" if given == "8" else "size")


def test_readout(run):
    photo("a.png")
    for readout in ("native", "published"):
        code, _, _ = run("explain", "a.png", "-t", "a dog", "--readout", readout, "--out", readout)
        assert code == 0
        assert manifest(readout)["settings"]["readout"] == readout
    maps = [np.load(f"{readout}/a.npz", allow_pickle=False)["relevance"] for readout in ("native", "published")]
    assert limits.error(*maps) > limits.DIFFERENT


def test_fit_pad(run):
    photo("a.png", size=(96, 32))
    code, _, _ = run("explain", "a.png", "-t", "a dog", "--fit", "pad")
    assert code == 0
    assert manifest()["settings"]["fit"] == "pad"
    photo("strip.png", size=(2000, 1))
    assert_error(run("explain", "strip.png", "-t", "a dog", "--fit", "pad"), "1 x 2000 pixels is too thin")


@pytest.mark.parametrize("option", ["--readout", "--fit", "--method"])
def test_wrong_choices(run, option):
    photo("a.png")
    assert_error(run("explain", "a.png", "-t", "a dog", option, "other"), f"{option[2:]} is one of", "'other'")


def test_wrong_colour_map(run):
    photo("a.png")
    assert_error(run("explain", "a.png", "-t", "a dog", "--cmap", "rainbows"), "no colour map 'rainbows'")


def test_out_is_a_file(run):
    photo("a.png")
    Path("legrad-out").touch()
    assert_error(run("explain", "a.png", "-t", "a dog"), "cannot write into legrad-out")


def test_per_layer(run):
    photo("a.png")
    code, _, _ = run("explain", "a.png", "-t", "a dog", "--per-layer", "--layers", "2")
    assert code == 0
    entry = manifest()["images"][0]
    assert entry["shapes"]["layer_relevance"] == [1, 2, 12, 12]
    assert (Path("legrad-out") / entry["targets"][0]["layers_figure"]).is_file()


@pytest.mark.filterwarnings("always:3 of 4")
def test_a_warning_is_one_line(run, explainer, monkeypatch):
    explain = explainer.explain

    def warning(*arguments, **options):
        warnings.warn("3 of 4\nproblems", legrad.FlatMapWarning, stacklevel=1)
        return explain(*arguments, **options)

    monkeypatch.setattr(explainer, "explain", warning)
    photo("a.png")
    code, _, err = run("explain", "a.png", "-t", "a dog")
    assert (code, err) == (0, "warning: 3 of 4 problems\n")
    assert warnings.showwarning is not consoles.print_warning


# -- targets and models -------------------------------------------------------------------------------------------


def test_no_target(run):
    photo("a.png")
    assert_error(run("explain", "a.png"), "say what to look for: -t 'a photo of a dog'")


def test_empty_text(run):
    photo("a.png")
    assert_error(run("explain", "a.png", "-t", " "), "--text", "empty")


@pytest.mark.parametrize("given", ["3", "-1"])
def test_a_class_of_an_image_text_model(run, given):
    photo("a.png")
    assert_error(run("explain", "a.png", "--class", given), "--class needs a classifier", "use -t")


def test_predicted_of_an_image_text_model(run):
    photo("a.png")
    assert_error(run("explain", "a.png", "--predicted"), "PREDICTED needs a classifier")


def test_classes_that_look_like_numbers(run, explainer, monkeypatch):
    asked = []

    def explain(images, targets, **_):
        asked.extend(targets)
        raise legrad.InputError("enough")

    monkeypatch.setattr(explainer, "explain", explain)
    classifier = replace(explainer._adapter, anatomy=replace(explainer.anatomy, output="logits"))
    monkeypatch.setattr(explainer, "_adapter", classifier)
    photo("a.png")
    numbers = ["7", "-1", "--5", "\u00b2", "tabby cat"]
    arguments = [argument for number in numbers for argument in ("--class", number)]
    assert_error(run("explain", "a.png", *arguments, "--predicted", "-t", "a dog"), "enough")
    assert asked == ["a dog", 7, -1, "--5", "\u00b2", "tabby cat", legrad.PREDICTED]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nonsense", "unknown model 'nonsense'; expected 'embedded'"),
        ("resnet:50", "unknown model 'resnet:50'"),
        ("embedded:x", "unknown model 'embedded:x'"),
        ("open_clip:ViT-B-17/openai", "no model 'ViT-B-17'; nearest: "),
        ("open_clip:ViT-B-32", "say which weights of ViT-B-32"),
    ],
)
def test_unknown_model(run, model, message):
    assert_error(run("explain", "-t", "a dog", "--model", model), message)


def test_unknown_weights(run):
    assert_error(run("explain", "-t", "a dog", "--model", "open_clip:ViT-B-32/mine"), "no weights 'mine'")


def test_a_convolutional_network_is_refused_before_any_download(run, monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "create_model", None)
    assert_error(run("explain", "-t", "a dog", "--model", "open_clip:RN50/openai"), "RN50 is a ResNet, not a ViT")


def test_models(run, monkeypatch):
    import open_clip

    monkeypatch.setattr(open_clip, "create_model", None)
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert "embedded" in out
    # no name is cut, whatever the terminal's width
    for name, tag in open_clip.list_pretrained():
        assert f" open_clip:{name}/{tag} " in out
    verdicts = {words[1]: words[3] for words in map(str.split, out.splitlines()) if len(words) > 3}
    assert verdicts["open_clip:RN50/openai"] == "not"
    assert verdicts["open_clip:ViT-B-32/openai"] == "supported"


def test_models_that_match(run):
    code, out, _ = run("models", "SIGlip")
    assert code == 0
    assert "open_clip:ViT-B-16-SigLIP/webli" in out
    assert "RN50" not in out
    assert "embedded" not in out
    assert_error(run("models", "no such thing"), "no model's name contains 'no such thing'")


def test_version(run):
    assert run("--version") == (0, f"legrad {legrad.__version__}\n", "")


def test_help(run):
    for arguments in (["--help"], ["explain", "--help"], ["models", "--help"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "Usage" in out
    assert run()[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "--nonsense"], "No such option: --nonsense"),
        (["explain", "--\x1b[31mred"], r"No such option: --\x1b[31mred"),
        (["exlain"], "No such command 'exlain'. Did you mean 'explain'?"),
        (["explain", "a.png", "--size"], "Option '--size' requires an argument"),
        (["bench", "speed", "--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_one_plain_line(run, arguments, message):
    assert_error(run(*arguments), message)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("3", 3), ("0,3,-1", [0, 3, -1]), ("-1,", [-1]), (" 2 , 3 ", [2, 3])]
)
def test_parse_layers(text, expected):
    assert parse_layers(text) == expected


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("448", 448), ("384x512", (384, 512)), ("1X2", (1, 2))])
def test_parse_size(text, expected):
    assert parse_size(text) == expected


def test_an_image_that_cannot_be_explained_does_not_stop_the_others(run, monkeypatch, explainer):
    original = explainer.explain

    def explain(images, targets, **options):
        if any(image.width == 33 for image in images):
            raise legrad.InputError("33 is not a number")
        return original(images, targets, **options)

    monkeypatch.setattr(explainer, "explain", explain)
    for name, width in (("a", 40), ("b", 33), ("c", 50)):
        photo(f"{name}.png", size=(width, 30))
    code, _, err = run("explain", "a.png", "b.png", "c.png", "-t", "a dog", "--model", "embedded")
    assert code == 1
    assert err == "error: b.png: 33 is not a number\n"
    assert [entry["image"] for entry in manifest()["images"]] == ["a.png", "c.png"]


def test_a_wrong_target_is_told_once(run):
    photo("a.png")
    photo("b.png")
    assert_error(run("explain", "a.png", "b.png", "-t", " "), "--text", "texts that say something")


# -- more targets, and exit codes ---------------------------------------------------------------------------------


def test_similar_contrast_and_zeroshot(run):
    photo("a.png")
    photo("b.png", seed=1)
    options = ["--similar", "b.png", "--contrast", "a cat", "a dog", "--zeroshot", "cow", "--zeroshot", "pig"]
    code, _, err = run("explain", "a.png", *options)
    assert (code, err) == (0, "")
    names = [record["target"] for record in manifest()["images"][0]["targets"]]
    assert names[0] == "similar to b"
    assert names[1] in ("cow", "pig")
    assert names[2:] == ["a cat rather than a dog"]
    assert_error(run("explain", "a.png", "--similar", "absent.png"), "--similar: no such image: absent.png")


def test_nothing_done_and_something_done_differ(run):
    photo("good.png")
    Path("a.png").write_text("not an image")
    Path("b.gif").write_text("not an image")
    assert run("explain", "good.png", "a.png", "-t", "a dog")[0] == 1
    for broken in (["a.png"], ["b.gif"], ["a.png", "b.gif"]):
        code, out, err = run("explain", *broken, "-t", "a dog")
        assert (code, out, err.count("error: ")) == (2, "", len(broken))


@pytest.mark.parametrize(
    "wrong",
    [["--layers", "x"], ["--size", "x"], ["--fit", "x"], ["--cmap", "x"], ["--readout", "x"], ["--similar", "x"]],
)
def test_options_are_checked_before_a_model_is_loaded(run, monkeypatch, wrong):
    monkeypatch.setattr(legrad, "load", None)
    photo("a.png")
    assert_error(run("explain", "a.png", "-t", "a dog", *wrong), "'x'" if wrong[0] != "--similar" else "x")


def test_an_unknown_library(run):
    assert_error(
        run("models", "--library", "foo"), "--library is one of 'embedded', 'open_clip', 'timm', ", "got 'foo'"
    )


def test_a_reused_folder(run):
    photo("a.png")
    photo("b.png")
    run("explain", "a.png", "-t", "a dog")
    before = {path.name: path.read_bytes() for path in Path("legrad-out").iterdir()}
    code, out, err = run("explain", "b.png", "-t", "a dog")
    assert code == 0
    assert err.startswith(
        "note: legrad-out holds results of an earlier run, which stay: these go to legrad-out-2 (--over"
    )
    assert err.count("\n") == 1
    assert "all files: legrad-out-2/manifest.json" in out
    assert {path.name: path.read_bytes() for path in Path("legrad-out").iterdir()} == before
    names = ["b--a-dog.png", "b.npz", "b.png", "manifest.json", "table.csv"]
    assert sorted(os.listdir("legrad-out-2")) == names
    run("explain", "b.png", "-t", "a dog")
    assert sorted(os.listdir()) == ["a.png", "b.png", "legrad-out", "legrad-out-2", "legrad-out-3"]
    assert run("explain", "b.png", "-t", "a dog", "--overwrite")[::2] == (0, "")
    assert sorted(os.listdir("legrad-out")) == names


def test_equal_names_are_shown_with_their_folders(run):
    photo("x/a.png")
    photo("y/a.png")
    _, out, _ = run("explain", "x/a.png", "y/a.png", "-t", "a dog")
    assert "x/a.png" in out
    assert "y/a.png" in out


def test_methods_are_listed(run):
    from legrad.methods import METHODS

    code, out, _ = run("methods")
    assert code == 0
    rows = [line.split()[1] for line in out.splitlines() if line.startswith(("│", "┃"))]
    assert set(METHODS) <= set(rows)
    assert "arXiv:2404.03214" in "".join(out.split("│")).replace(" ", "").replace("\n", "")


def test_another_method(run):
    photo("a.png")
    code, _, _ = run("explain", "a.png", "-t", "a dog", "--method", "gradcam", "--layers", "1")
    assert code == 0
    assert manifest()["settings"]["method"] == "gradcam"
    assert_error(
        run("explain", "a.png", "-t", "a dog", "--method", "lrp", "--layers", "2"),
        "method 'lrp' cannot use layers: it has no layers to choose from",
    )


def test_help_version_and_completion_load_no_torch(loaded_by):
    """What is heavy comes when a command runs."""
    heavy = {"torch", "numpy", "PIL", "timm", "open_clip", "transformers", "torchvision", "matplotlib"}
    assert not heavy & loaded_by("import legrad.cli.main")
    for arguments in (["--help"], ["--version"], ["methods"], ["explain", "--help"], ["bench", "--help"]):
        call = f"import sys; sys.argv = ['legrad', *{arguments}]\nimport contextlib, io, legrad.cli.main as cli"
        call += "\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): cli.main()"
        assert not heavy & loaded_by(call), arguments
    completion = "import os, sys\nos.environ |= {'_LEGRAD_COMPLETE': 'complete_bash', 'COMP_WORDS': 'legrad ex'}"
    completion += (
        "\nos.environ['COMP_CWORD'] = '1'; sys.argv = ['legrad']\nimport contextlib, io, legrad.cli.main as cli"
    )
    completion += "\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): cli.main()"
    assert not heavy & loaded_by(completion)


# -- files of the user, and results ---------------------------------------------------------------------------------


def test_results_beside_the_image(run):
    photo("cat.png")
    before = Path("cat.png").read_bytes()
    for more in ([], ["--overwrite"]):
        code, _, err = run("explain", "cat.png", "-t", "a cow", "--out", ".", *more)
        assert (code, err) == (0, "")
        assert Path("cat.png").read_bytes() == before
        assert sorted(os.listdir()) == [
            "cat--a-cow.png",
            "cat--figure.png",
            "cat.npz",
            "cat.png",
            "manifest.json",
            "table.csv",
        ]
    assert_error(run("explain", "cat.png", "-t", "a cow", "--out", "."), "--overwrite replaces them, --resume goes on")


def test_a_second_run_into_one_folder_is_refused(run):
    photo("a.png")
    with Folder("legrad-out"):
        assert_error(run("explain", "a.png", "-t", "a cow"), "another run (process", "writes into legrad-out")


def full_after(count):
    """``Path.write_bytes`` of a disk that takes so many files."""
    write, room = Path.write_bytes, [count]

    def write_bytes(path, data):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return write(path, data)

    return write_bytes


def test_a_full_disk_ends_a_run_once(run, monkeypatch):
    for name in "abcd":
        photo(f"{name}.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_after(6))  # one image and its manifest, and a part of the next
        result = run("explain", "a.png", "b.png", "c.png", "d.png", "-t", "a cow")
        assert_error(result, "No space left on device", code=1)
    assert [entry["image"] for entry in manifest()["images"]] == ["a.png"]
    assert sorted(os.listdir("legrad-out")) == ["a--a-cow.png", "a.npz", "a.png", "manifest.json"]
    before = {path.name: path.read_bytes() for path in Path("legrad-out").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_after(4))
        again = run("explain", "a.png", "b.png", "-t", "a dog", "--overwrite")
        assert_error(again, "No space left on device")
    assert {path.name: path.read_bytes() for path in Path("legrad-out").iterdir()} == before


@pytest.mark.parametrize("error", [legrad.TruthCheckError, legrad.UnsupportedModelError, RuntimeError, MemoryError])
def test_whatever_is_wrong_with_one_image(run, monkeypatch, explainer, error):
    original = explainer.explain

    def explain(images, targets, **options):
        if any(image.width == 33 for image in images):
            raise error("33 is\nnot a number")
        return original(images, targets, **options)

    monkeypatch.setattr(explainer, "explain", explain)
    for name, width in (("a", 40), ("b", 33), ("c", 50)):
        photo(f"{name}.png", size=(width, 30))
    Path("d.png").write_text("not an image")
    code, _, err = run("explain", "a.png", "b.png", "c.png", "d.png", "-t", "a dog", "--model", "embedded")
    assert code == 1
    kind = "" if issubclass(error, legrad.LeGradError) else f"{error.__name__}: "
    assert sorted(err.splitlines())[0] == f"error: b.png: {kind}33 is not a number"
    assert err.count("\n") == 2
    assert [entry["image"] for entry in manifest()["images"]] == ["a.png", "c.png"]
    code, out, err = run("explain", "b.png", "d.png", "-t", "a dog")
    assert (code, out, err.count("error: ")) == (2, "", 2)
    assert [entry["image"] for entry in manifest()["images"]] == ["a.png", "c.png"]  # nothing new: the old ones stay


def test_a_method_that_knows_no_target_needs_none(run):
    photo("a.png")
    code, _, err = run("explain", "a.png", "--method", "raw-attention")
    assert (code, err) == (0, "")
    assert len(manifest()["images"][0]["targets"]) == 1
    assert_error(run("explain", "a.png", "--method", "gradcam"), "say what to look for", "raw-attention, rollout")


def test_attention_head_by_head(run):
    photo("a.png")
    code, out, err = run("explain", "a.png", "--method", "raw-attention:heads=each")
    assert code == 0, err
    assert "head 3" in out


# -- the terminal ---------------------------------------------------------------------------------------------------


def test_file_names_do_not_steer_the_terminal(run):
    name = "\x1b[31mred\u202e.png"
    photo(name)
    code, out, err = run("explain", name, "-t", "\x1b[2Ja cow")
    assert code == 0
    assert "\x1b" not in out + err
    assert "\u202e" not in out + err
    assert r"\x1b[31mred\u202e.png" in out
    Path(name).write_text("not an image")
    _, out, err = run("explain", name, "-t", "a cow")
    assert "\x1b" not in out + err
    assert_error(run("explain", "\x1b[2J.png", "-t", "a cow"), r"\x1b[2J.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--zeroshot", ""], ["--zeroshot", "texts that say something", "''"]),
        (["--zeroshot", "cow", "--zeroshot", " "], ["--zeroshot", "' '"]),
        (["-t", ""], ["--text", "''"]),
        (["--class", ""], ["--class", "''"]),
        (["--contrast", "a", ""], ["--contrast", "''"]),
        (["-t", "a cow", "--out", ""], ["the folder is a path, got ''"]),
    ],
)
def test_nothing_is_no_value(run, monkeypatch, arguments, words):
    monkeypatch.setattr(legrad, "load", None)
    photo("a.png")
    assert_error(run("explain", "a.png", *arguments), *words)
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1"], ["--seed", "whole number from 0", "got -1"]),
        (["--out", ""], ["the folder is a path, got ''"]),
        (["--methods", ","], ["--methods takes names with commas between them"]),
        (["--methods", ""], ["--methods takes names with commas between them"]),
    ],
)
def test_benchmark_options_are_checked_first(run, monkeypatch, arguments, words):
    monkeypatch.setattr(legrad, "load", None)
    assert_error(run("bench", "localisation", *arguments), *words)
    assert os.listdir() == []
    if arguments[0] != "--methods":
        assert_error(run("bench", "all", *arguments), *words)


def test_models_of_one_long_path_have_folders_of_their_own():
    from legrad.cli.bench import _model_folder

    names = [f"hf:/{'a long path/' * 9}{end}" for end in ("one", "two")]
    assert len({_model_folder(name) for name in names}) == 2
    assert _model_folder("embedded:map") == "embedded-map"


def test_markup_in_a_models_name(run, monkeypatch, explainer):
    monkeypatch.setattr(legrad, "load", lambda *_, **__: explainer)
    code, out, _ = run("doctor", "hf:[/x]")
    assert code == 0
    assert "hf:[/x]" in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["methods"], ["--help"], ["explain", "--help"], ["--version"]])
def test_an_output_that_takes_nothing(tmp_path, arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "legrad.cli", *arguments],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
    assert (done.returncode, done.stderr) == (2, "error: cannot write the output: No space left on device\n")


BACKEND = """
import os, sys
sys.path.insert(0, {tests!r})
os.environ["MPLBACKEND"] = "nonsense"
from helpers import handmade
from legrad.bench.report import figures
explanation = handmade.explanation()
explanation.overlay(), explanation.figure(), explanation._repr_png_(), figures._new()
assert os.environ["MPLBACKEND"] == "nonsense"
"""


def test_a_backend_that_does_not_exist_is_not_asked_for():
    code = BACKEND.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


# -- depth of images, phones, links -------------------------------------------------------------------------------


def test_value_range(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save("12in16.png")
    code, _, err = run("explain", "12in16.png", "-t", "a dog", "--value-range", "0", "4095", "--model", "embedded")
    assert (code, err) == (0, "")
    assert manifest()["settings"]["value_range"] == [0, 4095]
    code, _, err = run("explain", "12in16.png", "-t", "a dog", "--value-range", "5", "1")
    assert (code, "value_range is (low, high)" in err) == (2, True)


def test_what_a_folder_run_leaves_out_is_said(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos/more").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save("photos/a.png")
    Path("photos/notes.txt").touch()
    Path("photos/b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    code, _, err = run("explain", "photos", "-t", "a dog")
    assert code == 1
    assert "note: of the folder photos this is left out, for its suffix or as a link: notes.txt\n" in err
    assert (
        "b.heic is not an image that Pillow can read: a HEIC image, as phones make them: pip install pillow-heif" in err
    )


def test_results_are_not_explained_again(run):
    photo("cat.png")
    run("explain", "cat.png", "-t", "a cow", "--out", ".")
    code, _, err = run("explain", ".", "-t", "a pig", "--out", ".", "--overwrite")
    assert (code, err) == (0, "warning: 2 images are results of an earlier run and left out\n")
    assert [entry["image"] for entry in manifest(".")["images"]] == ["cat.png"]
    names = ["cat.npz", "cat.png", "manifest.json", "table.csv"]
    assert sorted(os.listdir()) == ["cat--a-pig.png", "cat--figure.png", *names]
    code, _, _ = run("explain", "cat--a-pig.png", "-t", "a pig", "--out", "other")
    assert code == 0
    assert_error(
        run("explain", "other", "-t", "a pig", "--out", "other", "--overwrite"),
        "these images are results of an earlier run, such as other/",
    )


def test_an_interrupt_keeps_what_is_finished(run, monkeypatch, explainer):
    original = explainer.explain

    def explain(images, targets, **options):
        if any(image.width == 33 for image in images):
            raise KeyboardInterrupt
        return original(images, targets, **options)

    monkeypatch.setattr(explainer, "explain", explain)
    sizes = [40] * 8 + [33]
    for index, width in enumerate(sizes):
        Image.new("RGB", (width, 30)).save(f"{index}.png")
    code, _, err = run("explain", *(f"{index}.png" for index in range(9)), "-t", "a dog")
    assert (code, err) == (130, "interrupted: 8 images are in legrad-out; the same command with --resume goes on\n")
    assert len(manifest()["images"]) == 8
