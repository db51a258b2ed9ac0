"""Perturbation, localisation, presence, audio scorer and bootstrap: hand-computed cases and independent twins."""

import json

import numpy as np
import pytest
import torch
from helpers import limits
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score

from legrad.errors import InputError
from legrad.metrics import audio, bootstrap, localisation, perturbation, presence, ranges, ranking, segmentation

RNG = np.random.default_rng(0)


def test_the_published_numbers_of_pixels():
    assert perturbation.counts(224 * 224) == [5017, 10035, 15052, 20070, 25088, 30105, 35123, 40140, 45158]
    assert perturbation.counts(100, [0.29]) == [29]


@pytest.mark.parametrize("accuracy", [0.0, 0.80314, 1.0])
def test_a_constant_accuracy_a_has_auc_90a(accuracy):
    assert perturbation.auc([accuracy] * 10) == pytest.approx(90 * accuracy)
    assert perturbation.auc_normalised([accuracy] * 10) == pytest.approx(100 * accuracy)


def test_auc_is_a_trapezoid_with_the_clean_point():
    assert perturbation.auc([1, 0, 0], [0.1, 0.9]) == pytest.approx(5)
    assert perturbation.auc([0, 1, 0], [0.5, 1.0]) == pytest.approx(50)
    with pytest.raises(InputError, match="the clean value and one per step, 10; got 9"):
        perturbation.auc([1] * 9)


@pytest.mark.parametrize("steps", [[], [0.5, 0.5], [0.5, 1.1], [0.0, 0.5]])
def test_steps_are_ascending_shares(steps):
    with pytest.raises(InputError, match="ascending shares"):
        perturbation.counts(10, steps)


def test_what_is_erased_first():
    saliency = np.array([[0.1, 0.9], [0.5, 0.3]])
    assert perturbation.order(saliency).tolist() == [1, 2, 3, 0]
    assert perturbation.order(saliency, "negative").tolist() == [0, 3, 2, 1]
    erased = perturbation.masks(saliency, steps=[0.25, 0.5, 0.99])
    assert erased.reshape(3, 4).astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_ties_go_by_index_in_both_directions_or_by_seed():
    saliency = np.zeros((8, 8))
    saliency[4, 4] = 1
    zeros = [i for i in range(64) if i != 36]
    assert perturbation.order(saliency).tolist() == [36, *zeros]
    assert perturbation.order(saliency, "negative").tolist() == [*zeros, 36]
    shuffled = perturbation.order(saliency, ties="random", seed=1)
    assert shuffled[0] == 36
    assert shuffled.tolist() == perturbation.order(saliency, ties="random", seed=1).tolist()
    assert shuffled.tolist() != perturbation.order(saliency, ties="random", seed=2).tolist()
    assert sorted(shuffled.tolist()) == list(range(64))
    # no contrast, or no number at all: only ties
    for flat in (np.full((2, 2), 3.0), np.full((2, 2), np.nan)):
        assert perturbation.order(flat).tolist() == [0, 1, 2, 3]


def test_without_ties_the_pixels_are_those_of_topk():
    saliency = RNG.permutation(400).reshape(20, 20) / 400
    for direction, sign in (("positive", 1), ("negative", -1)):
        erased = perturbation.masks(saliency, direction)
        for mask, count in zip(erased, perturbation.counts(400), strict=True):
            best = torch.from_numpy(sign * saliency).flatten().topk(count).indices
            assert set(np.flatnonzero(mask)) == set(best.tolist())


def test_patches_are_erased_as_one():
    saliency = np.kron([[1.0, 2.0], [4.0, 3.0]], np.ones((3, 3)))
    saliency[0, 0] = 6  # a pixel is not a patch
    erased = perturbation.masks(saliency, steps=[0.25, 0.5], patch=3)
    np.testing.assert_array_equal(erased[0], np.kron([[0, 0], [1, 0]], np.ones((3, 3))))
    np.testing.assert_array_equal(erased[1], np.kron([[0, 0], [1, 1]], np.ones((3, 3))))
    with pytest.raises(InputError, match="6 x 6 pixels cannot be cut into patches of 4 x 4"):
        perturbation.masks(saliency, patch=4)


def test_erasing_is_in_all_channels_and_starts_from_the_clean_image():
    image = torch.rand(3, 4, 4) + 0.1
    before = image.clone()
    erased = perturbation.masks(RNG.random((4, 4)))
    black = perturbation.erase(image, erased)
    assert black.shape == (9, 3, 4, 4)
    for result, mask in zip(black, torch.from_numpy(erased), strict=True):
        assert (result[:, mask] == 0).all()
        assert torch.equal(result[:, ~mask], image[:, ~mask])
    mean = perturbation.erase(image, erased, "mean")
    assert limits.close(mean[-1][:, torch.from_numpy(erased[-1])], image.mean((1, 2))[:, None])
    inserted = perturbation.erase(image, ~erased)
    assert torch.equal(inserted + black, image.expand(9, -1, -1, -1))
    blurred = perturbation.erase(torch.eye(16).expand(3, -1, -1), np.ones((1, 16, 16), bool), "blur")
    assert blurred.max() < 0.5
    assert blurred[0, 0, 8, 9] > 0.05  # beside the line that was black and white
    assert torch.equal(image, before)
    with pytest.raises(InputError, match="fill is black, mean or blur"):
        perturbation.erase(image, erased, "pink")


