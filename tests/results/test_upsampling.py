"""The guided filter against a direct computation, window by window, and the half-maximum scale."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import handmade, limits
from PIL import Image

import legrad
from legrad.inputs.geometry import Placement
from legrad.results import upsampling


def direct(maps, image, radius, epsilon):
    """Equations 14 to 16 of the paper with loops over windows, in float64."""
    height, width, _ = image.shape
    slopes, offsets = np.zeros((len(maps), height, width, 3)), np.zeros((len(maps), height, width))

    def window(row, col):
        rows = slice(max(0, row - radius[0]), row + radius[0] + 1)
        return rows, slice(max(0, col - radius[1]), col + radius[1] + 1)

    for row, col in np.ndindex(height, width):
        colours = image[window(row, col)].reshape(-1, 3)
        mean = colours.mean(0)
        covariance = (colours - mean).T @ (colours - mean) / len(colours)
        for index, values in enumerate(maps):
            inside = values[window(row, col)].ravel()
            slope = np.linalg.solve(
                covariance + epsilon * np.eye(3), (colours * inside[:, None]).mean(0) - mean * inside.mean()
            )
            slopes[index, row, col], offsets[index, row, col] = slope, inside.mean() - slope @ mean
    result = np.zeros((len(maps), height, width))
    for row, col in np.ndindex(height, width):
        place = window(row, col)
        for index in range(len(maps)):
            slope = slopes[index][place].reshape(-1, 3).mean(0)
            result[index, row, col] = slope @ image[row, col] + offsets[index][place].mean()
    return result


@pytest.mark.parametrize("radius", [(2, 2), (1, 4), (9, 3)])
def test_against_windows_one_by_one(radius):
    rng = np.random.default_rng(0)
    maps, image = rng.random((2, 13, 17)), rng.random((13, 17, 3))
    expected = direct(maps, image, radius, upsampling.EPSILON)
    filtered = upsampling.guided(torch.tensor(maps), torch.tensor(image), radius)
    assert np.abs(filtered.numpy() - expected).max() < limits.FLOAT64
    in_float32 = upsampling.guided(torch.tensor(maps).float(), torch.tensor(image).float(), radius)
    assert in_float32.dtype == torch.float32
    assert np.abs(in_float32.numpy() - expected).max() < 100 * limits.FLOAT32  # 3 x 3 systems of nearly flat windows


def test_a_flat_map_stays():
    image = torch.rand(20, 30, 3)
    filtered = upsampling.guided(torch.full((1, 20, 30), 0.7), image, (3, 3))
    assert torch.allclose(filtered, torch.tensor(0.7), atol=limits.FLOAT32)


def test_an_edge_of_the_image_becomes_one_of_the_map():
    """A blurred step two pixels away from the image's edge moves there."""
    image = torch.zeros(32, 32, 3)
    image[:, 16:] = 1
    maps = ((torch.arange(32) - 14) / 8).clamp(0, 1).expand(1, 32, 32)
    filtered = upsampling.guided(maps, image, (6, 6))[0, 16]
    jumps = filtered.diff()
    assert int(jumps.argmax()) == 15
    assert jumps[15] > 4 * maps[0, 16].diff().max()


def test_large_images_are_fitted_on_fewer_pixels():
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 12, generator=rng)
    image = F.interpolate(coarse, (1200, 1200), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    grid = torch.rand(1, 1, 9, 9, generator=rng)
    small = upsampling.fit_size((1200, 1200), (100, 100))
    assert small[0] * small[1] <= upsampling._FIT_PIXELS
    fast, exact = (
        upsampling.guided(F.interpolate(grid, size, mode="bilinear")[0], image, (100, 100))
        for size in (small, (1200, 1200))
    )
    assert fast.shape == exact.shape
    assert (fast - exact).abs().max() < 0.02 * (exact.max() - exact.min())


def test_small_windows_are_not_made_smaller():
    assert upsampling.fit_size((2000, 2000), (3, 50)) == (2000, 2000)
    assert upsampling.fit_size((300, 200), (50, 50)) == (300, 200)
    assert upsampling.fit_size((4000, 3000), (8, 200)) == (2000, 1500)


def test_the_half_maximum_scale():
    values = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)) ** 4
    scaled = upsampling.half_maximum(values, 0.5)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    assert torch.equal(values.argsort(-1), scaled.argsort(-1))  # monotone, without ties
    background = values.median(-1, keepdim=True).values
    peak = values.topk(30, dim=-1).values.mean(-1, keepdim=True)
    # the linear part moves the crossing a little
    clear = ((values - background) / (peak - background) - 0.5).abs() > 0.01
    assert torch.equal((scaled > 0.5)[clear], (values > (background + peak) / 2)[clear])
    assert not upsampling.half_maximum(torch.full((1, 50), 3.0), 0.5).any()
    lit = torch.zeros(1, 1000)
    lit[0, 0] = 1  # fewer pixels than the peak's share
    assert upsampling.half_maximum(lit, 0.5)[0, 0] > 0.9


# -- of an explanation --------------------------------------------------------------------------------------------


