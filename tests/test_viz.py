"""Colours over arrays."""

import matplotlib
import numpy as np
import pytest

import legrad
from legrad import viz


def test_overlay_is_a_mixture():
    rng = np.random.default_rng(0)
    image, saliency = rng.integers(0, 255, (5, 7, 3), np.uint8), rng.random((5, 7))
    colours = viz.colours(saliency, "jet")
    assert (colours.shape, colours.dtype) == ((5, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(viz.overlay(image, saliency, alpha=0)), image)
    assert np.array_equal(np.asarray(viz.overlay(image, saliency, alpha=1, cmap="jet")), colours)
    half = np.asarray(viz.overlay(image, saliency, alpha=0.5, cmap="jet"), float)
    assert np.abs(half - (image / 2 + colours / 2)).max() <= 0.5


def test_colours_are_those_of_matplotlib():
    saliency = np.array([[0.0, 0.4, 1.0, -3.0, 9.0]])
    expected = (matplotlib.colormaps["viridis"]([0.0, 0.4, 1.0, 0.0, 1.0])[:, :3] * 255).astype(np.uint8)
    assert np.abs(viz.colours(saliency, "viridis")[0].astype(int) - expected).max() <= 1


def test_sizes_must_agree():
    with pytest.raises(legrad.InputError, match="differ in size"):
        viz.overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4)))


@pytest.mark.parametrize("image", [None, "x", [1, 2], np.zeros((0, 4, 3)), [[1], [1, 2]], object()])
def test_what_is_no_image(image):
    with pytest.raises(legrad.InputError, match="an image is an array"):
        viz.overlay(image, np.zeros((4, 4)))
    if not isinstance(image, str):
        with pytest.raises(legrad.InputError, match="saliency is an array"):
            viz.overlay(np.zeros((4, 4, 3), np.uint8), image)
