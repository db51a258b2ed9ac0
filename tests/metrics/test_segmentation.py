"""Segmentation and point metrics: hand-computed cases of one image, and what torchvision frames."""

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from legrad.errors import InputError
from legrad.metrics import framing, points, segmentation

RNG = np.random.default_rng(0)


def test_hand_computed():
    saliency = np.array([[0.0, 1.0], [2.0, 4.0]])  # R = 0, 1/4, 1/2, 1; its mean is 7/16
    mask = np.array([[False, True], [False, True]])
    item = segmentation.measure(saliency, mask)
    assert item.keys() == {"tp", "fp", "fn", "tn", "ap", "flat"}
    assert {name: item[name] for name in ("tp", "fp", "fn", "tn")} == {"tp": 1, "fp": 1, "fn": 1, "tn": 1}
    # (1 - R, R) = (1, 3/4, 1/2, 0, 0, 1/4, 1/2, 1) against (1, 0, 1, 0, 0, 1, 0, 1): at each of the distinct scores
    # 1, 3/4, 1/2, 1/4 recall 2/4, 2/4, 3/4, 1 and precision 1, 2/3, 3/5, 4/6
    assert item["ap"] == pytest.approx(0.5 * 1 + 0.25 * 3 / 5 + 0.25 * 4 / 6)
    # the threshold is strict: R = 1/2 is not above one half
    assert segmentation.foreground(saliency, 0.5).tolist() == [[False, False], [False, True]]


def test_ignored_pixels_count_nowhere():
    saliency, mask = RNG.random((6, 8)), RNG.random((6, 8)) < 0.5
    saliency[0], saliency[5] = 0, 1  # the threshold is that of the whole map
    ignore = np.zeros_like(mask)
    ignore[2:4] = True
    item = segmentation.measure(saliency, mask, ignore)
    guess = segmentation.foreground(saliency)[~ignore]
    assert item["tp"] + item["fp"] + item["fn"] + item["tn"] == 32
    assert item["tp"] == (guess & mask[~ignore]).sum()
    changed = mask ^ ignore
    assert segmentation.measure(saliency, changed, ignore) == item


def test_shapes_are_checked():
    with pytest.raises(InputError, match="one shape"):
        segmentation.measure(np.zeros((4, 4)), np.zeros((4, 5), bool))


def _noise_image(size):
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(37, 20), (20, 37), (21, 21)])
def test_frames_are_those_of_torchvision(size):
    image, mask = _noise_image(size), RNG.random((size[1], size[0])) < 0.5
    squash = transforms.Resize((16, 16), transforms.InterpolationMode.BILINEAR)
    crop = transforms.Compose([transforms.Resize(16, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(16)])
    nearest = transforms.InterpolationMode.NEAREST
    squashed_mask = transforms.Resize((16, 16), nearest)(Image.fromarray(mask.astype(np.uint8)))
    cropped_mask = transforms.CenterCrop(16)(transforms.Resize(16, nearest)(Image.fromarray(mask.astype(np.uint8))))
    assert framing.frame_image(image, 16, interpolation="bilinear") == squash(image)
    for name in ("crop", "prs_compat"):
        assert framing.frame_image(image, 16, name) == crop(image)
    for name in ("squash", "prs_compat"):
        np.testing.assert_array_equal(framing.frame_mask(mask, 16, name), np.asarray(squashed_mask) == 1)
    np.testing.assert_array_equal(framing.frame_mask(mask, 16, "crop"), np.asarray(cropped_mask) == 1)
    assert framing.frame_mask(mask, 16).dtype == bool


def test_points_are_floored_and_clipped():
    relative = np.array([[0, 0], [0.5, 0.999], [1, 1], [0.29, 0.57]])
    for size in ((640, 480), (7, 1023)):
        found = framing.frame_points(relative * size, size, 100)
        np.testing.assert_array_equal(found, [[0, 0], [50, 99], [99, 99], [29, 57]])
    assert framing.frame_points(np.zeros((0, 2)), (8, 8), 4).shape == (0, 2)
    with pytest.raises(InputError, match="a crop would lose"):
        framing.frame_points(relative, (8, 8), 4, "crop")
    with pytest.raises(InputError, match="geometry is one of squash, crop, prs_compat"):
        framing.frame_image(_noise_image((4, 4)), 4, "pad")


MAP = np.array([[0.0, 0.5, 1.0], [0.6, 0.2, 0.4]])


def test_points_of_one_class():
    positive, negative = np.array([[2, 0], [1, 0], [0, 1]]), np.array([[0, 1], [1, 1]])
    # x first; one half is not above one half
    assert points.measure(MAP, positive, negative) == [2, 1, 1, 1, 0]
    assert points.measure(MAP * 0, positive, negative) == [0, 0, 3, 2, 1]
    assert points.measure(MAP, positive, np.zeros((0, 2), int)) == [2, 0, 1, 0, 0]


ITEMS = [
    {"dog": [3, 1, 0, 2, 0], "cat": [0, 0, 2, 0, 0]},
    {"dog": [0, 1, 5, 0, 0], "bird": [0, 0, 0, 4, 1]},
    {"cat": [1, 0, 0, 0, 0]},
]


def test_resampling_images_of_points_is_the_same_as_repeating_them():
    weights = np.array([2, 0, 1])
    repeated, table = points.Table([ITEMS[0], ITEMS[0], ITEMS[2]]), points.Table(ITEMS)
    assert table.statistic(weights) == pytest.approx(repeated.statistic(np.ones(3)))
    assert table.pairs_statistic(weights) == pytest.approx(repeated.pairs_statistic(np.ones(3)))
