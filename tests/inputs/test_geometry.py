"""Frames against the libraries' real transforms, and maps laid back onto the originals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import handmade, limits
from helpers.handmade import PICTURES, cells
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

import legrad
from legrad.inputs import geometry
from legrad.inputs.geometry import Placement
from legrad.inputs.transforms import follow, normalisation

SQUARE, WIDE, TALL = (48, 48), (32, 80), (72, 40)


def ramp(height, width):
    """Red is the column, green the row, blue is full: zeros in blue are padding."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


def open_clip_transform(size, mode):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(size, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode), is_train=False)


def timm_transform(size, crop_pct, crop_mode):
    from timm.data import create_transform

    return create_transform(
        (3, *size),
        is_training=False,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation="bicubic",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )


def assert_follows(transform, height, width):
    """Every input pixel comes from where the frame says, to 0.6 pixels of the original."""
    frame = follow(transform, (height, width))
    result = transform(ramp(height, width)) * 255
    assert frame.input == tuple(result.shape[1:])
    assert frame.original == (height, width)
    for axis, side in enumerate((height, width)):
        # of the input's pixel centres, in original pixels; edges are integers
        source = (torch.arange(frame.input[axis]) + 0.5 - frame.offset[axis]) / frame.scale[axis]
        other = 1 - axis
        reach = max(1.0, 1 / frame.scale[axis])  # of the resampling filter
        # black is beyond the image, and only there
        blue = result[2].amax(other)
        assert (blue[(source > reach / 2) & (source < side - reach / 2)] > 250).all()
        assert (blue[(source < -reach / 2) | (source > side + reach / 2)] == 0).all()
        # the filter bends the ramp at the image's edges
        interior = (source > 2 * reach) & (source < side - 2 * reach)
        assert interior.any() or side < 6 * reach
        found = result[other].amax(other)[interior] + 0.5
        assert torch.allclose(found, source[interior], rtol=0, atol=0.6)
    return frame


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip(picture, size, mode):
    frame = assert_follows(open_clip_transform(size, mode), *picture)
    whole = geometry.seen(frame, cells((1, 1), frame.input), picture).all()
    if mode != "shortest":
        assert whole
    elif picture[0] * size[1] != picture[1] * size[0] and max(picture) > 20:
        assert not whole


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_open_clip_with_an_int_size(mode):
    assert_follows(open_clip_transform(48, mode), 97, 211)


@pytest.mark.parametrize("picture", PICTURES[:5])
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
@pytest.mark.parametrize(
    ("pct", "mode"), [(1.0, "center"), (0.875, "center"), (0.9, "squash"), (1.0, "squash"), (0.95, "border")]
)
def test_timm(picture, size, pct, mode):
    assert_follows(timm_transform(size, pct, mode), *picture)


@pytest.mark.parametrize("version", [transforms, v2])
@pytest.mark.parametrize("picture", PICTURES)
def test_torchvision(version, picture):
    tail = [version.ToTensor()] if version is transforms else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    resize = version.Resize(40, max_size=70)
    assert_follows(version.Compose([resize, version.CenterCrop((36, 52)), *tail]), *picture)
    assert_follows(version.Compose([version.CenterCrop(60), version.Resize((30, 40)), *tail]), *picture)


def test_a_single_step():
    assert follow(transforms.Resize(10), (20, 40)).input == (10, 20)


@pytest.mark.parametrize(
    "step",
    [
        transforms.RandomResizedCrop(8),
        transforms.Pad(2),
        transforms.RandomHorizontalFlip(),
        transforms.FiveCrop(2),
        v2.Resize(None, max_size=20),
        transforms.Compose([transforms.Resize(8)]),
    ],
    ids=lambda step: type(step).__name__,
)
def test_unknown_steps(step):
    with pytest.raises(legrad.InputError, match="follow"):
        follow(transforms.Compose([step, transforms.ToTensor()]), (20, 30))


def test_unknown_steps_name_the_way_out():
    with pytest.raises(legrad.InputError, match=r"step Pad: known are Resize.*pass a float tensor"):
        follow(transforms.Pad(2), (20, 30))


@pytest.mark.parametrize("mode", ["longest", "shortest"])
def test_strips_too_thin_to_resize(mode):
    # nothing would be left of the short side, or the long one would fill the memory
    with pytest.raises(legrad.InputError, match=r"an image of 1 x 10000 pixels is too thin.*fit='squash'"):
        follow(open_clip_transform(224, mode), (1, 10000))
    assert follow(open_clip_transform(224, "squash"), (1, 10000)).input == (224, 224)


def test_normalisation():
    mean, std = normalisation(transforms.Compose([transforms.Normalize((0.1, 0.2, 0.3), (1, 2, 3))]))
    assert mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert std.tolist() == [1, 2, 3]
    assert normalisation(transforms.ToTensor()) is None


