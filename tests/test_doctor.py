"""The examination of a model: its facts, and checks that fail when the anatomy is wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.zoo import timm as zoo_timm
from typer.testing import CliRunner

import legrad
from legrad.cli import main
from legrad.core.positions import position_check, random_input
from legrad.core.state import evaluation_mode
from legrad.doctor import allowed_sizes, examine


def value(report, what):
    return next(finding.value for finding in report.findings if finding.what == what)


def test_the_report_of_a_healthy_model():
    model = tiny.clip()
    with tiny.left_as_found(model):
        report = examine(legrad.wrap(model, tokenizer=tiny.tokenizer))
    assert report.healthy
    assert value(report, "library") == "open_clip"
    assert value(report, "blocks") == "4 x ResidualAttentionBlock"
    assert value(report, "prefix tokens").startswith("1,")
    assert value(report, "grid") == "4 x 4 (rows, cols) at 3 x 32 x 32"
    assert value(report, "targets") == "texts, embeddings, Similar, callables"
    assert value(report, "truth check") == value(report, "position check") == "passed"
    assert "bare forward" in value(report, "time for one image, one target")
    assert "MiB" in value(report, "memory, estimated")


def test_another_size():
    report = examine(legrad.wrap(tiny.clip()), size=(32, 56))
    assert report.healthy
    assert value(report, "grid") == "4 x 7 (rows, cols) at 3 x 32 x 56"
    assert value(report, "input sizes").startswith("any (32 x 32")
    with pytest.raises(legrad.InputError):
        examine(legrad.wrap(tiny.clip()), size=(32, 3))


def test_policies_are_told():
    report = examine(legrad.wrap(zoo_timm.build("vit_small_patch16_18x2_224")))
    assert "2 attentions, used: [0, 1]" in value(report, "explained attention")


@pytest.mark.parametrize(
    "change",
    [{"num_prefix_tokens": 0}, {"num_prefix_tokens": 2}, {"grid": (2, 8)}, {"grid": (8, 2)}],
    ids=str,
)
def test_a_wrong_layout_is_found(change):
    """These fool the truth check of the native read-out, which takes the class token wherever the patches are."""
    model = tiny.clip()
    anatomy = legrad.wrap(model).anatomy
    wrong = replace(anatomy, **change, patch_size=tuple(32 // n for n in change.get("grid", (4, 4))))
    report = examine(legrad.wrap(model, anatomy=wrong))
    assert not report.healthy
    assert any(text in value(report, "position check") for text in ("change most token", "17 tokens"))
    with evaluation_mode(model), pytest.raises(legrad.TruthCheckError, match="prefix tokens"):
        position_check(wrong, random_input(wrong))


def test_a_wrong_head_is_found():
    model = tiny.clip()
    anatomy = legrad.wrap(model).anatomy
    wrong = replace(anatomy, readouts={"native": legrad.Readout(lambda z: model.visual.ln_post(z.mean(1)))})
    report = examine(legrad.wrap(model, anatomy=wrong))
    assert "not what its anatomy says" in value(report, "truth check")


def test_fixed_sizes():
    anatomy = replace(legrad.wrap(tiny.clip()).anatomy, at_size=None)
    assert allowed_sizes(anatomy) == "32 x 32 only"


def test_the_command():
    result = CliRunner().invoke(main.app, ["doctor", "embedded", "--size", "96x192"])
    assert result.exit_code == 0
    for text in ("open_clip", "6 x 12 (rows, cols)", "position check", "passed"):
        assert text in result.output


def test_the_command_fails_for_an_unhealthy_model(monkeypatch):
    model = tiny.clip()
    wrong = replace(legrad.wrap(model).anatomy, num_prefix_tokens=0)
    monkeypatch.setattr(legrad, "load", lambda name, **_: legrad.wrap(model, anatomy=wrong))
    result = CliRunner().invoke(main.app, ["doctor", "x"])
    assert result.exit_code == 1
    assert "are wrong" in " ".join(result.output.split())


@pytest.mark.parametrize("library", ["open_clip", "timm", "torchvision", "hf"])
def test_models_of_a_library(library):
    result = CliRunner().invoke(main.app, ["models", "--library", library, "--supported"])
    names = [line for line in result.output.splitlines() if f"{library}:" in line]
    assert len(names) >= 5
    assert "not supported" not in result.output
    assert result.exit_code == 0


def test_models_that_do_not_exist():
    result = CliRunner().invoke(main.app, ["models", "swin", "--library", "timm", "--supported"])
    assert isinstance(result.exception, legrad.InputError)
    assert "timm" in str(result.exception)


def test_random_input_is_the_same_for_a_seed_and_leaves_the_generator_alone():
    anatomy = legrad.wrap(tiny.clip()).anatomy
    state = torch.get_rng_state()
    first, second, other = random_input(anatomy), random_input(anatomy), random_input(anatomy, seed=1)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_described_is_what_explain_uses():
    """DINOv2's weights are for 518 pixels, its processor makes 224."""
    transformers = pytest.importorskip("transformers")
    from helpers.zoo import transformers as zoo

    processor = transformers.BitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    explainer = legrad.wrap(zoo.build("Dinov2Model"), transform=processor)
    assert explainer.anatomy.image_size == (32, 32)
    assert explainer.input_size == (16, 16)
    image = np.zeros((40, 50, 3), np.uint8)
    assert explainer.prepare(image).tensor.shape[-2:] == (16, 16)
    assert "16 x 16 px, grid 2 x 2" in repr(explainer)
    assert "32" not in repr(explainer)
    report = examine(explainer)
    assert report.healthy
    assert value(report, "grid") == "2 x 2 (rows, cols) at 3 x 16 x 16"
    sizes = value(report, "input sizes")
    assert "(16 x 16 by default, patches of 8 x 8)" in sizes
    assert sizes.endswith("; the weights are for 32 x 32")
    plain = legrad.wrap(tiny.clip())
    assert repr(plain) == f"Explainer({plain.name}, {plain.anatomy!r})"
