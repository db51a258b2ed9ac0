"""Whatever was set globally in torch, a call gives the same result, and leaves the setting as it was."""

import contextlib

import numpy as np
import pytest
import torch
from helpers import limits, tiny, twin
from PIL import Image

import legrad


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def no_fast_path():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(not before)
    try:
        yield
        assert torch.backends.mha.get_fastpath_enabled() != before
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


SETTINGS = {
    "meta": lambda: default_device("meta"),
    "with meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fast path": no_fast_path,
}


def transform():
    from torchvision import transforms

    normalise = transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    return transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor(), normalise])


IMAGES = [np.random.default_rng(seed).integers(0, 255, (40 + seed, 48, 3), np.uint8) for seed in range(2)]
CALLS = {
    "files and texts": lambda e: e.explain([Image.fromarray(image) for image in IMAGES], ["cat", "a dog"]),
    "one image": lambda e: e.explain(IMAGES[0], [legrad.Contrast("cat", "dog"), legrad.Similar(IMAGES[1])]),
    "numpy targets": lambda e: e.explain(IMAGES, [[np.ones(32, np.float32)], ["cat", "dog"]]),
    "null target": lambda e: e.explain(IMAGES, ["cat", "dog"], null_target="a", readout="native", keep_layers=True),
    "another size": lambda e: e.explain(torch.full((1, 3, 40, 32), 0.3, device="cpu", dtype=torch.float32), "cat"),
    **{
        method: lambda e, method=method: e.explain(IMAGES, "cat", method=method)
        for method in ("chefercam", "rise", "centre", "edges")
    },
}


@pytest.fixture(scope="module")
def expected():
    explainer = legrad.wrap(tiny.clip(), transform=transform(), tokenizer=tiny.tokenizer)
    return explainer.model, {name: call(explainer) for name, call in CALLS.items()}


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:.*hardly depend")
@pytest.mark.parametrize("setting", SETTINGS)
def test_any_setting_gives_the_same(setting, expected):
    model, results = expected
    for name, call in CALLS.items():
        with SETTINGS[setting]():
            explainer = legrad.wrap(model, transform=transform(), tokenizer=tiny.tokenizer)
            found = call(explainer)
            saliency = found.saliency()
            overlay = found.overlay(0, 0)
        want = results[name]
        assert found.relevance.device.type == "cpu"
        assert found.relevance.dtype == want.relevance.dtype
        of = want.scores if name == "occlusion" else None
        assert limits.close(found.relevance, want.relevance, maps=True, of=of), name
        assert limits.close(found.scores, want.scores), name
        assert type(saliency) is type(want.saliency())
        assert overlay.size == want.overlay(0, 0).size
        if name == "null target":
            assert twin.distance(found.layer_relevance, want.layer_relevance) < limits.FLOAT32


@pytest.mark.parametrize("setting", ["meta", "float64", "float16"])
def test_a_model_is_loaded_the_same(setting):
    image = torch.full((1, 3, 192, 192), 0.3)
    want = legrad.load("embedded").explain(image, "a photo of a cow")
    with SETTINGS[setting]():
        explainer = legrad.load("embedded")
        found = explainer.explain(image, "a photo of a cow")
    assert explainer.anatomy.dtype == torch.float32
    assert explainer.anatomy.device.type == "cpu"
    assert twin.distance(found.relevance, want.relevance) < limits.FLOAT32
