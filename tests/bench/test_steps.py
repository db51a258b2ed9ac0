"""Methods with guided upsampling and the half-maximum scale behind them, the same for all."""

import pytest
from helpers import limits

import legrad
from legrad.bench.model import ModelUnderTest
from legrad.bench.study import PARTS, with_steps
from legrad.bench.variants import Variant
from legrad.datasets.embedded import EmbeddedScenes
from legrad.methods import METHODS


@pytest.fixture(scope="module")
def scene():
    model = ModelUnderTest(legrad.load("embedded"))
    sample = EmbeddedScenes(objects=(2, 2))[0]
    return model, sample, [model.classes.target(name) for name in sample.masks]


def test_every_method_gets_what_a_users_explanation_has(scene):
    model, sample, targets = scene
    for name in ("legrad", "gradcam"):
        explanation = model.explain([sample.image], [targets], name)
        for text, steps in {
            "": {},
            ":upsampling=guided": {"upsampling": "guided"},
            ":scale=half": {"scale": "half"},
            ":upsampling=guided:scale=half": {"upsampling": "guided", "scale": "half"},
        }.items():
            (maps,) = model.maps([sample.image], [targets], name + text)
            expected = explanation.saliency(**{"scale": None, **steps})[0]
            # the model's input is rounded to 8 bits again
            assert limits.error(maps, expected) < 1e-4, text


def test_the_cut_of_the_scale(scene):
    model, sample, targets = scene
    low, high = (model.maps([sample.image], [targets], f"legrad:scale=half:cut={cut}")[0] for cut in (0.3, 0.7))
    assert (low > 0.5).sum() > 1.5 * (high > 0.5).sum()
    order = low.flatten(1).argsort(-1)
    assert high.flatten(1).take_along_dim(order, 1).diff().min() > -1e-5  # but for rounding


def test_variants_are_read():
    variant = Variant.parse("gradcam:layers=2:upsampling=guided:scale=half:cut=0.4")
    assert (variant.method, variant.arguments) == ("gradcam", {"layers": 2})
    assert dict(variant.pixels) == {"upsampling": "guided", "scale": "half", "cut": 0.4}
    for wrong in ("upsampling=bicubic", "scale=map", "cut=0.5", "scale=half:cut=1", "scale=half:cut=x"):
        with pytest.raises(legrad.InputError, match="a variant is"):
            Variant.parse(f"legrad:{wrong}")


def test_benchmarks_of_patches_refuse_them(scene):
    model, sample, targets = scene
    with pytest.raises(legrad.UnsupportedModelError, match="looks at patches"):
        model.evidence([sample.image], [targets], "legrad:scale=half")


def test_the_study_of_steps():
    parts = with_steps()
    assert {part.name for part in parts} == {"localisation", "openvocab", "segmentation", "perturbation"}
    for part in parts:
        plain = next(one for one in PARTS if (one.name, one.switches) == (part.name, part.switches))
        assert part.methods[0] == "legrad"
        for name in plain.methods:
            assert f"{name}:upsampling=guided" in part.methods
            scaled = f"{name}:upsampling=guided:scale=half" in part.methods
            assert scaled == (part.name != "perturbation")
        assert {Variant.parse(name).method for name in part.methods} <= set(METHODS)
