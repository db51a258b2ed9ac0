"""Large images: overlays made a few rows at a time, figures from reduced copies, other formats."""

import numpy as np
import pytest
import torch
from helpers import handmade, limits
from helpers.handmade import cells
from PIL import Image

import legrad
from legrad import pixels, viz
from legrad.inputs import geometry
from legrad.inputs.geometry import Placement
from legrad.results import save, surface, view

SIZE = (40, 90)
PLACEMENTS = {
    "whole": Placement(SIZE, (24, 32), (24 / 40, 32 / 90)),
    "cropped": Placement(SIZE, (24, 32), (1.0, 1.0), (-8.0, -29.0)),
    "padded": Placement(SIZE, (24, 32), (0.3, 0.3), (6.0, 2.5)),
    "outside": Placement(SIZE, (24, 32), (1.0, 1.0), (-200.0, 0.0)),
}


@pytest.fixture
def few_rows(monkeypatch):
    """Images are large from 50 pixels on, and bands have seven rows."""
    monkeypatch.setattr(view, "IN_FIGURES", 50)
    monkeypatch.setattr(save, "IN_FILES", 50)
    monkeypatch.setattr(view.ImageView.reduced, "__defaults__", (50,))
    monkeypatch.setattr(pixels, "_BAND", 7 * SIZE[1])


def explanation(placement="whole", **changes):
    return handmade.explanation(placements=[PLACEMENTS[placement]], covered=(24, 32), targets=3, **changes)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("normalize", ["map", "shared", None])
def test_a_large_overlay_is_that_of_its_saliency(few_rows, placement, normalize):
    result = explanation(placement)
    maps = result.saliency(scale=normalize)[0]
    for target in range(3):
        whole = viz.overlay(result.images[0], maps[target].numpy(), result.seen[0].numpy())
        assert result.overlay(0, target, scale=normalize).tobytes() == whole.tobytes()


def test_a_target_that_the_image_has_not(few_rows):
    result = explanation(valid=torch.tensor([[True, False, True]]))
    maps = result.saliency()[0]
    for target in range(3):
        assert result.overlay(0, target).tobytes() == viz.overlay(result.images[0], maps[target].numpy()).tobytes()


@pytest.mark.parametrize("placement", ["whole", "cropped"])
def test_saved_overlays(few_rows, tmp_path, placement):
    result = explanation(placement)
    result.save(tmp_path)
    for target in range(3):
        with Image.open(tmp_path / f"image-0--target-{target}.png") as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(result.overlay(0, target)))


def test_figures_show_reduced_copies(few_rows, tmp_path):
    result = explanation()
    for figure in (result.figure(), result.layer_figure()):
        for axis in figure.axes[:-1]:
            if axis.images:
                assert axis.images[0].get_array().shape == (20, 45, 3)
    shown = result.figure().axes[0].images[0].get_array().astype(float)
    means = result.images[0].astype(float).reshape(20, 2, 45, 2, 3).mean((1, 3))
    assert np.abs(shown - means).max() <= 1
    # the colours lie where they lie on the original
    overlay = np.asarray(result.overlay(0, 0, alpha=1)).astype(float).reshape(20, 2, 45, 2, 3).mean((1, 3))
    assert np.abs(result.figure(alpha=1).axes[1].images[0].get_array() - overlay).max() <= 40


def test_small_images_are_shown_as_they_are():
    array = handmade.explanation().figure().axes[0].images[0].get_array()
    assert array.shape == (24, 32, 3)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (7, 2)])
