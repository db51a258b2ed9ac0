"""Lines beside the results that keep users from being misled."""

import shutil
from pathlib import Path

import pytest
from helpers.commands import assert_error, manifest, photo
from helpers.zoo import transformers as zoo
from PIL import Image

import legrad

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def cropping(tmp_path_factory):
    """A folder with a model whose transform crops the centre."""
    folder = tmp_path_factory.mktemp("model")
    zoo.build("CLIPModel").save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**sides).save_pretrained(folder)
    return f"hf:{folder}"


def lines(result):
    code, _, err = result
    assert code == 0, err
    return err.splitlines()


def test_two_images_in_a_contrast(run, cropping):
    for seed, name in enumerate(("a.png", "cat.png", "dog.png")):
        photo(name, (40, 40), seed)
    lines(run("explain", "a.png", "--contrast", "cat.png", "dog.png", "--model", cropping))
    (record,) = manifest()["images"][0]["targets"]
    assert record["target"] == "similar to cat rather than similar to dog"
    expected = legrad.load(cropping).explain(
        "a.png", legrad.Contrast(legrad.Similar("cat.png"), legrad.Similar("dog.png"))
    )
    assert record["score"] == pytest.approx(expected.scores.item(), abs=1e-5)
    assert record["score_kind"] == "cosine difference"
    assert_error(
        run("explain", "a.png", "--contrast", "cat.png", "absent.png", "--model", cropping),
        "--contrast: no such image: absent.png",
    )


def test_what_the_crop_hides(run, cropping):
    photo("wide.png", (90, 30))
    photo("square.png", (33, 32))
    photo("tall.png", (30, 60))
    similar = ["--similar", "square.png", "--model", cropping]
    (line,) = lines(run("explain", "wide.png", "square.png", *similar))
    assert line == "note: the model's crop hides 67 % of wide.png; --fit squash | pad shows the model all of it"
    (line,) = lines(run("explain", "wide.png", "square.png", "tall.png", *similar, "--out", "b"))
    assert "hides up to 67 % of wide.png and 1 more;" in line
    assert lines(run("explain", "square.png", *similar, "--out", "c")) == []
    for fit in ("squash", "pad"):
        assert lines(run("explain", "wide.png", *similar, "--out", f"d{fit}", "--fit", fit)) == []


def test_the_embedded_model_on_a_photograph(run):
    photo("photo.png", names="")
    shutil.copy(legrad.embedded.SAMPLE, "scene.png")
    (line,) = lines(run("explain", "photo.png", "scene.png", "-t", "a cow"))
    assert line.startswith(
        "warning: without --model the embedded model answers, which knows drawn scenes only: for photo.png"
    )
    assert lines(run("explain", "scene.png", "-t", "a cow", "--out", "b")) == []
    assert lines(run("explain", "--out", "c")) == []
    assert lines(run("explain", "photo.png", "-t", "a cow", "--out", "d", "--model", "embedded")) == []
    assert_error(run("explain", "photo.png", "-t", "a cow", "--layers", "99", "--out", "e"), "6 blocks")
    Image.fromarray(legrad.embedded.scene(7, 0).image).save("saved.png")
    assert legrad.embedded.is_scene("saved.png")
    Path("text.png").write_text("no image")
    assert not legrad.embedded.is_scene("text.png")
    assert not legrad.embedded.is_scene("absent.png")


@pytest.mark.filterwarnings("default")
def test_words_that_the_embedded_model_does_not_know(run):
    (line,) = lines(run("explain", "-t", "a photo of a cow", "-t", "two frobnicators and a carburettor"))
    assert line.startswith(
        "warning: the embedded model never read 'two', 'frobnicators', 'carburettor': scores and maps"
    )


def test_unknown_words_are_warned_of_once(explainer):
    with pytest.warns(UserWarning, match="never read 'sofa'") as caught:
        explainer.explain(
            str(legrad.embedded.SAMPLE), ["a cow", "a sofa", "the sofa", "dogs, foxes and cherries; 3 cows!"]
        )
    assert len(caught) == 1
    explainer.explain(str(legrad.embedded.SAMPLE), [f"a photo of a {name}" for name in legrad.embedded.NAMES])
