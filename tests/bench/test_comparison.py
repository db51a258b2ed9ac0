"""What the report says about the first method against the others: never more than the same images can tell."""

import pytest

from legrad.bench.report import comparison
from legrad.bench.report.figures import bars, curves, differences

# method -> (value, low, high of the difference from "legrad", images)
SOME = {
    "legrad": (0.5, None, None, 100),
    "rollout": (0.3, -0.3, -0.1, 100),
    "textspan": (0.6, 0.05, 0.15, 100),
    "gradcam": (0.52, -0.01, 0.05, 100),
    "rise": (0.9, -0.2, 0.1, 10),
}


def one(name, title, better, methods, benchmark="segmentation", protocol=None, model=None):
    return {
        "benchmark": benchmark,
        "settings": {
            "protocol": protocol or {"explained": "truth"},
            "data": {"path": "embedded"},
            "subject": model or {},
        },
        "statistics": {"paired with": "legrad"},
        "chance": {name: 0.25},
        "metrics": {name: {"title": title, "better": better}},
        "methods": {
            method: {
                "items": count,
                "metrics": {
                    name: {
                        "value": value,
                        "low": value - 0.02,
                        "high": value + 0.02,
                        "difference": None if low is None else (low + high) / 2,
                        "difference_low": low,
                        "difference_high": high,
                    }
                },
            }
            for method, (value, low, high, count) in methods.items()
        },
        "scores": {method: {str(i): {} for i in range(count)} for method, (*_, count) in methods.items()},
    }


@pytest.fixture
def content():
    return one("miou", "mIoU", "higher", SOME)


@pytest.mark.parametrize(
    ("low", "high", "better", "expected", "mark"),
    [
        (0.1, 0.2, "higher", "better", " ▲"),
        (-0.2, -0.1, "lower", "better", " ▲"),
        (0.1, 0.2, "lower", "worse", " ▼"),
        (-0.2, -0.1, "higher", "worse", " ▼"),
        (-0.1, 0.2, "higher", "level", ""),
        (1e-8, 2e-8, "higher", "level", ""),
        (-2e-8, -1e-8, "higher", "level", ""),
        (None, None, "higher", None, ""),
        (0.1, 0.2, None, None, ""),
    ],
)
def test_the_verdict_is_the_differences(low, high, better, expected, mark):
    numbers = {"difference_low": low, "difference_high": high}
    assert comparison.verdict(numbers, better) == expected
    assert comparison.verdict_mark(numbers, better) == mark


def test_a_title_says_what_is_not_the_default(content):
    content["settings"]["protocol"] = {"explained": "truth", "geometry": "squash"}
    content["settings"]["subject"] = {"layers": None, "readout": "auto", "templates": ["a photo of a {}"], "names": {}}
    assert (comparison.title(content), comparison.non_default_settings(content)) == (
        "segmentation (truth)",
        {"explained": "truth"},
    )
    content["settings"]["subject"] = {"layers": [0, 2], "readout": "native", "templates": ["{}.", "a {}."]}
    content["settings"]["protocol"]["geometry"] = "crop"
    assert comparison.title(content) == (
        "segmentation (truth, layers = [0, 2], readout = native, templates = '{}.' and 1 more, geometry = crop)"
    )
    content["benchmark"], content["settings"]["protocol"]["scored by"] = "ablation", "segmentation"
    assert comparison.title(content).startswith("ablation (segmentation, layers = [0, 2], ")
    assert "**segmentation (truth, layers = 2): mIoU**" in comparison.overview(
        [one("miou", "mIoU", "higher", SOME, protocol={"explained": "truth"}, model={"layers": 2})]
    )


def test_fewer_images_have_no_ranked_place(content):
    content["settings"]["subject"] = {"model": "tiny"}
    rows = [label.get_text() for label in bars(content).axes[0].get_yticklabels()][::-1]
    assert rows == ["textspan", "gradcam", "legrad", "rollout", "rise (10)"]
    curve = {"predicted": {"positive": [1] * 10, "negative": [1] * 10}}
    content["benchmark"] = "perturbation"
    content["scores"] = {method: dict.fromkeys(scores, curve) for method, scores in content["scores"].items()}
    legend = [text.get_text() for text in curves(content).axes[0].get_legend().get_texts()]
    assert legend == ["legrad", "textspan", "gradcam", "rollout", "rise (10)"]


def test_the_sentence_names_every_other_method_once(content):
    assert comparison.summary_sentence(content, "miou") == (
        "legrad 0.500 [0.480, 0.520], 100 images. Better: textspan. Level: rise (10), gradcam. Worse: rollout."
    )


def test_the_best_has_the_images_of_the_first(content):
    assert comparison.best(content, "miou") == "textspan"
    content["scores"]["rise"] = dict(content["scores"]["legrad"])
    assert comparison.best(content, "miou") == "rise"
    content["metrics"]["miou"]["better"] = "lower"
    assert comparison.best(content, "miou") == "rollout"
    content["metrics"]["miou"]["better"] = None
    assert comparison.best(content, "miou") is None
    assert comparison.best(one("miou", "mIoU", "higher", {"legrad": SOME["legrad"]}), "miou") is None


