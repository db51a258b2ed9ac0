"""Overlays and figures of an explanation."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import handmade
from PIL import Image

import legrad
from legrad import viz
from legrad.inputs import geometry
from legrad.inputs.geometry import Placement

CROPPED = Placement((24, 60), (24, 24), (1.0, 1.0), (0.0, -18.0))
BARS = 1  # every figure has one colour bar


def opened(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def test_overlay():
    explanation = handmade.explanation()
    image = explanation.overlay(0, 1)
    assert (image.mode, image.size) == ("RGB", (32, 24))
    assert not np.array_equal(np.asarray(image), np.asarray(explanation.overlay(0, 0)))
    assert np.array_equal(np.asarray(explanation.overlay(-1, -1)), np.asarray(image))


def test_unseen_pixels_are_grey_and_hatched():
    explanation = handmade.explanation(grid=(3, 3), placements=[CROPPED])
    image = np.asarray(explanation.overlay(alpha=1)).astype(int)
    grey = (image.max(-1) == image.min(-1)) & ~explanation.seen[0].numpy()
    assert np.array_equal(grey, ~explanation.seen[0].numpy())
    plain = handmade.explanation(grid=(3, 3), placements=[CROPPED], images=[np.full((24, 60, 3), 90, np.uint8)])
    unseen = np.asarray(plain.overlay())[~explanation.seen[0].numpy()]
    assert len(np.unique(unseen)) == 2  # lines over it
    # what was seen looks as if there were nothing else
    whole = handmade.explanation(grid=(3, 3), relevance=explanation.relevance)
    assert np.array_equal(image[:, 18:42], np.asarray(whole.overlay(alpha=1)))


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


@pytest.mark.parametrize(("targets", "panels"), [(1, 2), (2, 3), (4, 5), (5, 6)])
def test_figure_has_a_panel_per_target(targets, panels):
    figure = handmade.explanation(targets=targets, layers=(0,)).figure()
    assert len(figure.axes) == panels + BARS
    image_axes = [axis for axis in figure.axes if axis.images]
    assert len(image_axes) == 1 + targets
    assert image_axes[0].get_title() == "image 0.jpg"
    assert image_axes[targets].get_title().startswith(f"target {targets - 1}\n0.")


def test_figure_leaves_out_targets_that_the_image_has_not():
    explanation = handmade.explanation(targets=3, valid=torch.tensor([[True, False, True]]))
    titles = [axis.get_title().split("\n")[0] for axis in explanation.figure().axes if axis.images]
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
    explanation = handmade.explanation(layer_relevance=None)
    with pytest.raises(legrad.InputError, match="keep_layers=True"):
        explanation.layer_figure()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3)])
def test_extreme_images_can_be_drawn(size):
    explanation = handmade.explanation(placements=[Placement(size, (24, 32), (24 / size[0], 32 / size[1]))])
    assert explanation.overlay().size == size[::-1]
    width, height = opened(explanation._repr_png_()).size
    assert 100 < width < 2500
    assert 100 < height < 2500


def test_long_and_odd_titles():
    labels = [
        ["a photo of a very long description that goes on and on and on", "$x_1$ $\\no{$ \u732b \U0001f408 <b>[red]"]
    ]
    explanation = handmade.explanation(labels=labels, names=["\u732b.png"])
    titles = [axis.get_title() for axis in explanation.figure().axes if axis.images]
    assert titles[1].rpartition("\n")[0].replace("\n", " ") == labels[0][0]  # wrapped, not cut
    assert titles[2].startswith((labels[0][1], "[2]\n"))  # whether a font has the letters or not
    assert opened(explanation._repr_png_()).format == "PNG"


def test_repr_png():
    data = handmade.explanation()._repr_png_()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = opened(data).size
    assert width > height


PYPLOT = """
import sys
sys.path.insert(0, {tests!r})
from helpers import handmade
explanation = handmade.explanation()
assert "matplotlib" not in sys.modules, "a result needs no matplotlib"
explanation.saliency()
assert "matplotlib" not in sys.modules, "saliency needs no matplotlib"
explanation.overlay(); explanation.figure(); explanation.layer_figure(); explanation._repr_png_()
explanation.save({folder!r}, per_layer=True)
assert "matplotlib.pyplot" not in sys.modules, "pyplot has global state"
"""


def test_no_pyplot(tmp_path):
    code = PYPLOT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_targets_by_their_label():
    explanation = handmade.explanation(labels=[["a cat", "a dog"]])
    assert explanation.overlay(target="a dog").tobytes() == explanation.overlay(target=1).tobytes()
    assert explanation.overlay(target="a dog").tobytes() != explanation.overlay(target=0).tobytes()
    explanation.layer_figure(target="a dog")
    with pytest.raises(legrad.InputError, match="image 0 has no target 'a cow', only 'a cat', 'a dog'"):
        explanation.overlay(target="a cow")


def test_what_is_hatched_is_explained():
    explanation = handmade.explanation(placements=[CROPPED], covered=(24, 24))
    assert "never seen by the model" in explanation.figure().get_supxlabel()
    assert explanation.layer_figure().get_supxlabel().startswith("each layer is scaled by itself; grey with stripes")
    assert handmade.explanation().figure().get_supxlabel() == ""


@pytest.mark.parametrize(("height", "width"), [(400, 40), (400, 160), (30, 30), (40, 400)])
def test_figures_of_every_shape_fit_a_screen(height, width):
    frame = Placement((height, width), (24, 32))
    figure = handmade.explanation(targets=4, placements=[frame]).figure()
    assert max(figure.get_size_inches()) <= 17
    assert figure.get_size_inches()[1] <= 6


@pytest.mark.parametrize("channels", [None, 1, 2, 4, 5, 8])
def test_images_of_other_numbers_of_channels(tmp_path, channels):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (24, 32) if channels is None else (24, 32, channels), np.uint8)
    explanation = handmade.explanation(images=[pixels])
    plain = np.asarray(explanation.overlay(alpha=0)).astype(int)
    if channels in (None, 1, 2):
        grey = pixels.reshape(24, 32, -1).mean(-1)
        assert (np.abs(plain - grey[..., None]) < 1).all()
    else:
        assert (plain == pixels[..., :3]).all()
    explanation.figure()
    explanation.layer_figure()
    assert explanation._repr_png_().startswith(b"\x89PNG")
    explanation.save(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": "x"}, "image is a whole number, got 'x'"),
        ({"image": None}, "image is a whole number, got None"),
        ({"image": True}, "image is a whole number, got True"),
        ({"target": None}, "target, unless it is a label, is a whole number, got None"),
        ({"target": 1.0}, "is a whole number, got 1.0"),
        ({"target": [0]}, r"is a whole number, got \[0\]"),
        ({"alpha": "x"}, r"alpha lies in \[0, 1\], got 'x'"),
        ({"alpha": None}, r"alpha lies in \[0, 1\], got None"),
        ({"alpha": True}, r"alpha lies in \[0, 1\], got True"),
        ({"cmap": []}, r"no colour map \[\]"),
        ({"cmap": None}, "no colour map None"),
        ({"frame": "x"}, "frame is a whole number, got 'x'"),
        ({"normalize": []}, r"scale or normalize is one of .*got \[\]"),
        ({"normalize": np.array([0, 1])}, r"scale or normalize is one of .*got "),
    ],
)
def test_arguments_of_other_types(arguments, message):
    explanation = handmade.explanation()
    with pytest.raises(legrad.InputError, match=message):
        explanation.overlay(**arguments)
    if arguments.keys() <= {"image", "alpha", "cmap"}:
        with pytest.raises(legrad.InputError, match=message):
            explanation.figure(**arguments)


def test_numbers_of_numpy_and_torch():
    explanation = handmade.explanation(count=2)
    expected = explanation.overlay(1, 1, alpha=0.5).tobytes()
    assert explanation.overlay(np.int64(1), torch.tensor(1), alpha=np.float32(0.5)).tobytes() == expected
    assert explanation.overlay(-1, -1, alpha=torch.tensor(0.5)).tobytes() == expected


def test_results_can_be_compared_and_kept_in_sets():
    one, other = handmade.explanation(), handmade.explanation()
    assert one == one
    assert one != other
    assert other in [one, other]
    assert len({one, other, one}) == 2


@pytest.fixture
def placed(monkeypatch):
    """How many maps have been laid on pixels."""
    count, place = [0], geometry.place

    def counting(maps, *rest):
        count[0] += maps.shape[:-2].numel()
        return place(maps, *rest)

    monkeypatch.setattr(geometry, "place", counting)
    return count


def test_only_what_is_drawn_is_laid_on_pixels(tmp_path, placed):
    explanation = handmade.explanation(count=2, targets=3)
    for call, count in [
        (lambda: explanation.overlay(1, 2), 1),
        (lambda: explanation.overlay(1, 2, normalize=None), 1),
        (lambda: explanation.figure(), 3),
        (lambda: explanation.layer_figure(target=2), 2),
        (lambda: explanation.save(tmp_path / "a"), 6),
        (lambda: explanation.save(tmp_path / "b", per_layer=True), 6 + 2 * 3 * 2),
    ]:
        placed[0] = 0
        call()
        assert placed[0] == count


def test_a_target_alone_looks_as_among_others():
    explanation = handmade.explanation(targets=3, valid=torch.tensor([[True, False, True]]))
    for normalize in ("map", "shared", None):
        maps = explanation.saliency(normalize=normalize)[0]
        for target in range(3):
            image = viz.overlay(explanation.images[0], maps[target].numpy())
            assert explanation.overlay(0, target, normalize=normalize).tobytes() == image.tobytes()


# -- letters ------------------------------------------------------------------------------------------------------

CAT = "\U00013000\U00013001"  # hieroglyphs: no font of matplotlib's has them


@pytest.fixture
def own_fonts(monkeypatch):
    """Only the fonts that matplotlib brings along."""
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "mpl-data" in font.fname])
    fontManager._findfont_cached.cache_clear()
    yield
    fontManager._findfont_cached.cache_clear()


def tiny_font(path, letters):
    """A font with one square for some letters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(letter): "square" for letter in letters})
    font.setupGlyf({".notdef": square, "square": square})
    font.setupHorizontalMetrics({".notdef": (800, 0), "square": (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Legrad Squares", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800)
    font.setupPost()
    font.save(path)


def titles_of(figure):
    return [axis.get_title() for axis in figure.axes if axis.images]


@pytest.mark.usefixtures("own_fonts")
def test_letters_of_no_font_become_numbers(tmp_path):
    explanation = handmade.explanation(labels=[["a cat", CAT]], names=[f"{CAT}.png"])
    figure = explanation.figure()
    assert [title.split("\n")[0] for title in titles_of(figure)] == ["[image]", "a cat", "[2]"]
    assert figure.get_supxlabel() == "[image], [2]: in letters that no font here has; the text is in the manifest"
    figure.savefig(tmp_path / "figure.png")  # no warning of missing glyphs
    explanation.layer_figure(target=1).savefig(tmp_path / "figure.png")
    files = explanation.save(tmp_path / "out")
    records = json.loads(files[-1].read_text(encoding="utf-8"))["images"][0]["targets"]
    assert [(record["number"], record["target"]) for record in records] == [(1, "a cat"), (2, CAT)]


@pytest.mark.usefixtures("own_fonts")
def test_an_installed_font_is_found(tmp_path):
    from matplotlib.font_manager import fontManager

    tiny_font(tmp_path / "squares.ttf", CAT)
    fontManager.addfont(tmp_path / "squares.ttf")  # into the list of the fixture
    figure = handmade.explanation(labels=[["a cat", f"caf\u00e9 {CAT}"]]).figure()
    titles = {axis.get_title(): axis.title.get_fontfamily() for axis in figure.axes if axis.images}
    assert titles[next(title for title in titles if CAT in title)][-1] == "Legrad Squares"
    assert figure.get_supxlabel() == ""
    figure.savefig(tmp_path / "figure.png")
    assert viz.png(figure)


def test_control_characters_and_joiners_in_titles(tmp_path):
    labels = [["a\x1b[31mb\x00", "e\u0301\u200d\ufe0f \u202ex"]]
    figure = handmade.explanation(labels=labels).figure()
    assert [title.split("\n")[0] for title in titles_of(figure)][1:] == [r"a\x1b[31mb\x00", "e\u0301 \\u202ex"]
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.usefixtures("own_fonts")
def test_figures_of_others_get_fonts_too():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title(f"a {CAT[0]} b")
    viz.png(figure)
    assert figure.axes[0].get_title() == "a ? b"


@pytest.mark.parametrize("image", ["x", None, 1, 1.0])
def test_timing_of_no_image(image):
    with pytest.raises(legrad.InputError, match=r"image is a whole number|there are 1 images"):
        handmade.explanation().timing(image)


@pytest.mark.parametrize("size", ["x", [], (1,), (1, 2, 3), 0, -1, 1.5, (0, 4), None])
def test_sizes_of_saliency(size):
    if size is None:
        assert handmade.explanation().saliency(size).shape == (1, 2, 24, 32)
    else:
        with pytest.raises(legrad.InputError):
            handmade.explanation().saliency(size)
