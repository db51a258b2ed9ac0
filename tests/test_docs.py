"""The code in the documentation runs, and gives what the slow twin gives."""

import warnings
from dataclasses import replace

import pytest
import torch
from helpers import generic_twin, limits, twin
from helpers.pages import snippets


@pytest.fixture(scope="module")
def own_models():
    """The variables after each snippet of the page."""
    torch.manual_seed(0)
    variables, after = {}, []
    for code in snippets("docs/explain-your-own-model.md"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # random models: targets may look alike
            exec(code, variables)
        after.append({name: variables[name] for name in ("anatomy", "explanation")})
    return after


@pytest.mark.parametrize("readout", ["native", "published"])
def test_a_transformer_encoder_as_documented(own_models, readout):
    import legrad

    anatomy = own_models[0]["anatomy"]
    model = anatomy.tower
    batch = torch.randn(2, 3, 64, 64)

    def anatomy_of(copied):
        return replace(anatomy, tower=copied, run=copied, blocks=tuple(copied.encoder.layers))

    def score(logits):
        return logits[:, 3]

    found = legrad.wrap(model, anatomy=anatomy).explain(batch, 3, readout=readout, keep_layers=True)
    expected = generic_twin.layer_maps(model, anatomy_of, batch, score, readout)
    assert twin.distance(found.layer_relevance[:, 0], expected) < limits.FLOAT32


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_documented_models_are_healthy(own_models, number):
    import legrad
    from legrad.doctor import examine

    anatomy = own_models[number]["anatomy"]
    report = examine(legrad.wrap(anatomy.tower, anatomy=anatomy))
    assert report.healthy, report
    assert own_models[number]["explanation"].relevance.shape[1] == 2


def test_the_first_block_of_the_readme_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    first, second = snippets("README.md")[:2]
    exec(first, variables)
    assert (tmp_path / "where.png").stat().st_size > 10_000
    assert variables["explanation"].relevance.shape[:2] == (1, 2)
    exec(second, variables)
    assert (tmp_path / "results" / "manifest.json").is_file()
    exec(snippets("README.md")[2], variables)
    assert variables["similarities"].shape == (1, 2)