def test_the_overview_shows_values_counts_differences_and_cost(content):
    speed = one("slowdown", "bare forwards", "lower", {"legrad": (3.14159, None, None, 5)}, "speed", {"batch": 1})
    text = comparison.overview([speed, content])
    assert "- **segmentation (truth): mIoU**: legrad 0.500" in text
    lines = text.splitlines()
    assert "| rise | 0.900 (10) |  |" in lines
    assert "| textspan | **0.600 ▲** |  |" in lines
    assert "| legrad | 0.500 | 3.14 |" in lines
    assert "| rollout | 0.300 ▼ |  |" in lines
    assert "| *chance* | 0.250 | |" in lines
    assert "| rollout | 100 | 0.300 [0.280, 0.320] | -0.200 [-0.300, -0.100] | worse |  |" in lines
    assert "| legrad | 100 | 0.500 [0.480, 0.520] |  |  | 3.14 |" in lines
    assert [line.split(" | ")[0] for line in lines if " | 100 | " in line or " | 10 | " in line] == [
        f"| {name}" for name in ("rise", "textspan", "gradcam", "legrad", "rollout")
    ]
    assert comparison.overview([speed]) == ""


def test_of_one_benchmark_the_larger_run_is_shown(content):
    fewer = one("miou", "mIoU", "higher", {"legrad": (0.7, None, None, 20)}, protocol={"explained": "predicted"})
    assert comparison.headlines([fewer, content]) == comparison.headlines([content, fewer]) == [(content, "miou")]
    fewer["settings"]["data"]["path"] = "other"
    assert comparison.headlines([fewer, content]) == [(fewer, "miou"), (content, "miou")]


def test_the_figure_of_differences(content):
    areas = one("positive_predicted", "positive", "lower", SOME, "perturbation", {"fill": "black"})
    figure = differences([content, areas])
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == [name for name in SOME if name != "legrad"][::-1]
    assert (first.xaxis_inverted(), second.xaxis_inverted()) == (False, True)
    points = {line.get_ydata()[0]: line for line in first.lines if line.get_marker() == "o"}
    assert set(points) == {0, 1, 2, 3}
    assert points[3].get_xdata()[0] == pytest.approx(-0.2)
    assert (points[3].get_color(), points[2].get_color(), points[1].get_color()) == ("C3", "C2", "0.5")
    assert differences([one("miou", "mIoU", "higher", {"legrad": SOME["legrad"]})]) is None
    assert differences([]) is None


def test_numbers():
    assert [comparison.number(value) for value in (0.12345, -0.5, 53.16, None)] == ["0.123", "-0.500", "53.2", ""]
    assert [comparison.number(value, signed=True) for value in (0.5, -12.34)] == ["+0.500", "-12.3"]


# -- few images ---------------------------------------------------------------------------------------------------


def few(pairs):
    """Like ``SOME``, on so many images; of one image an interval is a point."""
    found = one("miou", "mIoU", "higher", {name: (*rest[:-1], pairs) for name, rest in SOME.items()})
    for result in found["methods"].values():
        numbers = result["metrics"]["miou"]
        numbers |= {"items": pairs, "pairs": pairs}
        if pairs == 1:
            numbers |= {"low": numbers["value"], "high": numbers["value"]}
            if numbers["difference"] is not None:
                numbers |= {"difference_low": numbers["difference"], "difference_high": numbers["difference"]}
    return found


@pytest.mark.parametrize(("pairs", "expected"), [(1, "too few"), (29, "too few"), (30, "better")])
def test_no_verdict_on_few_images(pairs, expected):
    numbers = few(pairs)["methods"]["textspan"]["metrics"]["miou"]
    assert comparison.verdict(numbers, "higher") == expected
    assert comparison.verdict_mark(numbers, "higher") == ("" if pairs < 30 else " ▲")
    assert (comparison.best(few(pairs), "miou") is None) == (pairs < 30)


def test_one_image_says_too_few_everywhere():
    text = comparison.overview([few(1)])
    assert "Too few images for a verdict (below 30): rise, textspan, gradcam, rollout." in text
    for word in ("▲", "▼", "**0.", "better |", "worse |", "Better:", "Level:", "[0.600, 0.600]"):
        assert word not in text
    assert "| textspan | 1 | 0.600 [too few] | +0.100 [too few] | too few |  |" in text.splitlines()
    several = comparison.overview([few(10)])
    assert "| textspan | 10 | 0.600 [0.580, 0.620] | +0.100 [0.050, 0.150] | too few |  |" in several.splitlines()
    figure = differences([few(1)])
    assert figure.get_supxlabel().endswith("pale: fewer than 30 images, no verdict")
    assert not {"C2", "C3"} & {line.get_color() for line in figure.axes[0].lines}
    assert "pale" not in differences([few(100)]).get_supxlabel()


def test_a_method_with_few_common_images_alone_has_no_verdict():
    content = few(100)
    content["methods"]["rise"]["metrics"]["miou"]["pairs"] = 10
    assert comparison.summary_sentence(content, "miou") == (
        "legrad 0.500 [0.480, 0.520], 100 images. Better: textspan. Level: gradcam. Worse: rollout. "
        "Too few images for a verdict (below 30): rise."
    )
