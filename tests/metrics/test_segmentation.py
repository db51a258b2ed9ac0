"""Segmentation and point metrics: acceptance vectors, hand-computed cases, scikit-learn and torchmetrics."""

import json

import numpy as np
import pytest
import torch
from helpers import limits
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, jaccard_score
from torchmetrics.functional.classification import binary_average_precision
from torchvision import transforms

from legrad.errors import InputError
from legrad.metrics import framing, points, segmentation
from legrad.metrics.ranges import unit_range

RNG = np.random.default_rng(0)


def _disc(size=224, share=0.3):
    y, x = np.mgrid[:size, :size]
    return (x - size / 3) ** 2 + (y - size / 2) ** 2 < share * size**2 / np.pi


def _score(saliency, mask, **options):
    return segmentation.summarise([segmentation.measure(saliency, mask, **options)])


@pytest.mark.parametrize("threshold", ["mean", 0.5])
def test_a_perfect_map_is_one_throughout(threshold):
    mask = _disc()
    found = _score(mask * 3.0 - 1, mask, threshold=threshold)
    assert [found[name] for name in ("accuracy", "miou", "map", "mean_image_fg_iou", "mean_fg_ap")] == [1.0] * 5
    assert found["flat"] == 0


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
@pytest.mark.parametrize("threshold", ["mean", 0.5])
def test_a_constant_map_is_all_background_with_ap_one_half(value, threshold):
    mask = _disc()
    found = _score(np.full(mask.shape, value), mask, threshold=threshold)
    assert found["accuracy"] == pytest.approx(1 - mask.mean())
    assert found["iou_foreground"] == 0
    assert found["map"] == pytest.approx(0.5)
    assert found["mean_fg_ap"] == pytest.approx(mask.mean())
    assert found["flat"] == 1


def test_a_random_map_is_at_one_half():
    mask = _disc(share=0.1)
    found = _score(RNG.random(mask.shape), mask)
    assert found["accuracy"] == pytest.approx(0.5, abs=0.01)
    assert found["map"] == pytest.approx(0.5, abs=0.01)


def test_the_pooled_ap_changes_under_monotone_rescaling_and_the_ordinary_one_does_not():
    mask = _disc()
    saliency = mask + RNG.normal(0, 0.4, mask.shape)
    once, fourth = _score(saliency, mask), _score(unit_range(saliency) ** 4, mask)
    assert once["map"] > fourth["map"] + 0.01
    assert once["mean_fg_ap"] == pytest.approx(fourth["mean_fg_ap"])


def test_an_inverted_map_still_gets_one_half():
    assert _score(1.0 - _disc(), _disc())["map"] == pytest.approx(0.5)


