"""The numbers of a data set, as the command prints them: hand-computed cases, scikit-learn and torchmetrics."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits
from sklearn.metrics import accuracy_score, average_precision_score, jaccard_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from legrad.bench.summaries import compare
from legrad.bench.tasks.audio import AudioPrompted
from legrad.bench.tasks.localisation import Localisation
from legrad.bench.tasks.open_vocabulary import OpenVocabulary
from legrad.bench.tasks.perturbation import Perturbation
from legrad.bench.tasks.presence import Presence
from legrad.bench.tasks.segmentation import Segmentation, scores
from legrad.metrics import audio, localisation, perturbation, presence, segmentation
from legrad.metrics.ranges import unit_range

RNG = np.random.default_rng(0)


def printed(benchmark, items, *names):
    """The values of a benchmark's metrics over the scores of some images, read back from a file."""
    stored = {"legrad": {str(index): item for index, item in enumerate(json.loads(json.dumps(items)))}}
    values = {
        name: compare(stored, benchmark.metrics[name].statistic, "legrad", resamples=1)["legrad"]["value"]
        for name in names or benchmark.metrics
    }
    return values[names[0]] if len(names) == 1 else values


# -- segmentation -------------------------------------------------------------------------------------------------


def disc(size=224, share=0.3):
    y, x = np.mgrid[:size, :size]
    return (x - size / 3) ** 2 + (y - size / 2) ** 2 < share * size**2 / np.pi


def segmented(*pairs, ignore=None):
    """Of images with one object each: (map, mask)."""
    return printed(Segmentation(), [scores([saliency], [mask], ignore) for saliency, mask in pairs])


def test_a_perfect_map_is_one_throughout():
    mask = disc()
    values = segmented((mask * 3.0 - 1, mask))
    assert values.pop("flat") == 0
    assert set(values.values()) == {1}


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_constant_map_is_all_background_with_ap_one_half(value):
    mask = disc()
    values = segmented((np.full(mask.shape, value), mask))
    assert values["accuracy"] == values["accuracy_half"] == pytest.approx(1 - mask.mean())
    assert (values["iou_foreground"], values["flat"]) == (0, 1)
    assert values["map"] == pytest.approx(0.5)


def test_a_random_map_is_at_one_half():
    mask = disc(share=0.1)
    values = segmented((RNG.random(mask.shape), mask))
    assert values["accuracy"] == pytest.approx(0.5, abs=0.01)
    assert values["map"] == pytest.approx(0.5, abs=0.01)


def test_the_pooled_ap_changes_under_monotone_rescaling():
    mask = disc()
    saliency = mask + RNG.normal(0, 0.4, mask.shape)
    assert segmented((saliency, mask))["map"] > segmented((unit_range(saliency) ** 4, mask))["map"] + 0.01


def test_an_inverted_map_still_gets_one_half():
    assert segmented((1.0 - disc(), disc()))["map"] == pytest.approx(0.5)


