"""Names of the last release still work, and say what they are called now."""

from dataclasses import replace

import pytest
import torch
from helpers import handmade, tiny

import legrad


def test_old_fields_of_an_anatomy():
    anatomy = legrad.wrap(tiny.clip()).anatomy
    with pytest.warns(DeprecationWarning, match="key_prefix is called num_prefix_keys"):
        assert anatomy.key_prefix == anatomy.num_prefix_keys
    with pytest.warns(DeprecationWarning, match="taps is called explained_attentions") as warned:
        changed = replace(anatomy, taps=(0,), explained_attentions=(5,))
    assert changed.explained_attentions == (0,)
    assert warned[0].filename == __file__ or "dataclasses" in warned[0].filename


def test_old_fields_of_an_explanation():
    explanation = handmade.explanation()
    for old, new in {"frames": "placements", "cells": "patch_grids", "pictures": "images"}.items():
        with pytest.warns(DeprecationWarning, match=f"Explanation.{old} is called {new}"):
            assert getattr(explanation, old) is getattr(explanation, new)


def test_the_old_name_of_audio_encoders():
    with pytest.warns(DeprecationWarning, match=r"legrad\.AudioEncoder"):
        assert legrad.Hearing is legrad.AudioEncoder
    encoder = legrad.AudioEncoder(16000, lambda waves: torch.ones(len(waves), 32))
    with pytest.warns(DeprecationWarning, match="hearing is called audio_encoder"):
        explainer = legrad.wrap(tiny.clip(), hearing=encoder)
    assert explainer.adapter.audio_encoder is encoder
    with pytest.warns(DeprecationWarning, match="audio_explainer"):
        assert explainer.listener is None