def split(height, width, edge):
    """Black left of an edge, white right of it."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, edge:] = 255
    return image


RIGHT = torch.tensor([0.0, 0, 1, 1]).expand(1, 1, 4, 4)


def test_saliency_follows_the_contours_of_the_image():
    """The step of the map, blurred over a patch, is where the image has its edge, some pixels aside."""
    found = handmade.explanation(targets=1, grid=(4, 4), relevance=RIGHT, images=[split(32, 32, 19)])
    line = found.saliency(upsampling="guided")[0, 0, 16]
    assert int(line.diff().argmax()) == 18
    assert line.diff().max() > 3 * found.saliency()[0, 0, 16].diff().max()
    assert (line.min(), line.max()) == (0, 1)
    raw = found.saliency(scale=None, upsampling="guided")[0, 0]
    expected = upsampling.guided(found.saliency(scale=None)[0], torch.from_numpy(found.images[0]) / 255, (8, 8))[0]
    assert limits.close(raw, expected)


def test_only_what_the_model_saw_is_filtered_and_scaled():
    frame = Placement((24, 60), (24, 24), (1.0, 1.0), (0.0, -18.0))  # columns 18 to 41
    image = split(24, 60, 30)
    found = handmade.explanation(targets=1, grid=(3, 3), placements=[frame], images=[image])
    alone = handmade.explanation(targets=1, grid=(3, 3), relevance=found.relevance, images=[image[:, 18:42]])
    for scale in ("map", "shared", "half", None):
        whole = found.saliency(scale=scale, upsampling="guided")[0, 0]
        assert not whole[~found.seen[0]].any()
        assert limits.close(whole[:, 18:42], alone.saliency(scale=scale, upsampling="guided")[0, 0]), scale


def test_any_size_and_sizes_that_differ():
    placements = [Placement(size, (24, 32), (24 / size[0], 32 / size[1])) for size in ((24, 32), (60, 50))]
    found = handmade.explanation(count=2, placements=placements)
    maps = found.saliency(upsampling="guided", scale="half")
    assert [one.shape for one in maps] == [(2, 24, 32), (2, 60, 50)]
    assert found.saliency(size=(10, 90), upsampling="guided").shape == (2, 2, 10, 90)
    small = handmade.explanation(
        grid=(3, 4),
        relevance=found.relevance[1:],
        images=[np.asarray(Image.fromarray(found.images[1]).resize((32, 24), Image.Resampling.BILINEAR))],
    )
    wide = found.saliency(size=(24, 32), upsampling="guided")[1]
    assert float(np.corrcoef(wide.flatten(), small.saliency(upsampling="guided")[0].flatten())[0, 1]) > 0.99


@pytest.mark.parametrize("scale", ["map", "shared", "half"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1e-12, 1e12])
def test_flat_maps_are_zeros(value, scale):
    found = handmade.explanation(grid=(7, 5), relevance=torch.full((1, 2, 7, 5), value))
    for way in ("bilinear", "guided"):
        assert not found.saliency(scale=scale, upsampling=way).any()


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_the_size_of_numbers_does_not_matter(factor):
    found = handmade.explanation()
    other = handmade.explanation(relevance=found.relevance * factor)
    assert limits.close(other.saliency(upsampling="guided"), found.saliency(upsampling="guided"))


def test_videos_are_filtered_frame_by_frame():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (4, 24, 32, 3), np.uint8)
    relevance = torch.rand(1, 2, 4, 3, 4)
    axes = ("frames", "rows", "cols")
    found = handmade.explanation(relevance=relevance, layer_relevance=None, images=[video], axes=axes)
    maps = found.saliency(scale=None, upsampling="guided")
    assert maps.shape == (1, 2, 4, 24, 32)
    one = handmade.explanation(relevance=relevance[:, :, 2], images=[video[2]])
    assert limits.close(maps[:, :, 2], one.saliency(scale=None, upsampling="guided"))
    half = found.saliency(scale="half")
    assert half.shape == maps.shape
    assert limits.close(half[0, 0].flatten(), upsampling.half_maximum(found.saliency(scale=None)[0, :1].flatten(1))[0])


def test_half_of_an_explanation_keeps_the_order():
    found = handmade.explanation()
    plain, half = found.saliency(), found.saliency(scale="half")
    assert torch.equal(plain.flatten(2).argsort(stable=True), half.flatten(2).argsort(stable=True))
    assert half.min() >= 0
    assert half.max() <= 1


def test_the_other_name_of_the_scale():
    found = handmade.explanation()
    assert torch.equal(found.saliency(normalize="shared"), found.saliency(scale="shared"))
    assert torch.equal(found.saliency(None, "shared"), found.saliency(scale="shared"))
    assert found.overlay(normalize=None).tobytes() == found.overlay(scale=None).tobytes()


def test_overlays_and_figures_take_both():
    found = handmade.explanation(images=[split(24, 32, 11)])
    plain, guided = found.overlay(), found.overlay(upsampling="guided", scale="half")
    assert plain.tobytes() != guided.tobytes()
    assert found.figure(upsampling="guided", scale="half") is not None


@pytest.mark.parametrize(
    "wrong", [{"scale": "minmax"}, {"scale": 3}, {"scale": ["map"]}, {"upsampling": "bicubic"}, {"upsampling": None}]
)
def test_other_words_are_refused(wrong):
    found = handmade.explanation()
    for call in (found.saliency, found.overlay, found.figure):
        with pytest.raises(legrad.InputError, match=f"{next(iter(wrong))}.* is one of"):
            call(**wrong)
