"""Images of any source, one result each."""

import io
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import limits, tiny
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import legrad
from legrad import stream as module


@pytest.fixture(scope="module")
def explainer():
    from torchvision import transforms

    transform = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])
    return legrad.wrap(tiny.clip(), transform=transform, tokenizer=tiny.tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images, the last below, of which the third is torn."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    (root / "z").mkdir()
    for name in ("a.png", "b.jpg", "c.png", "d.png", "z/e.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(root / name)
    (root / "c.png").write_bytes((root / "c.png").read_bytes()[:300])
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


@pytest.fixture(scope="module")
def files(folder):
    return [folder / name for name in ("a.png", "b.jpg", "d.png", "z/e.png")]


TARGETS = ["a cow", "a pig"]


def check(results, explainer, images, **options):
    """Every result is what explain gives for its image alone."""
    results = list(results)
    assert len(results) == len(images)
    for result, image in zip(results, images, strict=True):
        expected = explainer.explain(image, TARGETS, **options)
        assert result.relevance.shape == expected.relevance.shape
        assert limits.close(result.relevance, expected.relevance, maps=True)
        assert limits.close(result.scores, expected.scores)
        assert result.labels == expected.labels
        assert result.settings == expected.settings
    return results


@pytest.mark.parametrize("size", ["auto", 1, 3])
def test_files_in_every_kind_of_iterable(explainer, folder, files, size):
    for sources in (files, tuple(map(str, files)), (path for path in files), iter(files)):
        results = check(explainer.stream(sources, TARGETS, size), explainer, files)
        assert [result.names for result in results] == [[str(path)] for path in files]
    results = explainer.stream(folder.glob("[abd].*"), TARGETS, size)
    assert {Path(result.names[0]).name for result in results} == {"a.png", "b.jpg", "d.png"}
    assert np.array_equal(results_image(explainer, files[0]), np.asarray(Image.open(files[0])))


def results_image(explainer, path):
    """The original of a streamed file: read again when it is shown."""
    (result,) = explainer.stream([path], "a cow")
    result.figure()
    return result.images[0]


def test_a_folder_with_those_in_it(explainer, folder, files):
    check(explainer.stream(folder, TARGETS, on_error="skip"), explainer, files)
    check(explainer.stream(str(folder), TARGETS, on_error="skip"), explainer, files)
    check(explainer.stream(files[0], TARGETS), explainer, files[:1])
    check(explainer.stream(str(folder / "[ab].*"), TARGETS), explainer, files[:2])


def test_images_in_memory(explainer, files):
    opened = [Image.open(path) for path in files]
    arrays = [np.asarray(image) for image in opened]
    data = [path.read_bytes() for path in files]
    buffers = [io.BytesIO(one) for one in data]
    rows = [{"image": image, "label": 3} for image in opened]
    labelled = [(image, index) for index, image in enumerate(opened)]
    for sources in (opened, arrays, np.stack(arrays), data, buffers, rows, labelled, [opened[:2], opened[2:]]):
        results = check(explainer.stream(sources, TARGETS), explainer, opened)
        assert [result.names[0] for result in results] == [f"image {index}" for index in range(4)]
    check(explainer.stream(data[0], TARGETS), explainer, opened[:1])
    check(explainer.stream(opened[0], TARGETS), explainer, opened[:1])


@pytest.mark.parametrize("labels", [False, True], ids=["tensors", "pairs"])
def test_data_loaders(explainer, labels):
    images = torch.randn(5, 3, 32, 32)
    loader = DataLoader(TensorDataset(images, torch.arange(5)) if labels else images, batch_size=2)
    check(explainer.stream(loader, TARGETS), explainer, images.split(1))
    check(explainer.stream(images, TARGETS), explainer, images.split(1))
    check(explainer.stream(iter(images), TARGETS), explainer, images.split(1))


def test_prepared_images(explainer, files):
    check(explainer.stream(explainer.prepare(files), TARGETS), explainer, files)


def test_options_are_those_of_explain(files):
    explainer = legrad.load("embedded")
    options = {"layers": 2, "fit": "squash", "size": 96, "null_target": "a photo", "keep_layers": True}
    results = check(explainer.stream(files, TARGETS, **options), explainer, files, **options)
    assert results[0].layer_relevance.shape == (1, 2, 2, 6, 6)
    together = legrad.Explanation.cat(results)
    expected = explainer.explain(files, TARGETS, **options)
    assert limits.close(together.layer_relevance, expected.layer_relevance, maps=True)
    rollout = list(explainer.stream(files[:1], method="rollout"))
    assert rollout[0].labels == [["attention"]]


def test_results_come_as_they_are_ready(explainer):
    """Of a source without an end, no more than two batches are taken ahead; a buffer may be used again."""
    taken, buffer = [], np.zeros((40, 60, 3), np.uint8)

    def endless():
        for index in itertools.count():
            taken.append(index)
            buffer[:] = 40 * index
            yield buffer

    results = explainer.stream(endless(), "a cow", keep_images=True)
    assert next(results).images[0].max() == 0
    assert len(taken) <= 3
    assert next(results).images[0].max() == 40
    results.close()
    results = explainer.stream(endless(), "a cow", batch_size=2)
    taken.clear()
    next(results)
    assert len(taken) == 4


def test_failures_are_values_or_left_out_or_raised(explainer, folder, files, caplog):
    with caplog.at_level(logging.WARNING, "legrad"):
        results = list(explainer.stream(folder, TARGETS, on_error="collect"))
    assert [type(result).__name__ for result in results] == ["Explanation"] * 2 + ["Failure"] + ["Explanation"] * 2
    failure = results[2]
    assert isinstance(failure, legrad.Failure)
    assert (failure.index, failure.name) == (2, str(folder / "c.png"))
    assert isinstance(failure.error, legrad.InputError)
    assert "c.png" in str(failure)
    assert "\n" not in str(failure)
    assert "c.png" in caplog.text
    assert len(list(explainer.stream(folder, TARGETS, on_error="skip"))) == 4
    names = []
    results = explainer.stream(folder, TARGETS)
    names += [Path(next(results).names[0]).name for _ in range(2)]
    with pytest.raises(legrad.InputError, match=r"c\.png is not an image"):
        next(results)
    assert names == ["a.png", "b.jpg"]  # those before it come first


def test_one_bad_image_takes_no_other_of_its_batch_with_it(explainer):
    images = torch.randn(4, 3, 32, 32)
    images[1, 0, 0, 0] = float("nan")
    results = list(explainer.stream(images, TARGETS, batch_size=4, on_error="collect"))
    assert [isinstance(result, legrad.Failure) for result in results] == [False, True, False, False]
    assert limits.close(results[3].relevance, explainer.explain(images[3:], TARGETS).relevance, maps=True)

    def picky(feature):
        return torch.where(feature[:, 0] > feature[:, 1], feature[:, 0], torch.full_like(feature[:, 0], float("nan")))

    good = torch.randn(8, 3, 32, 32)
    kinds = [isinstance(r, legrad.Failure) for r in explainer.stream(good, picky, batch_size=8, on_error="collect")]
    features = explainer.predict(good)
    assert kinds == (features[:, 0] <= features[:, 1]).tolist()
    assert any(kinds) != all(kinds)


def test_an_error_of_the_source_comes_behind_its_images(explainer, files):
    def source():
        yield files[0]
        yield files[1]
        raise OSError("the disk is gone")

    results = explainer.stream(source(), TARGETS, batch_size=8, on_error="skip")
    assert next(results).names == [str(files[0])]
    assert next(results).names == [str(files[1])]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_originals_in_memory_are_kept_if_asked(explainer):
    image = Image.new("RGB", (60, 40), "red")
    (kept,) = explainer.stream([image], "a cow", keep_images=True)
    kept.figure()
    (result,) = explainer.stream([image], "a cow")
    assert torch.equal(result.saliency(), kept.saliency())
    with pytest.raises(
        legrad.InputError, match=r"original of image 0 was not kept; stream\(\.\.\., keep_images=True\)"
    ):
        result.figure()


def test_a_bar(explainer, files, capsys):
    assert len(list(explainer.stream(files, "a cow", progress=True))) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err
    assert len(list(explainer.stream(iter(files), "a cow"))) == 4
    assert capsys.readouterr() == ("", "")
    assert module._count(DataLoader(torch.zeros(5, 3), batch_size=2)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "ignore"}, "on_error is one of 'raise', 'skip', 'collect', got 'ignore'"),
        ({"batch_size": 0}, "batch_size is a whole number from 1, got 0"),
        ({"batch_size": "large"}, "batch_size is 'auto' or a whole number from 1, got 'large'"),
        ({"progress": "yes"}, "progress is True or False"),
        ({"keep_images": 1}, "keep_images is True or False"),
        ({"layer": 3}, r"stream has no argument 'layer', did you mean 'layers'\?"),
        ({"inputs": {}}, "stream takes no inputs="),
        ({"layers": 99}, "layers"),
        ({"targets": None}, "no targets"),
        ({"targets": [["a"], ["b"]]}, "embed takes targets for all images|targets for all images"),
        ({"fit": "stretch"}, "fit is one of"),
    ],
    ids=range(11),
)
def test_arguments_are_checked_at_once(explainer, arguments, message):
    values = {"sources": [], "targets": "a cow", **arguments}
    with pytest.raises(legrad.InputError, match=message):
        explainer.stream(**values)