MASKS = np.array([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1]]], bool)


def test_the_pointing_game():
    assert localisation.pointing(np.array([[0, 9, 1], [1, 1, 1]]), MASKS[0]) == 1
    miss = np.array([[0, 1, 1], [1, 1, 9]])
    assert localisation.pointing(miss, MASKS[0]) == 0
    assert localisation.pointing(miss, MASKS[0], tolerance=1) == 0
    assert localisation.pointing(miss, MASKS[0], tolerance=1.5) == 1
    beside = np.array([[0, 0, 0], [0, 9, 0]])
    assert localisation.pointing(beside, MASKS[0], tolerance=1) == 1
    assert localisation.pointing(beside, MASKS[0], tolerance=0.9) == 0
    assert localisation.pointing(np.array([[9, 0, 9], [0, 0, 0]]), MASKS[0]) == 0.5
    assert localisation.pointing(np.full((2, 3), np.nan), MASKS[0]) == pytest.approx(2 / 6)
    assert localisation.pointing(miss, np.zeros((2, 3), bool)) is None


def test_energy_in_the_mask():
    assert localisation.energy(np.array([[1, 2, 3], [0, 0, 6]]), MASKS[0]) == pytest.approx(3 / 12)
    assert localisation.energy(np.array([[1, 2, 1], [-9, 0, 0]]), MASKS[0]) == pytest.approx(3 / 4)
    assert localisation.energy(np.zeros((2, 3)), MASKS[0]) == pytest.approx(2 / 6)
    assert localisation.energy(np.ones((2, 3)), np.zeros((2, 3), bool)) is None


def test_prompt_swap():
    good, bad = MASKS.astype(float), 1 - MASKS.astype(float)
    assert localisation.swaps(good, MASKS) == (2, 2)
    assert localisation.swaps(bad, MASKS) == (0, 2)
    same = np.stack([good[0], good[0]])
    assert localisation.swaps(same, MASKS) == (1, 2)
    # no contrast: chance
    assert localisation.swaps(np.full((2, 2, 3), 0.1), MASKS) == (1, 2)


def test_prompt_swap_compares_means_over_masks_of_any_size():
    """Of map i over mask j; each map against its own mask."""
    masks = np.zeros((3, 1, 10), bool)
    masks[0, 0, :1], masks[1, 0, 1:4], masks[2, 0, 4:] = True, True, True
    means = np.array([[3.0, 2, 4], [5, 1, 6], [7, 8, 9]])
    maps = np.stack([(row[:, None, None] * masks).sum(0) for row in means])
    won = sum(means[i, i] > means[i, j] for i in range(3) for j in range(3) if i != j)
    assert localisation.swaps(maps, masks) == (won, 6) == (3, 6)
    # equal everywhere that is looked at, and yet not flat: the sums are rounded, a tie is a tie
    even = np.where(masks[:2].any(0), 0.1, 0.9)
    assert localisation.swaps(np.stack([even, masks[1]]), masks[:2]) == (1.5, 2)


def test_maps_and_masks_are_planes_of_one_shape():
    for shape in ((2, 2, 2), (4,), (0, 3)):
        for metric in (localisation.pointing, localisation.energy):
            with pytest.raises(InputError, match=r"one shape \(H, W\)"):
                metric(np.zeros(shape), np.zeros(shape, bool))


def test_maps_without_contrast_or_numbers():
    nothing = [np.full((2, 2), 3.0), np.zeros((2, 2)), np.array([[0.0, np.nan]]), np.array([[0.0, 1.0, np.inf]])]
    nothing.append(np.array([[0.0, 1.0, -np.inf]]))
    for one in nothing:
        assert ranges.is_flat(one)
        assert np.isnan(ranges.unit_range(one)).all()
    assert ranges.unit_range(np.array([[-2.0, 0], [6, 2]])).tolist() == [[0, 0.25], [1, 0.5]]
    assert ranges.unit_range(np.array([5, 7])).tolist() == [0, 1]


def test_localisation_of_an_image():
    maps = MASKS.astype(float)
    perfect = {"objects": 2, "hits": 2, "energy": 2, "swaps_won": 2, "swaps": 2, "flat": 0}
    assert localisation.measure(maps, MASKS) == perfect
    with_empty = localisation.measure(np.stack([maps[0], maps[0]]), np.stack([MASKS[0], np.zeros((2, 3), bool)]))
    assert (with_empty["objects"], with_empty["swaps"]) == (1, 0)
    assert localisation.measure(maps[:0], MASKS[:0])["swaps"] == 0
    with pytest.raises(InputError, match="one shape"):
        localisation.measure(maps, MASKS[0])