def test_iou_is_accumulated_over_the_data_set_before_dividing():
    pairs = [(RNG.random((16, 16)), RNG.random((16, 16)) < share) for share in (0.1, 0.5, 0.8)]
    values = segmented(*pairs)
    truth = np.concatenate([mask.ravel() for _, mask in pairs])
    guess = np.concatenate([segmentation.foreground(saliency).ravel() for saliency, _ in pairs])
    half = np.concatenate([segmentation.foreground(saliency, 0.5).ravel() for saliency, _ in pairs])
    assert values["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert values["miou"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert values["accuracy_half"] == pytest.approx(accuracy_score(truth, half))
    assert values["miou_half"] == pytest.approx(jaccard_score(truth, half, average="macro"))
    per_image = [jaccard_score(mask.ravel(), segmentation.foreground(saliency).ravel()) for saliency, mask in pairs]
    assert values["mean_image_fg_iou"] == pytest.approx(np.mean(per_image))
    assert abs(values["iou_foreground"] - np.mean(per_image)) > 0.01
    precisions = []
    for saliency, mask in pairs:
        unit = unit_range(saliency)
        pooled, both = np.stack([1 - unit, unit]).ravel(), np.stack([~mask, mask]).ravel()
        precisions.append(average_precision_score(both, pooled))
        tensors = torch.from_numpy(pooled), torch.from_numpy(both).long()
        assert precisions[-1] == pytest.approx(float(binary_average_precision(*tensors)), rel=limits.FLOAT32)
    assert values["map"] == pytest.approx(np.mean(precisions))


def test_counts_of_an_images_classes_are_summed_and_the_rest_averaged():
    maps, masks = [disc(8) * 1.0, np.zeros((8, 8))], [disc(8), ~disc(8)]
    both = scores(maps, masks)
    first, second = (scores([saliency], [mask]) for saliency, mask in zip(maps, masks, strict=True))
    for name in ("tp", "fp", "fn", "tn"):
        assert both["mean"][name] == first["mean"][name] + second["mean"][name]
        assert both["half"][name] == first["half"][name] + second["half"][name]
    assert (both["mean"]["ap"], both["mean"]["flat"]) == (0.75, 0.5)


def test_nothing_but_ignored_pixels_is_no_number():
    saliency, mask = RNG.random((6, 8)), RNG.random((6, 8)) < 0.5
    values = segmented((saliency, mask), ignore=np.ones_like(mask))
    assert values["accuracy"] is None
    assert values["map"] is None


def test_an_empty_mask_has_iou_zero():
    empty = np.zeros((8, 8), bool)
    assert segmented((RNG.random((8, 8)), empty))["iou_foreground"] == 0
    flat = segmented((np.zeros((8, 8)), empty))  # an empty union: 0 / eps
    assert flat["iou_foreground"] == 0
    assert flat["mean_image_fg_iou"] is None
    assert flat["miou"] == 0.5


# -- points -------------------------------------------------------------------------------------------------------


def test_p_miou_and_its_two_averagings():
    items = [
        {"dog": [3, 1, 0, 2, 0], "cat": [0, 0, 2, 0, 0]},
        {"dog": [0, 1, 5, 0, 0], "bird": [0, 0, 0, 4, 1]},
        {"cat": [1, 0, 0, 0, 0]},
    ]
    values = printed(OpenVocabulary(), [{"classes": item} for item in items])
    # pooled: dog 3 / 10, cat 1 / 3, bird has an empty union
    assert values["p_miou"] == pytest.approx((3 / 10 + 1 / 3) / 2)
    # pairs: 3/4, 0, 0, 1
    assert values["p_miou_pairs"] == pytest.approx((3 / 4 + 0 + 0 + 1) / 4)
    assert values["flat"] == pytest.approx((0 + 1 / 2 + 0) / 3)


def test_p_miou_of_nothing_is_none():
    values = printed(OpenVocabulary(), [{"classes": {"bird": [0, 0, 0, 4, 0]}}])
    assert (values["p_miou"], values["p_miou_pairs"]) == (None, None)


# -- localisation -------------------------------------------------------------------------------------------------


MASKS = np.array([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1]]], bool)


def test_localisation_of_a_data_set():
    maps = MASKS.astype(float)
    first = localisation.measure(maps, MASKS)
    with_empty = localisation.measure(np.stack([maps[0], maps[0]]), np.stack([MASKS[0], np.zeros((2, 3), bool)]))
    wrong = localisation.measure(np.stack([maps[1], np.zeros((2, 3))]), MASKS)
    values = printed(Localisation(), [first, with_empty, wrong])
    chance = 2 / 6
    assert values["pointing"] == pytest.approx((2 + 1 + 0 + chance) / 5)
    assert values["energy"] == pytest.approx((2 + 1 + 0 + chance) / 5)
    assert values["swap"] == pytest.approx((2 + 0 + 0.5) / 4)
    assert values["flat"] == pytest.approx((0 + 0 + 1 / 2) / 3)
    assert printed(Localisation(), [with_empty], "swap") is None


# -- perturbation -------------------------------------------------------------------------------------------------


def test_perturbation_of_a_data_set():
    falling, rising = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 5 + [1] * 5
    items = [{"clean": curve[0], "target": {"positive": curve}} for curve in (falling, rising)]
    names = ("positive_target", "positive_target_normalised", "positive_target_correct_only", "clean")
    values = printed(Perturbation(), items, *names)
    # 2 and a half tenths, 4 and a half tenths; the area of the mean curve is the mean of the areas
    assert values["positive_target"] == pytest.approx((25 + 45) / 2)
    assert values["positive_target"] == pytest.approx(perturbation.auc(np.mean([falling, rising], 0)))
    assert values["positive_target_normalised"] == pytest.approx(35 / 0.9)
    assert values["positive_target_correct_only"] == pytest.approx(25)
    assert values["clean"] == 0.5
    assert printed(Perturbation(), items[1:], "positive_target_correct_only") is None
    assert printed(Perturbation(), items, "positive_predicted") is None


