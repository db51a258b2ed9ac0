"""Figures: nothing is empty, everything can be read, titles say what the numbers are."""

import io
import json

import matplotlib
import numpy as np
import pytest
import torch
from helpers import handmade, tiny
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import legrad
from legrad import fonts, viz
from legrad.inputs.geometry import Placement

LONG = "a photograph of a very old wooden fishing boat that lies on the beach at low tide in the last light of the day"


def explanation(size=(24, 32), **changes):
    """Of an original of (height, width)."""
    return handmade.explanation(placements=[Placement(size, (24, 32), (24 / size[0], 32 / size[1]))], **changes)


def panels(figure):
    return [axis for axis in figure.axes if axis.images]


def box(figure, axis):
    """(left, bottom, width, height) in inches."""
    return axis.get_position().bounds * np.tile(figure.get_size_inches(), 2)


def rows(figure):
    tops = [round(float(box(figure, axis)[1]), 3) for axis in panels(figure)]
    return [tops.count(top) for top in dict.fromkeys(tops)]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(1, [2]), (2, [3]), (4, [5]), (5, [3, 3]), (6, [4, 3]), (8, [3, 3, 3]), (12, [5, 5, 3])],
    ids=str,
)
def test_grids_are_balanced(targets, expected):
    assert rows(explanation((300, 400), targets=targets, layers=(0,)).figure()) == expected


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (400, 3000), (600, 200)], ids=str)
@pytest.mark.parametrize("targets", [1, 5])
def test_nothing_is_empty(size, targets):
    figure = explanation(size, targets=targets, layers=(0,)).figure()
    drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    margins = (drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1)
    assert all(-0.01 <= margin < 0.2 for margin in margins), margins


@pytest.mark.parametrize("size", [(400, 3000), (3000, 400), (32, 32), (7, 900), (900, 7)], ids=str)
def test_panels_of_every_shape_can_be_seen(size):
    figure = explanation(size).figure()
    for axis in panels(figure):
        *_, width, height = box(figure, axis)
        assert min(width, height) > 0.39
        if 1 / 12 < size[0] / size[1] < 12:
            assert height / width == pytest.approx(size[0] / size[1], rel=0.15)
    assert ("not to scale" in figure.get_supxlabel()) == (7 in size)


def test_tiny_images_are_enlarged_without_smoothing():
    figure = explanation((32, 32)).figure()
    assert {axis.images[0].get_interpolation() for axis in panels(figure)} == {"nearest"}
    assert box(figure, panels(figure)[0])[2] > 2
    assert panels(explanation((200, 200)).figure())[0].images[0].get_interpolation() != "nearest"


@pytest.mark.parametrize("size", [(300, 400), (600, 200), (400, 3000)], ids=str)
def test_long_prompts_are_wrapped_and_whole(size):
    labels = ["x" * 90, LONG, "a cat"]
    figure = explanation(size, targets=3, layers=(0,), labels=[labels]).figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = []
    for axis, label in zip(panels(figure)[1:], labels, strict=True):
        text = axis.get_title().rpartition("\n")[0]
        assert text.replace("\n", " ").replace(" ", "") == label.replace(" ", "")
        extents.append(axis.title.get_window_extent(renderer))
        assert extents[-1].width <= max(axis.get_window_extent().width, 1.2 * figure.dpi) + 1
    assert not any(one.overlaps(other) for i, one in enumerate(extents) for other in extents[:i])
    assert all(extent.y1 <= figure.bbox.height for extent in extents)


def test_a_prompt_without_end_is_cut():
    figure = explanation(labels=[["word " * 900, "a"]]).figure()
    assert panels(figure)[1].get_title().count("\n") == 12
    assert figure.get_size_inches()[1] < 6


def test_chinese_is_wrapped_between_letters():
    text = "一只坐在红色沙发上的黑白相间的猫,旁边有一个打开的窗户。"
    lines = fonts._broken(text, lambda line: len(line) <= 8)
    assert "".join(lines) == text
    assert max(map(len, lines)) <= 8
    assert not any(line[0] in ",。" for line in lines)
    assert fonts._broken("one two-three four", lambda line: len(line) <= 8) == ["one two-", "three", "four"]