@pytest.mark.parametrize("placement", ["whole", "cropped", "padded"])
@pytest.mark.parametrize("size", [(40, 90), (3, 200), (1, 1)])
def test_the_extremes_are_among_the_corners(grid, placement, size):
    """Of all pixels inside, without resampling them all."""
    maps = torch.rand(5, *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patches = cells(grid, (24, 32))
    resampler = geometry.Resampler(PLACEMENTS[placement], patches, size)
    if resampler.sees_nothing:
        return
    inside = geometry.place(maps, PLACEMENTS[placement], patches, size)[
        ..., geometry.seen(PLACEMENTS[placement], patches, size)
    ]
    values = resampler.extremes(maps).flatten(1)
    assert limits.close(values.amax(1), inside.amax(1))
    assert limits.close(values.amin(1), inside.amin(1))
    assert values.shape[1] <= 4 * (grid[0] + 1) * (grid[1] + 1)


@pytest.mark.parametrize("placement", ["whole", "cropped", "padded"])
def test_maps_are_laid_as_torch_lays_them(placement):
    """grid_sample spans the centres of the first and last cell, and half a stride on either side, by -1 to 1."""
    maps = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = PLACEMENTS[placement]
    axes = []
    for axis, covered in enumerate((24, 32)):
        centres = torch.arange(SIZE[axis], dtype=torch.float64) + 0.5
        axes.append((centres * frame.scale[axis] + frame.offset[axis]) / covered * 2 - 1)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None]
    expected = torch.nn.functional.grid_sample(maps[None], points, padding_mode="border", align_corners=False)[0]
    assert limits.close(geometry.place(maps, frame, cells((3, 4), (24, 32)), SIZE), expected)


def test_one_map_of_several_keeps_its_range():
    maps = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0))
    resampler = geometry.Resampler(PLACEMENTS["whole"], cells((3, 4), (24, 32)), SIZE)
    for normalize in ("map", "shared", None):
        several = surface.Surface.of(maps, resampler, normalize, 2)
        for index in range(3):
            assert torch.equal(several[index].rows(slice(5, 9)), several.rows(slice(5, 9))[index])


# -- files --------------------------------------------------------------------------------------------------------


def test_a_mixture_has_an_opacity_for_every_level():
    colours = np.array([[0, 0, 0], [200, 100, 50]], np.uint8)
    mix = pixels.Mixture(colours, np.array([0.0, 0.5]))
    image = np.full((1, 4, 3), 100, np.uint8)
    result = mix(image, np.array([[0.0, 0.4, 0.6, np.nan]]))
    assert result.tolist() == [[[100] * 3, [100] * 3, [150, 100, 75], [100] * 3]]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_other_formats(request, tmp_path, kind, name, large):
    if large:
        request.getfixturevalue("few_rows")
    smooth = np.linspace(0, 255, SIZE[1]).astype(np.uint8)[None, :, None].repeat(SIZE[0], 0).repeat(3, -1)
    result = explanation(images=[smooth])
    files = result.save(tmp_path, format=kind)
    assert [path.suffix for path in files].count(f".{kind}") == 4  # the figure too
    with Image.open(tmp_path / f"image-0--target-1.{kind}") as image:
        assert image.format == name
        difference = np.asarray(image.convert("RGB")).astype(int) - np.asarray(result.overlay(0, 1))
        assert np.abs(difference).mean() < 4
    result.save(tmp_path)  # the overlays of the other format go
    assert not list(tmp_path.glob(f"*.{kind}"))


def test_no_such_format(tmp_path):
    with pytest.raises(legrad.InputError, match="format is one of 'png', 'jpg', 'webp', got 'gif'"):
        explanation().save(tmp_path / "out", format="gif")
    assert not (tmp_path / "out").exists()


def test_too_large_for_the_format():
    with pytest.raises(legrad.InputError, match=r"WEBP files have at most 16383 .* 16384 x 1; use format='png'"):
        viz.encoded(Image.new("RGB", (16384, 1)), "webp")


def test_what_a_thread_raises_reaches_the_caller(few_rows, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no")

    monkeypatch.setattr(view.ImageView, "large_overlay", fail)
    with pytest.raises(MemoryError):
        explanation().save(tmp_path)
    assert not list(tmp_path.iterdir())