# -- presence -----------------------------------------------------------------------------------------------------


def test_presence_of_a_data_set():
    evidence, there = RNG.random((50, 3)), RNG.random(50) < 0.4
    items = [
        {
            "present": evidence[i : i + 5][there[i : i + 5]].tolist(),
            "absent": evidence[i : i + 5][~there[i : i + 5]].tolist(),
        }
        for i in range(0, 50, 5)
    ]
    values = printed(Presence(), items)
    for kind, name in enumerate(("auroc_maximum", "auroc_mean", "auroc_score")):
        expected = binary_auroc(torch.from_numpy(evidence[:, kind]), torch.from_numpy(there).long())
        assert values[name] == pytest.approx(float(expected), rel=limits.FLOAT32)
    assert printed(Presence(), [{"present": [[1, 1, 1]], "absent": []}], "auroc_mean") is None


def test_resampling_images_of_presence_is_the_same_as_repeating_them():
    items = [[(0.9, True), (0.1, False)], [(0.2, True), (0.5, False)], [(0.4, False)]]
    weighted = presence.Table(items).statistic(np.array([1, 2, 0]))
    assert weighted == pytest.approx(presence.Table([items[0], items[1], items[1]]).statistic(np.ones(3)))
    assert np.isnan(presence.Table(items).statistic(np.array([0, 0, 3])))


# -- sounds -------------------------------------------------------------------------------------------------------


def prompts(size=16):
    rng = np.random.default_rng(3)
    return [
        audio.Prompted(name, rng.random((4, 5)).astype(np.float32) * scale, rng.random((size, size)) < 0.3)
        for name, scale in zip("ababca", (1, 5, 2, 1, 1, 9), strict=True)
    ]


def heard(items):
    """Of images with one prompt each."""
    return printed(AudioPrompted(), [{"prompts": [item.to_json()], "flat": 0} for item in items])


@pytest.mark.parametrize("normalisation", ["dataset", "image"])
def test_the_audio_scorer_equals_a_slow_twin(normalisation):
    items = prompts()
    maps = torch.stack([torch.from_numpy(item.relevance) for item in items])[:, None]
    if normalisation == "dataset":
        maps = maps - maps.min()
        maps = F.interpolate(maps / maps.max(), (16, 16), mode="bilinear")[:, 0]
    else:
        maps = F.interpolate(maps, (16, 16), mode="bilinear")[:, 0]
        maps = torch.stack([(one - one.min()) / (one.max() - one.min()) for one in maps])
    precisions, ious = [], []
    for name in "abc":
        rows = [i for i, item in enumerate(items) if item.name == name]
        values = maps[rows].flatten()
        truth = torch.from_numpy(np.stack([items[i].mask for i in rows])).flatten()
        precisions.append(float(binary_average_precision(values, truth.long(), thresholds=None)))
        per_threshold = []
        for threshold in torch.linspace(values.min(), values.max(), 20):
            above = values > threshold
            per_threshold.append(float((above & truth).sum() / (above | truth).sum()))
        ious.append(max(per_threshold))
        assert audio.class_scores(values.numpy(), truth.numpy()) == pytest.approx(
            (precisions[-1], ious[-1]), abs=limits.FLOAT32
        )
    suffix = "" if normalisation == "dataset" else "_image"
    values = heard(items)
    assert values[f"map{suffix}"] == pytest.approx(np.mean(precisions), abs=limits.FLOAT32)
    assert values[f"miou{suffix}"] == pytest.approx(np.mean(ious), abs=limits.FLOAT32)


def test_the_two_normalisations_of_audio_differ():
    values = heard(prompts())
    assert limits.error(values["map"], values["map_image"]) > limits.DIFFERENT


def test_flat_prompts_of_audio_rank_nothing_and_empty_masks_count_as_zero():
    flat = audio.Prompted("a", np.ones((2, 2), np.float32), np.eye(4, dtype=bool))
    empty = audio.Prompted("b", np.eye(2, dtype=np.float32), np.zeros((4, 4), bool))
    assert heard([flat])["map"] == heard([flat])["map_image"] == pytest.approx(0.25)
    both = heard([flat, empty])
    assert both["map"] == both["map_image"] == pytest.approx((0.25 + 0) / 2)
