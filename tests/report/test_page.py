"""The page: one file, its own script only, texts as texts, and nothing of the user's replaced."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from helpers.handmade import explanation

import legrad
from legrad.report import record


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def numbers_of(entry):
    kind = np.uint8 if entry["steps"] == 255 else "<u2"
    numbers = np.frombuffer(base64.b64decode(entry["numbers"]), kind).astype(np.float64)
    return entry["low"] + numbers * (entry["high"] - entry["low"]) / entry["steps"]


@pytest.fixture
def result():
    return explanation(2, 3, (4, 5))


def test_maps_are_those_of_the_result(result):
    for image, entry in enumerate(data_of(result.to_html())["images"]):
        for target, target_entry in enumerate(entry["targets"]):
            expected = result.relevance[image, target].double().numpy().ravel()
            step = (expected.max() - expected.min()) / 65535
            ((merged, *layers),) = target_entry["maps"]
            assert np.abs(numbers_of(merged) - expected).max() <= step
            for layer, layer_entry in enumerate(layers):
                values = result.layer_relevance[image, target, layer].double().numpy().ravel()
                assert np.abs(numbers_of(layer_entry) - values).max() <= (values.max() - values.min()) / 255
            assert target_entry["score"] == pytest.approx(float(result.scores[image, target]))


def test_the_policy_allows_this_script_and_style_only(result):
    text = result.to_html()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1).replace("&#39;", "'")
    for kind, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (content,) = re.findall(pattern, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", '"&\u2028'])
def test_names_and_prompts_are_texts(result, hostile):
    labels = [[hostile, "b", "c"], ["a", "b", "c"]]
    result.labels[:], result.names[0] = labels, f"{hostile.replace('/', '')}.png"
    result.settings["model"] = hostile
    text = result.to_html()
    assert "alert(1)<" not in text
    assert text.count("<script") == 2
    assert data_of(text)["images"][0]["targets"][0]["label"] == hostile


def test_a_file_of_somebody_else_stays(result, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(legrad.InputError, match=r"page\.html is there already"):
        result.to_html(path)
    assert path.read_text() == "mine"
    path.unlink()
    assert result.to_html(path) == path
    assert path.read_text() == result.to_html()
    result.to_html(path, alpha=0.5)
    assert path.read_text() == result.to_html(alpha=0.5)
    path.write_text(path.read_text() + "<!-- changed -->")
    with pytest.raises(legrad.InputError, match="no page of legrad"):
        result.to_html(path)
    link = tmp_path / "link.html"
    link.symlink_to(path)
    with pytest.raises(legrad.InputError, match="no page of legrad"):
        result.to_html(link)
    with pytest.raises(legrad.InputError, match="cannot write"):
        result.to_html(tmp_path / "absent" / "page.html")


@pytest.mark.parametrize(("arguments", "message"), [({"alpha": 2}, "alpha"), ({"cmap": "none such"}, "colour map")])
def test_wrong_arguments(result, arguments, message):
    with pytest.raises(legrad.InputError, match=message):
        result.to_html(**arguments)


@pytest.mark.parametrize("steps", [255, 65535])
def test_map_record(steps):
    values = np.random.default_rng(0).normal(size=(3, 4))
    entry = record.map_record(values, steps)
    decoded = numbers_of({"numbers": entry.numbers, "low": entry.low, "high": entry.high, "steps": entry.steps})
    assert np.abs(decoded - values.ravel()).max() <= (values.max() - values.min()) / steps
    flat = record.map_record(np.full((2, 2), 0.5))
    assert (flat.low, flat.high) == (0.5, 0.5)


def test_an_axis_from_the_other_end():
    axis = record.AxisRecord(10, 4, 0.4, -0.3, 2, 8, 10)
    other = axis.reversed()
    for pixel in range(10):
        assert other.slope * (9 - pixel) + other.intercept == pytest.approx(axis.slope * pixel + axis.intercept)
    assert (other.first, other.last) == (1, 7)