def test_one_bar_as_high_as_the_panels():
    figure = explanation((300, 400)).figure()
    (bar,) = (axis for axis in figure.axes if not axis.images)
    expected = box(figure, panels(figure)[0])
    assert box(figure, bar)[1::2].tolist() == pytest.approx(expected[1::2].tolist())
    assert bar.get_ylabel() == "saliency (per map)"


# -- what is drawn ------------------------------------------------------------------------------------------------


def test_what_is_not_salient_keeps_its_brightness():
    image = np.full((2, 2, 3), 200, np.uint8)
    saliency = np.array([[0.0, 0.25], [0.5, 1.0]])
    drawn = np.asarray(viz.overlay(image, saliency)).astype(int)
    assert (drawn[0, 0] == 200).all()
    distance = np.abs(drawn - viz.colours(saliency)).sum(-1)
    assert distance[1, 1] < distance[0, 0]
    assert np.array_equal(np.asarray(viz.overlay(image, saliency, alpha="saliency")), drawn)
    flat = np.asarray(viz.overlay(image, saliency, alpha=0.65)).astype(int)
    assert np.abs(flat[0, 0] - (200 * 0.35 + 0.65 * viz.colours(saliency)[0, 0])).max() <= 1
    with pytest.raises(legrad.InputError, match="or it is 'saliency'"):
        viz.overlay(image, saliency, alpha="salient")


def test_shared_scale_shows_which_target_is_weak(tmp_path):
    relevance = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    relevance[0, 1] *= 0.1
    white = [np.full((24, 32, 3), 255, np.uint8)]
    found = handmade.explanation(relevance=relevance, images=white)

    def darkest(figure, panel):
        return panels(figure)[panel].images[0].get_array().min()

    alike, shared = found.figure(), found.figure(normalize="shared")
    assert abs(int(darkest(alike, 1)) - int(darkest(alike, 2))) < 40
    assert darkest(shared, 2) > darkest(alike, 2) + 60
    assert [axis.get_ylabel() for axis in shared.axes if not axis.images] == ["saliency (one scale for all)"]
    # the other target counts, also if it is not shown
    alone = found.figure(normalize="shared", targets=1)
    assert np.array_equal(panels(alone)[1].images[0].get_array(), panels(shared)[2].images[0].get_array())
    files = found.save(tmp_path, normalize="shared")
    manifest = json.loads(files[-1].read_text())
    assert manifest["style"]["scale"] == "shared"
    with Image.open(tmp_path / manifest["images"][0]["targets"][1]["overlay"]) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(found.overlay(target=1, normalize="shared")))


def kinds(found):
    return [axis.get_title().splitlines()[-1].rpartition(" ")[0] for axis in panels(found.figure())[1:]]


def test_titles_say_what_the_score_is(tmp_path):
    explainer = legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer)
    x = torch.randn(2, 3, 32, 32)
    targets = ["a cat", legrad.Similar(x[0]), legrad.Contrast("a cat", "a dog"), lambda f: f[:, 0], torch.randn(32)]
    found = explainer.explain(x, targets)
    assert kinds(found) == ["cosine", "cosine", "cosine difference", "score", "cosine"]
    assert panels(found.figure())[1].get_title().endswith(f"cosine {found.scores[0, 0]:.2f}")
    records = json.loads(found.save(tmp_path)[-1].read_text())["images"][1]["targets"]
    assert [record["score_kind"] for record in records] == found.score_kinds[1]
    assert kinds(explainer.explain(x, [["a cat"], ["a cat", lambda f: f[:, 0]]])) == ["cosine"]
    assert kinds(explainer.explain(x, [legrad.ZeroShot(["cat", "dog"])])) == ["cosine"]
    assert explainer.explain(x, method="rollout").score_kinds == [["none"], ["none"]]


def test_titles_of_classifiers():
    from helpers.zoo import timm as zoo_timm

    explainer = legrad.wrap(zoo_timm.build("vit_tiny_patch16_224"))
    height, width = explainer.anatomy.image_size
    images = torch.randn(1, 3, height, width)
    best = int(explainer.predict(images).argmax())
    found = explainer.explain(images, [best, legrad.PREDICTED, legrad.Contrast(1, 2)])
    assert kinds(found) == ["logit", "logit", "logit difference"]
    assert panels(found.figure())[1].get_title().endswith(f"logit {found.scores[0, 0]:.1f}")