@pytest.mark.parametrize("what", [3, None, object()], ids=["number", "none", "object"])
def test_sources_that_are_none(explainer, what):
    with pytest.raises(legrad.InputError, match="sources is a folder, an image, or an iterable"):
        next(explainer.stream(what, "a cow"))


def test_sources_that_are_empty(explainer, tmp_path):
    assert list(explainer.stream([], "a cow")) == []
    with pytest.raises(legrad.InputError, match="no images in the folder"):
        next(explainer.stream(tmp_path, "a cow"))


def test_every_head_has_a_panel(explainer):
    maps = explainer.heads(torch.randn(2, 3, 32, 32), TARGETS, layers=3)
    assert maps.relevance.shape == (2, 2, 3, 2, 4, 4)
    assert maps.layers == (1, 2, 3)
    expected = explainer.explain(torch.zeros(1, 3, 32, 32), "a cow", layers=3, keep_layers=True).layer_relevance
    alone = explainer.heads(torch.zeros(1, 3, 32, 32), "a cow", layers=3)
    assert limits.close(alone.relevance.mean(3), expected, maps=True)
    figure = maps.figure(1, "a pig")
    assert len([axis for axis in figure.axes if axis.images]) == 6
    texts = [axis.get_title() for axis in figure.axes]
    assert texts[0].startswith("head 0\n")
    assert sum(float(text.split("\n")[-1].rstrip("%")) for text in texts[:2]) == pytest.approx(100, abs=1)
    assert maps._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(legrad.InputError, match="has no target 'a dog'"):
        maps.figure(0, "a dog")
