"""The benchmarks of first calls and of a GPU: a dry run, and what their pages say."""

import itertools
import json

import pytest
import torch
from helpers import tiny as models
from typer.testing import CliRunner

import legrad
from performance import first_call, gpu, page, workloads
from performance.cases import B16, SIGLIP, Case


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(workloads._BUILDERS, "open_clip", lambda name, size: models.clip(layers=1))
    monkeypatch.setattr(workloads, "_width", lambda name: 32)


def ticking():
    """Every reading takes one second more than the one before."""
    counter = itertools.count()
    return lambda: next(counter) ** 2 / 2


def test_first_calls_take_turns_with_bare_forwards(tiny):
    samples = first_call.rounds_of(B16, 2, size=32, clock=ticking())
    assert list(samples) == ["bare", "first", "known", "new size", "bare there", "known there"]
    assert {len(readings) for readings in samples.values()} == {2}
    flat = [samples[name][number] for number in range(2) for name in samples]
    assert flat == sorted(flat)


def test_every_round_has_a_size_that_was_never_seen(tiny):
    workload = workloads.build(Case("time", "ours", B16, size=32, resized=True), torch.device("cpu"))
    sizes = list(itertools.islice(first_call._sizes(workload, 32), 20))
    assert len(set(sizes)) == 20
    assert (32, 32) not in sizes


def test_sizes_in_a_row(tiny):
    found = first_call.sizes_in_a_row(B16, 20, clock=ticking())
    assert len(found["seconds"]) == len(found["tokens"]) == 20
    assert len(found["bytes"]) == 2


def test_the_part_of_the_page(tmp_path):
    ones = {"bare": [1.0, 2.0], "first": [2.5, 5.2], "known": [1.5, 3.0]}
    there = {"new size": [2.6, 5.2], "bare there": [1.0, 2.0], "known there": [1.5, 3.0]}
    row = {"model": "small", "seconds": [1.0] * 10 + [2.0] * 10, "tokens": [10] * 20, "bytes": [1e9, 1.003e9]}
    content = {
        "text": "What it is.",
        "revision": "abc",
        "cpu": "Some CPU",
        "models": {B16: ones | there, SIGLIP: ones | there},
        "sizes in a row": row,
    }
    text = first_call.page_part(content)
    assert "| open_clip/ViT-B-16 | 1.500 [1.000, 2.000] | 2.55 [2.50, 2.60] | 3 | met | 1.50 [1.50, 1.50] |" in text
    assert "| 1.10 [1.10, 1.10] | 2 |" in text
    assert "| 2.2 | not met |" in text
    assert "20 sizes in a row on small: the last 2 take 2.00 times as long" in text
    assert "+3 MB" in text
    folder = tmp_path / "performance"
    folder.mkdir()
    (folder / page.ARGUMENTS).write_text("By hand.")
    (folder / "first-call.md").write_text(text)
    whole = page.write({"machine": MACHINE, "settings": SETTINGS, "cases": {}}, folder, []).read_text()
    assert whole.index("By hand.") < whole.index("## The first call")


MACHINE = {
    "cpu": "Some CPU",
    "instructions": "AVX2",
    "cores": 2,
    "memory_gb": 25.0,
    "system": "Linux 6",
    "python": "3.11.7",
    "libraries": {"torch": "2.15.0"},
}
SETTINGS = {"device": "cpu", "threads": 2, "quick": False}


@pytest.fixture
def tiny_timm(monkeypatch):
    import timm

    def create(name, size):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **{**models.SMALL, "depth": 1})
        return models.randomised(model)

    monkeypatch.setitem(workloads._BUILDERS, "timm", create)


def test_the_gpu_script_in_a_dry_run_on_the_cpu(tiny_timm, tmp_path):
    import typer

    app = typer.Typer()
    app.command()(gpu.main)
    result = CliRunner().invoke(app, ["--dry", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["right"] for row in content["maps"].values()} == {True}
    (row,) = content["speed"].values()
    assert row["gigabytes"] is None
    assert row["chunk"] in gpu.CHUNKS
    assert len(row["chunks"]) == len(gpu.CHUNKS)
    text = (tmp_path / "gpu.md").read_text()
    assert "| timm/vit_tiny_patch16_224 |" in text
    assert "| right |" in text


def test_the_gpu_script_compares_twenty_models_and_tells_wrong_ones(tiny_timm, monkeypatch):
    assert len(set(gpu.FULL.models)) == 20
    assert {(case.model, case.batch) for case in gpu.FULL.speed} >= {
        (model, batch) for model in ("open_clip/ViT-B-16", "open_clip/ViT-L-14") for batch in (64, 256)
    }
    real = legrad.Explainer.explain

    def wrong(self, images, *args, **options):
        found = real(self, images, *args, **options)
        if images.dtype == torch.float32:
            found.relevance.mul_(1.01)
        return found

    monkeypatch.setattr(legrad.Explainer, "explain", wrong)
    row = gpu.maps_are_right("timm/vit_tiny_patch16_224", 32, torch.device("cpu"))
    assert not row["right"]
    assert row["float32"] == pytest.approx(0.01, rel=0.01)
    assert gpu._tried(gpu.maps_are_right, "nowhere/no_such_model", 32, torch.device("cpu"))["error"]


def test_chunks_are_put_back():
    before = dict(gpu.routes._CHUNK_NUMEL), dict(gpu.relevance._CHUNK_NUMEL)
    with gpu.chunks_of(7, torch.device("cpu")):
        assert gpu.routes._CHUNK_NUMEL[False] == gpu.relevance._CHUNK_NUMEL[False] == 7
    assert before == (gpu.routes._CHUNK_NUMEL, gpu.relevance._CHUNK_NUMEL)