def test_hand_computed():
    saliency = np.array([[0.0, 1.0], [2.0, 4.0]])  # R = 0, 1/4, 1/2, 1; its mean is 7/16
    mask = np.array([[False, True], [False, True]])
    item = segmentation.measure(saliency, mask)
    assert {name: item[name] for name in ("tp", "fp", "fn", "tn")} == {"tp": 1, "fp": 1, "fn": 1, "tn": 1}
    # (1 - R, R) = (1, 3/4, 1/2, 0, 0, 1/4, 1/2, 1) against (1, 0, 1, 0, 0, 1, 0, 1): at each of the distinct scores
    # 1, 3/4, 1/2, 1/4 recall 2/4, 2/4, 3/4, 1 and precision 1, 2/3, 3/5, 4/6
    assert item["ap"] == pytest.approx(0.5 * 1 + 0.25 * 3 / 5 + 0.25 * 4 / 6)
    assert item["fg_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # the threshold is strict: R = 1/2 is not above one half
    assert segmentation.foreground(saliency, 0.5).tolist() == [[False, False], [False, True]]


def test_iou_is_accumulated_over_the_data_set_before_dividing():
    made = [(RNG.random((16, 16)), RNG.random((16, 16)) < share) for share in (0.1, 0.5, 0.8)]
    found = segmentation.summarise(json.loads(json.dumps([segmentation.measure(*pair) for pair in made])))
    truth = np.concatenate([mask.ravel() for _, mask in made])
    guess = np.concatenate([segmentation.foreground(saliency).ravel() for saliency, _ in made])
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["miou"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert found["iou_background"] == pytest.approx(jaccard_score(~truth, ~guess))
    single = [jaccard_score(mask.ravel(), segmentation.foreground(saliency).ravel()) for saliency, mask in made]
    assert found["mean_image_fg_iou"] == pytest.approx(np.mean(single))
    assert abs(found["iou_foreground"] - np.mean(single)) > 0.01
    aps = []
    for saliency, mask in made:
        unit = unit_range(saliency)
        scores, both = np.stack([1 - unit, unit]).ravel(), np.stack([~mask, mask]).ravel()
        aps.append(average_precision_score(both, scores))
        tensors = torch.from_numpy(scores), torch.from_numpy(both).long()
        assert aps[-1] == pytest.approx(float(binary_average_precision(*tensors)), rel=limits.FLOAT32)
    assert found["map"] == pytest.approx(np.mean(aps))


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
    nothing = segmentation.summarise([segmentation.measure(saliency, mask, np.ones_like(mask))])
    assert nothing["accuracy"] is None
    assert nothing["map"] is None


def test_an_empty_mask_has_no_foreground_ap_and_iou_zero():
    found = _score(RNG.random((8, 8)), np.zeros((8, 8), bool))
    assert found["mean_fg_ap"] is None
    assert found["iou_foreground"] == 0
    flat = _score(np.zeros((8, 8)), np.zeros((8, 8), bool))  # an empty union: 0 / eps
    assert flat["iou_foreground"] == 0
    assert flat["mean_image_fg_iou"] is None
    assert flat["miou"] == 0.5


def test_shapes_are_checked():
    with pytest.raises(InputError, match="one shape"):
        segmentation.measure(np.zeros((4, 4)), np.zeros((4, 5), bool))
    with pytest.raises(InputError, match="no image"):
        segmentation.summarise([])


def _picture(size):
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(37, 20), (20, 37), (21, 21)])
def test_frames_are_those_of_torchvision(size):
    image, mask = _picture(size), RNG.random((size[1], size[0])) < 0.5
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
        framing.frame_image(_picture((4, 4)), 4, "pad")


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


def test_p_miou_and_its_two_averagings():
    found = points.summarise(ITEMS)
    # pooled: dog 3 / 10, cat 1 / 3, bird has an empty union
    assert found["p_miou"] == pytest.approx((3 / 10 + 1 / 3) / 2)
    # pairs: 3/4, 0, 0, 1
    assert found["p_miou_pairs"] == pytest.approx((3 / 4 + 0 + 0 + 1) / 4)
    del found["p_miou"], found["p_miou_pairs"]
    assert found == {
        "images": 3,
        "pairs": 5,
        "classes": 3,
        "positive_points": 11,
        "negative_points": 8,
        "skipped_pairs": 1,
        "skipped_classes": 1,
        "classes_without_negatives": 1,
        "flat": 1,
    }


def test_p_miou_of_nothing_is_none():
    assert points.summarise([])["p_miou"] is None
    assert points.summarise([{"bird": [0, 0, 0, 4, 0]}])["p_miou_pairs"] is None


def test_resampling_images_of_points_is_the_same_as_repeating_them():
    weights = np.array([2, 0, 1])
    repeated = points.summarise([ITEMS[0], ITEMS[0], ITEMS[2]])
    table = points.Table(ITEMS)
    assert table.statistic(weights) == pytest.approx(repeated["p_miou"])
    assert table.pairs_statistic(weights) == pytest.approx(repeated["p_miou_pairs"])