@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_areas_under_curves_are_those_of_scikit_learn(levels):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth, scores = rng.random(300) < 0.3, rng.integers(0, levels, 300) / levels
        weights = rng.integers(0, 4, 300).astype(float)
        assert ranking.average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores))
        expected = roc_auc_score(truth, scores, sample_weight=weights)
        assert ranking.auroc(truth, scores, weights) == pytest.approx(expected)
    assert ranking.average_precision(np.zeros(3, bool), np.ones(3)) is None
    assert ranking.auroc(np.array([True, False]), np.ones(2), np.array([1.0, 0.0])) is None


def test_presence():
    assert presence.auroc([3, 1, 2, 2], [True, False, True, False]) == pytest.approx(3.5 / 4)
    assert presence.auroc([1, 2], [True, True]) is None


def test_audio_scores_of_a_class_by_hand():
    # thresholds 0, 1/19, ..., 1: above 0.5 lie 0.9 and 1 of which one is true; above 0.9 only 1, which is not
    scores = np.array([0.0, 0.9, 0.5, 1.0])
    truth = np.array([False, True, True, False])
    ap, iou = audio.class_scores(scores, truth)
    assert iou == pytest.approx(2 / 3)  # above 0: three pixels, two of them true
    assert ap == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 3)
    assert audio.class_scores(scores, np.zeros(4, bool)) == (0, 0)
    assert audio.class_scores(np.ones(4), truth) == (0.5, 0)  # nothing is strictly above the only threshold


def test_the_best_iou_is_at_least_the_prevalence_but_for_the_least_pixel():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = rng.random(1000) < 0.3
        scores = rng.random(1000) - truth  # as bad as it gets
        assert audio.class_scores(scores, truth)[1] >= (truth.sum() - 1) / 1000


def test_prompts_of_audio_survive_a_file():
    item = audio.Prompted("a", RNG.random((4, 5)).astype(np.float32), RNG.random((16, 16)) < 0.3)
    again = audio.Prompted.from_json(json.loads(json.dumps(item.to_json())))
    assert again.name == item.name
    np.testing.assert_array_equal(again.relevance, item.relevance)
    np.testing.assert_array_equal(again.mask, item.mask)
    with pytest.raises(InputError, match="not a stored prompt"):
        audio.Prompted.from_json({"name": "a"})


def test_intervals_are_paired_and_seeded():
    rng = np.random.default_rng(1)
    base = rng.random(200)
    methods = {"a": bootstrap.mean_of(base.tolist()), "b": bootstrap.mean_of((base + 0.01).tolist())}
    found = bootstrap.intervals(methods, 200, reference="a", resamples=500)
    assert found == bootstrap.intervals(methods, 200, reference="a", resamples=500)
    assert found != bootstrap.intervals(methods, 200, reference="a", resamples=500, seed=1)
    assert found["a"]["value"] == pytest.approx(base.mean())
    # the classical interval of a mean
    half = 1.96 * base.std() / np.sqrt(200)
    assert found["a"]["low"] == pytest.approx(base.mean() - half, abs=0.01)
    assert found["a"]["high"] == pytest.approx(base.mean() + half, abs=0.01)
    # the same draws: a constant lead has no spread, although each method's interval is far wider
    for name in ("difference", "difference_low", "difference_high"):
        assert found["b"][name] == pytest.approx(0.01)
        assert found["a"][name] == 0


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_intervals_are_percentiles_of_draws_with_replacement(level):
    """Of the numbers 0 and 1: the mean of 400 draws is binomial."""
    values = [0.0, 1.0] * 200
    found = bootstrap.intervals({"a": bootstrap.mean_of(values)}, 400, resamples=4000, level=level)["a"]
    low, high = binom.interval(level, 400, 0.5)
    assert (found["low"], found["high"]) == pytest.approx((low / 400, high / 400), abs=0.003)


def test_a_statistic_of_sums_is_taken_after_summing():
    counts = np.array([[4.0, 0, 0, 4], [0, 4, 4, 0]])
    miou = bootstrap.ratio_of(lambda sums: segmentation.ratios(sums)[1], counts)
    assert miou(np.array([1, 1])) == pytest.approx(1 / 3)
    assert miou(np.array([2, 0])) == 1
    found = bootstrap.intervals({"a": miou}, 2, resamples=200)["a"]
    assert (found["low"], found["high"]) == (0, 1)


def test_items_without_a_value_are_left_out():
    mean = bootstrap.mean_of([None, 0.5, None])
    assert mean(np.ones(3)) == 0.5
    found = bootstrap.intervals({"a": mean, "none": bootstrap.mean_of([None] * 3)}, 3, resamples=50)
    assert found["a"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["none"] == {"value": None, "low": None, "high": None}


def test_bad_questions_to_the_bootstrap():
    with pytest.raises(InputError, match="items and resamples are positive"):
        bootstrap.intervals({}, 0)
    with pytest.raises(InputError, match="'c' is none of the methods a"):
        bootstrap.intervals({"a": bootstrap.mean_of([1.0])}, 1, reference="c")