# -- arguments ----------------------------------------------------------------------------------------------------


def test_targets_title_columns_and_sizes():
    found = explanation((300, 400), targets=4, layers=(0,))
    figure = found.figure(targets=["target 3", 0], title="Two of them", columns=2, dpi=50)
    titles = [axis.get_title().split("\n")[0] for axis in panels(figure)]
    assert titles == ["image 0.jpg", "target 3", "target 0"]
    assert figure.get_suptitle() == "Two of them"
    assert rows(figure) == [2, 1]
    assert figure.dpi == 50
    assert [len(panels(found.figure(targets=target))) for target in (1, "target 1", np.int64(1), [1])] == [2] * 4
    for size in [(4, 9), (9, 4), (3, 3)]:
        figure = found.figure(figsize=size)
        assert tuple(figure.get_size_inches()) == size
        drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
        assert drawn.x0 >= -0.01
        assert drawn.y0 >= -0.01
        assert drawn.x1 <= size[0] + 0.01
        assert drawn.y1 <= size[1] + 0.01
    assert rows(found.figure(figsize=(3, 14))) == [1] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": []}, "targets is empty"),
        ({"targets": "a cow"}, "image 0 has no target 'a cow'"),
        ({"targets": [7]}, "no image 0, target 7"),
        ({"title": 3}, "title is a text, got 3"),
        ({"columns": 0}, "columns is a whole number from 1, got 0"),
        ({"figsize": 3}, r"figsize is \(width, height\) in inches, got 3"),
        ({"figsize": (3, -1)}, r"figsize is a number in \[0.5, 200\], got -1"),
        ({"dpi": "x"}, "dpi is a number in"),
        ({"ax": 3}, "ax is one of matplotlib's Axes"),
        ({"normalize": "all"}, "scale or normalize is one of"),
        ({"alpha": 2}, "alpha lies in"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(legrad.InputError, match=message):
        handmade.explanation().figure(**arguments)


def test_into_axes_of_ones_own():
    found = explanation((300, 400))
    own = Figure(figsize=(9, 3))
    left, middle, right = own.subplots(1, 3)
    assert found.figure(ax=left, targets=1) is own
    assert np.array_equal(left.images[0].get_array(), np.asarray(found.overlay(target=1)))
    assert left.get_title().startswith("target 1")
    found.figure(ax=middle)
    assert [len(inset.images) for inset in middle.child_axes] == [1, 1]
    assert not right.images
    rest = Figure().subplots(1, 3)
    found.figure(ax=rest)
    assert rest[0].get_title() == "image 0.jpg"
    assert np.array_equal(rest[2].images[0].get_array(), np.asarray(found.overlay(target=1)))
    with pytest.raises(legrad.InputError, match=r"2 of them \(one for each target; 3 with the image in front\), got 5"):
        found.figure(ax=Figure().subplots(1, 5))


# -- files and notebooks ------------------------------------------------------------------------------------------


def test_notebooks_show_all_images():
    found = handmade.explanation(count=14)
    figure = found.contact_sheet()
    titles = [axis.get_title().split("\n")[0] for axis in panels(figure)]
    assert len(titles) == 12 * 3
    assert titles[:4] == ["image 0.jpg", "target 0", "target 1", "image 1.jpg"]
    assert figure.get_supxlabel() == "the first 12 of 14 images, and 2 more"
    assert found._repr_png_() == viz.png(figure)
    few = handmade.explanation(count=2, targets=9, layers=(0,)).contact_sheet()
    assert len(panels(few)) == 2 * 8
    assert panels(few)[0].get_title() == "image 0.jpg\n(and 2 more targets)"
    assert few.get_supxlabel() == ""
    alone = handmade.explanation()
    assert alone._repr_png_() == viz.png(alone.figure())


def test_figures_show_themselves():
    data = handmade.explanation().figure()._repr_png_()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"


def test_text_stays_text_in_pdf(tmp_path):
    before = matplotlib.rcParams["pdf.fonttype"]
    handmade.explanation().figure().savefig(tmp_path / "a.pdf")
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()
    assert matplotlib.rcParams["pdf.fonttype"] == before
    handmade.explanation().figure().savefig(tmp_path / "a.svg")