# -- placing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 32), (25, 31), (3, 4), (5, 1), (100, 7)])
def test_place_is_plain_interpolation_if_all_was_seen(size):
    maps = torch.rand(2, 5, 3, 4, dtype=torch.float64)
    placed = geometry.place(maps, Placement(size, size), cells((3, 4), size), size)
    assert placed.shape == (2, 5, *size)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    assert limits.close(placed, expected)
    # squashed images are no different
    squashed = follow(transforms.Resize((48, 64)), size)
    assert limits.close(geometry.place(maps, squashed, cells((3, 4), (48, 64)), size), expected)


def test_place_keeps_the_dtype():
    maps = torch.rand(1, 3, 4)
    assert geometry.place(maps, Placement((8, 8), (8, 8)), cells((3, 4), (8, 8)), (8, 8)).dtype == torch.float32


def test_place_in_a_crop():
    # 40 x 100 -> 20 x 50 -> the middle 20 x 20: original columns 30 to 70
    frame = follow(transforms.Compose([transforms.Resize(20), transforms.CenterCrop(20)]), (40, 100))
    maps = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    placed = geometry.place(maps, frame, cells((5, 5), (20, 20)), (40, 100))
    window = F.interpolate(maps, (40, 40), mode="bilinear", align_corners=False)
    assert limits.close(placed[..., 30:70], window)
    seen = geometry.seen(frame, cells((5, 5), (20, 20)), (40, 100))
    assert seen[:, 30:70].all()
    assert seen.sum() == 40 * 40


def test_place_in_a_padded_frame():
    # 40 x 100 -> 8 x 20, with 6 rows of padding above and below
    frame = follow(open_clip_transform(20, "longest"), (40, 100))
    assert (frame.offset, frame.scale) == ((6, 0), (0.2, 0.2))
    rows = (torch.arange(20, dtype=torch.float64) + 0.5)[:, None].expand(20, 20)  # a pixel of input per cell
    placed = geometry.place(rows[None], frame, cells((20, 20), (20, 20)), (40, 100))[0]
    expected = 6 + (torch.arange(40, dtype=torch.float64) + 0.5) * 0.2
    assert limits.close(placed[:, 50], expected)
    assert geometry.seen(frame, cells((5, 5), (20, 20)), (40, 100)).all()


def test_pixels_beyond_the_last_whole_patch_are_unseen():
    # 20 pixels of input hold two patches of 8
    seen = geometry.seen(Placement((20, 20), (20, 20)), cells((2, 2), (16, 16)), (20, 20))
    assert seen[:16, :16].all()
    assert seen.sum() == 16 * 16


def test_place_at_another_size():
    frame = Placement((40, 60), (40, 60))
    maps = torch.rand(1, 4, 6, dtype=torch.float64)
    small = geometry.place(maps, frame, cells((4, 6), (40, 60)), (20, 30))[0]
    assert limits.close(small, F.interpolate(maps[None], (20, 30), mode="bilinear")[0, 0])


@pytest.mark.parametrize("size", [0, -1, (3,), (1, 2, 3), (0, 5), 2.5, "256", (2.0, 2), True, None, []])
def test_wrong_sizes(size):
    with pytest.raises(legrad.InputError, match="size is a positive int or"):
        geometry.as_size(size)


@pytest.mark.parametrize("size", [7, (7, 7), [7, 7], np.int64(7), torch.Size((7, 7))])
def test_sizes(size):
    assert geometry.as_size(size) == (7, 7)


# -- the saliency of an explanation -------------------------------------------------------------------------------


def cropped(original=(24, 60)):
    """Only the middle 24 x 24 pixels are seen."""
    return follow(transforms.CenterCrop(24), original)


def test_saliency_is_stretched_over_what_was_seen():
    found = handmade.explanation(grid=(3, 3), placements=[cropped()])
    assert torch.equal(found.seen[0], geometry.seen(cropped(), cells((3, 3), (24, 24)), (24, 60)))
    assert found.seen.sum() == 24 * 24
    maps = found.saliency()
    assert maps.shape == (1, 2, 24, 60)
    for one in maps[0]:
        assert one[found.seen[0]].min() == 0
        assert one[found.seen[0]].max() == 1
        assert (one[~found.seen[0]] == 0).all()
    raw = F.interpolate(found.relevance, (24, 24), mode="bilinear")[0, 0]
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    assert limits.close(maps[0, 0][:, 18:42], expected)


def test_unseen_extremes_do_not_count():
    # three columns of cells, but only the middle of the model's input lies in the image: the rest is padding
    frame = Placement((24, 8), (24, 24), (1.0, 1.0), (0.0, 8.0))
    relevance = torch.tensor([[9.0, 1, 9], [9, 2, 9], [9, 3, 9]])[None, None]
    found = handmade.explanation(targets=1, grid=(3, 3), covered=(24, 24), placements=[frame], relevance=relevance)
    raw = found.saliency(normalize=None)[0, 0]
    assert raw.max() < 9
    maps = found.saliency()[0, 0]
    assert (maps.min(), maps.max()) == (0, 1)
    assert limits.close(maps, (raw - raw.min()) / (raw.max() - raw.min()))


