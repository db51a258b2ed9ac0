"""Each benchmark on maps that are known: the mask itself, its inverse, and nothing at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import limits
from helpers.fakes import SIZE, Data, ModelUnderTest, block, scene
from PIL import Image

from legrad.bench.runner import run
from legrad.bench.tasks import presence, sanity, speed
from legrad.bench.tasks.ablation import Ablation
from legrad.bench.tasks.localisation import Localisation
from legrad.bench.tasks.open_vocabulary import OpenVocabulary
from legrad.bench.tasks.perturbation import Perturbation
from legrad.bench.tasks.segmentation import Segmentation
from legrad.errors import InputError

LEFT, RIGHT = block((0, 8), (0, 4)), block((0, 8), (4, 8))
SQUARE, BAR = block((0, 4), (0, 4)), block((6, 8), (0, 8))


def the_mask(sample, name, method):
    """The mask for "legrad", its inverse for layers=1, nothing for layers=2."""
    mask = sample.masks.get(name, np.zeros((SIZE, SIZE), bool))
    return {"legrad": mask, "legrad:layers=1": ~mask, "legrad:layers=2": np.ones_like(mask)}[method]


def two():
    points = {
        "square": (np.array([[0.5, 0.5], [3.5, 3.5]]), np.array([[4.5, 4.5]])),
        "bar": (np.array([[7.5, 7.5]]), np.array([[0.5, 5.5], [7.5, 0.5]])),
        "dot": (np.zeros((0, 2)), np.array([[0.5, 0.5]])),
    }
    return Data([scene(f"item-{i}", {"square": SQUARE, "bar": BAR}, points=points) for i in range(3)])


METHODS = ("legrad", "legrad:layers=1", "legrad:layers=2")


def values(benchmark, data, tmp_path, draw=the_mask, methods=METHODS):
    model = ModelUnderTest(data, draw)
    result = run(benchmark, model, data, methods, tmp_path).content
    assert result["problems"] == []
    return {
        method: {name: one["value"] for name, one in result["methods"][method]["metrics"].items()} for method in methods
    }, result


def test_localisation(tmp_path):
    found, result = values(Localisation(), two(), tmp_path)
    assert found["legrad"] == {"pointing": 1, "energy": 1, "swap": 1, "flat": 0}
    assert found["legrad:layers=1"] == {"pointing": 0, "energy": 0, "swap": 0, "flat": 0}
    # nothing known: the share of the image that the masks cover, 16 of 64 pixels each
    nothing = {"pointing": 0.25, "energy": 0.25, "swap": 0.5, "flat": 1}
    assert found["legrad:layers=2"] == nothing
    assert {name: result["chance"][name] for name in ("pointing", "energy", "swap")} == {
        name: nothing[name] for name in ("pointing", "energy", "swap")
    }


def test_segmentation_of_the_true_classes(tmp_path):
    found, result = values(Segmentation("truth"), two(), tmp_path)
    names = ("miou", "accuracy", "map", "miou_half", "accuracy_half", "iou_foreground", "mean_image_fg_iou")
    perfect = dict.fromkeys(names, 1)
    assert found["legrad"] == {**perfect, "flat": 0}
    wrong = found["legrad:layers=1"]
    assert (wrong["miou"], wrong["accuracy"], wrong["iou_foreground"], wrong["mean_image_fg_iou"]) == (0, 0, 0, 0)
    flat = found["legrad:layers=2"]
    assert (flat["accuracy"], flat["iou_foreground"], flat["map"], flat["flat"]) == (0.75, 0, 0.5, 1)
    # a coin per pixel, a quarter of which is object: 0.25 / 1.25 and 0.75 / 1.75
    assert result["chance"]["miou"] == pytest.approx((0.2 + 3 / 7) / 2)
    assert result["settings"]["protocol"]["explained"] == "truth"


def test_segmentation_of_the_predicted_class(tmp_path):
    data = two()
    # the left half is light in the first image: the model sees a square; then the right half: it sees a bar
    for index, (side, label) in enumerate(((LEFT, "square"), (RIGHT, "square"))):
        image = Image.fromarray(np.repeat(side[..., None], 3, 2).astype(np.uint8) * 255)
        data.samples[index] = replace(data.samples[index], image=image, label=label)
    data.samples.pop()
    found, result = values(Segmentation(), data, tmp_path, methods=("legrad",))
    asked = {key: one["mean"] for key, one in result["scores"]["legrad"].items()}
    assert (asked["item-0"]["tp"], asked["item-0"]["fp"]) == (16, 0)
    # the bar's map against the square's mask
    assert (asked["item-1"]["tp"], asked["item-1"]["fp"]) == (0, 16)
    assert found["legrad"]["accuracy"] == (64 + 32) / 128
    # 16 of 48 pixels are hit in all; of one image all, of the other none
    assert found["legrad"]["iou_foreground"] == 16 / 48
    assert found["legrad"]["mean_image_fg_iou"] == 0.5


@pytest.mark.parametrize(("geometry", "overlap"), [("squash", 1), ("crop", 1), ("prs_compat", 1 / 2)])
def test_images_and_masks_lie_on_each_other(geometry, overlap):
    """The map is what the model is shown: the light object, whatever the image's shape."""
    mask = np.zeros((2 * SIZE, SIZE), bool)
    mask[SIZE // 2 : SIZE] = True
    image = Image.fromarray(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)

    class Mirror(ModelUnderTest):
        def maps(self, images, targets, method, fit="squash"):
            assert fit == "squash"  # the model's own transform may crop again
            shown = [np.array(p.resize((SIZE, SIZE), Image.Resampling.NEAREST).convert("L")) for p in images]
            return [torch.from_numpy(one / 255.0)[None].float() for one in shown]

    data = Data([replace(scene("item-0", {"square": mask}), image=image)])
    one = Segmentation("truth", geometry).measure(Mirror(data), data.samples, "legrad")[0]["half"]
    assert one["tp"] / (one["tp"] + one["fp"] + one["fn"]) == overlap
    # cropped, the object is the upper half of the frame; squashed, half as tall
    assert one["tp"] + one["fp"] == (SIZE**2 // 4 if geometry == "squash" else SIZE**2 // 2)


def test_segmentation_needs_the_mask_of_the_label():
    data = two()
    sample = replace(data.samples[0], label="dot")
    with pytest.raises(InputError, match="item-0 has no mask of its label 'dot'"):
        Segmentation().measure(ModelUnderTest(data, the_mask), [sample], "legrad")


def test_ignored_pixels_count_nowhere(tmp_path):
    data = two()
    data.samples = [replace(one, extra={"ignore": ~SQUARE & ~BAR}) for one in data.samples]
    found, _ = values(Segmentation("truth"), data, tmp_path)
    assert found["legrad:layers=2"]["accuracy"] == 0.5


def test_open_vocabulary(tmp_path):
    found, result = values(OpenVocabulary(), two(), tmp_path)
    assert found["legrad"] == {"p_miou": 1, "p_miou_pairs": 1, "flat": 0}
    assert found["legrad:layers=1"] == {"p_miou": 0, "p_miou_pairs": 0, "flat": 0}
    assert found["legrad:layers=2"] == {"p_miou": 0, "p_miou_pairs": 0, "flat": 1}
    # everything foreground: 2 of 3 points of the square, 1 of 3 of the bar
    assert result["chance"]["p_miou"] == pytest.approx(0.5)
    # a class without a positive point is not asked for
    assert set(result["scores"]["legrad"]["item-0"]["classes"]) == {"square", "bar"}


def bright(side, label):
    """One half of the image is light, which is what the fake model goes by."""
    image = Image.fromarray(np.repeat(side[..., None], 3, 2).astype(np.uint8) * 200 + 20)
    return replace(scene(label, {label: side}), image=image)


def test_perturbation(tmp_path):
    data = Data([bright(LEFT, "square"), bright(RIGHT, "bar")])
    data.samples = [replace(one, key=f"item-{i}") for i, one in enumerate(data.samples)]
    found, result = values(Perturbation(), data, tmp_path)
    good, bad = found["legrad"], found["legrad:layers=1"]
    # the light half holds the answer: gone with the last of its pixels, and half-light is still lighter than dark
    one = result["scores"]["legrad"]["item-0"]["predicted"]
    assert one["positive"] == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert one["negative"] == [1] * 10
    assert (good["negative_predicted"], good["positive_predicted"]) == pytest.approx((90, 45))
    assert (bad["negative_predicted"], bad["positive_predicted"]) == pytest.approx((45, 90))
    assert good["negative_target"] == good["negative_predicted"]
    assert good["clean"] == 1
    assert good["positive_predicted_normalised"] == pytest.approx(50)
    assert good["positive_predicted_correct_only"] == pytest.approx(45)
    assert good["insertion"] > bad["insertion"]
    assert good["deletion"] < bad["deletion"]
    assert one["deletion"][0] == one["insertion"][-1]
    assert one["deletion"][-1] == one["insertion"][0] == pytest.approx(1 / 3, abs=limits.FLOAT32)


def test_perturbation_of_a_wrong_prediction(tmp_path):
    """Accuracy is against the label, also where the predicted class is explained; both classes get their own map."""
    data = Data([replace(bright(LEFT, "square"), key="item-0", label="bar")])
    model = ModelUnderTest(data, lambda sample, name, method: LEFT if name == "square" else RIGHT)
    found = run(Perturbation(), model, data, ["legrad"], tmp_path).content
    one = found["scores"]["legrad"]["item-0"]
    assert one["clean"] == 0
    # without its light half the image is a bar to the model, though it was not before
    assert one["predicted"]["positive"] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert one["target"]["positive"] == [0] * 10
    numbers = found["methods"]["legrad"]["metrics"]
    assert numbers["positive_predicted"]["value"] == pytest.approx(45)
    assert numbers["positive_predicted_correct_only"]["value"] is None
    assert model.asked[0][2] == [["square", "bar"]]
    only = Perturbation(explained="truth").measure(model, data.samples, "legrad")
    assert set(only[0]) == {"clean", "target"}


@pytest.mark.parametrize("fill", ["black", "blur"])
def test_perturbation_of_several_images_is_that_of_each(fill):
    data = Data([bright(LEFT, "square"), bright(block((0, 4), (0, 8)), "square")])
    asked = ModelUnderTest(data, the_mask)
    together = Perturbation(fill=fill).measure(asked, data.samples, "legrad")
    alone = [Perturbation(fill=fill).measure(asked, [one], "legrad")[0] for one in data.samples]
    assert together == alone
    ends = [one["predicted"]["deletion"][-1] for one in together]
    assert (ends[0] == ends[1]) == (fill == "black")


def test_presence(tmp_path):
    def there(sample, name, method):
        mask = sample.masks.get(name, np.zeros((SIZE, SIZE), bool)).astype(float)
        return {"legrad": mask, "legrad:layers=1": -mask, "legrad:layers=2": 0 * mask}[method]

    data = Data([scene(f"item-{i}", {"square": SQUARE}) for i in range(4)])
    found, result = values(presence.Presence(), data, tmp_path, there)
    assert found["legrad"] == {"auroc_maximum": 1, "auroc_mean": 1, "auroc_score": 1}
    # the inverse peaks at 0 wherever the thing is not
    assert found["legrad:layers=1"]["auroc_mean"] == 0
    assert set(found["legrad:layers=2"].values()) == {0.5}
    assert all(len(one["absent"]) == len(one["present"]) == 1 for one in result["scores"]["legrad"].values())


def test_rank_correlation():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    for ties in (100, 3):
        a, b = (torch.from_numpy(rng.integers(0, ties, (6, 6)).astype(float)) for _ in range(2))
        assert sanity.rank_correlation(a, b) == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert sanity.rank_correlation(a, 3 * a + 1) == pytest.approx(1)
    assert sanity.rank_correlation(a, -a) == pytest.approx(-1)
    assert sanity.rank_correlation(a, torch.ones(6, 6)) is None


def test_the_median_of_a_draw():
    items = [{"seconds": s, "forward": 1.0} for s in (4.0, 1.0, 3.0, 2.0)]
    median = speed.median("seconds")(items)
    assert median(np.ones(4)) == 2.5
    assert median(np.array([1.0, 1.0, 1.0, 0.0])) == 3
    assert median(np.array([0.0, 3.0, 0.0, 1.0])) == 1
    assert np.isnan(median(np.zeros(4)))
    assert speed.per_second("seconds")(items)(np.ones(4)) == 0.4
    assert speed.slowdown(items)(np.ones(4)) == 2.5


def test_an_ablation_is_its_base_with_another_name(tmp_path):
    found, result = values(Ablation(Localisation()), two(), tmp_path)
    assert found["legrad"]["pointing"] == 1
    assert result["settings"]["protocol"]["scored by"] == "localisation"
    assert (tmp_path / "ablation.jsonl").is_file()


def test_data_without_what_a_benchmark_needs(tmp_path):
    data = two()
    # one alone is a problem of its own; if none has it, there is nothing to begin with
    data.samples = [replace(data.samples[0], masks={}, points={}, label=None), data.samples[1]]
    cases = [
        (Localisation(), "no mask with any pixel"),
        (Segmentation("truth"), "no mask with any pixel"),
        (OpenVocabulary(), "no class with a positive point"),
        (Perturbation(), "item-0 has no label"),
        (presence.Presence(), "item-0 has no label"),
    ]
    for place, (benchmark, message) in enumerate(cases):
        model = ModelUnderTest(data, the_mask)
        result = run(benchmark, model, data, ["legrad"], tmp_path / str(place)).content
        told = {one["key"]: one["problem"] for one in result["problems"]}
        assert message in told["item-0"]
    bare = Data(data.samples[:1])
    for benchmark, what in ((Localisation(), "masks"), (OpenVocabulary(), "points"), (Perturbation(), "labels")):
        with pytest.raises(InputError, match=f"this benchmark needs {what}, which tiny does not have"):
            run(benchmark, ModelUnderTest(bare, the_mask), bare, ["legrad"], tmp_path / "bare")