def test_shared_and_raw_saliency():
    relevance = torch.rand(2, 2, 3, 4) + torch.tensor([1.0, 5.0])[None, :, None, None]
    found = handmade.explanation(count=2, relevance=relevance)
    raw, shared = found.saliency(normalize=None), found.saliency(normalize="shared")
    assert limits.close(raw, F.interpolate(relevance, (24, 32), mode="bilinear"))
    for image in range(2):
        low, high = raw[image].min(), raw[image].max()
        assert limits.close(shared[image], (raw[image] - low) / (high - low))
        assert shared[image, 0].max() < shared[image, 1].min()


def test_missing_targets_take_no_part():
    alone = handmade.explanation(targets=2)
    relevance = torch.cat([alone.relevance, torch.zeros(1, 1, 3, 4)], 1)
    valid = torch.tensor([[True, True, False]])
    padded = handmade.explanation(targets=3, relevance=relevance, valid=valid)
    for normalize in ("map", "shared", None):
        maps = padded.saliency(normalize=normalize)
        assert torch.equal(maps[:, :2], alone.saliency(normalize=normalize)), normalize
        assert (maps[:, 2] == 0).all()


def test_an_image_without_any_target():
    found = handmade.explanation(valid=torch.zeros(1, 2, dtype=torch.bool))
    for normalize in ("map", "shared", None):
        assert torch.equal(found.saliency(normalize=normalize), torch.zeros(1, 2, 24, 32))


def test_wrong_normalize():
    found = handmade.explanation()
    for call in (found.saliency, found.overlay):
        with pytest.raises(legrad.InputError, match="normalize is one of"):
            call(normalize="minmax")


def test_saliency_at_another_size():
    found = handmade.explanation(grid=(3, 3), placements=[cropped()])
    maps = found.saliency(size=(12, 30))
    assert maps.shape == (1, 2, 12, 30)
    assert (maps[..., :9] == 0).all()
    assert maps[..., 9:21].amax((-1, -2)).eq(1).all()
    assert found.saliency(size=10).shape == (1, 2, 10, 10)
    with pytest.raises(legrad.InputError, match="size is"):
        found.saliency(size=0)


def test_originals_of_different_sizes():
    frames = [follow(transforms.Resize((24, 32)), size) for size in ((24, 32), (7, 90))]
    found = handmade.explanation(count=2, placements=frames)
    maps, seen = found.saliency(), found.seen
    assert isinstance(maps, list)
    assert isinstance(seen, list)
    assert [tuple(one.shape) for one in maps] == [(2, 24, 32), (2, 7, 90)]
    assert [tuple(one.shape) for one in seen] == [(24, 32), (7, 90)]
    # company changes nothing
    second = handmade.explanation(placements=frames[1:], relevance=found.relevance[1:])
    assert torch.equal(maps[1], second.saliency()[0])
    assert found.saliency(size=16).shape == (2, 2, 16, 16)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-12, 1e12])
@pytest.mark.parametrize("normalize", ["map", "shared"])
def test_flat_maps_are_zeros(value, normalize):
    # interpolation of a constant is not constant to the last bit
    found = handmade.explanation(grid=(7, 5), covered=(56, 40), relevance=torch.full((1, 2, 7, 5), value))
    frame = follow(transforms.Resize((56, 40)), (97, 211))
    for one in (found, handmade.explanation(grid=(7, 5), placements=[frame], relevance=found.relevance)):
        assert torch.equal(one.saliency(normalize=normalize), torch.zeros(1, 2, *one.placements[0].original))


def test_tiny_contrast_is_still_stretched():
    relevance = torch.rand(1, 2, 3, 4) * 1e-9
    assert handmade.explanation(relevance=relevance).saliency().amax((-1, -2)).eq(1).all()


def test_nothing_seen():
    # a crop between two pixel centres
    frame = Placement((10, 10), (4, 4), (10.0, 10.0), (-6.0, -6.0))
    found = handmade.explanation(grid=(2, 2), covered=(3, 3), placements=[frame])
    assert not found.seen.any()
    assert torch.equal(found.saliency(), torch.zeros(1, 2, 10, 10))


def test_grids_and_words():
    found = handmade.explanation(count=2)
    assert found.grids == [(3, 4), (3, 4)]
    assert repr(found) == "Explanation(2 images x 2 targets, grid 3 x 4, layers [0, 2], none)"


def test_functions_that_might_move_pixels_are_refused():
    """A function is known by its name only; one that mirrors would put every map on the wrong side."""
    for step in (lambda picture: picture.rotate(180), transforms.Lambda(lambda picture: picture)):
        with pytest.raises(legrad.InputError, match="cannot follow the transform step"):
            follow(transforms.Compose([transforms.Resize(32), step]), (40, 40))
