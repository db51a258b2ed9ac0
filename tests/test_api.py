"""What is public, how light the import is, and the neighbour with our import name."""

import importlib.metadata
import subprocess
import sys
from unittest import mock

import pytest

import legrad

HEAVY = (
    "open_clip",
    "timm",
    "transformers",
    "torchvision",
    "matplotlib",
    "gradio",
    "ray",
    "rich",
    "typer",
    "safetensors",
)


def python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_import_takes_no_optional_library_with_it():
    done = python(f"import sys, legrad; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_doctor_comes_when_called():
    done = python("import sys, legrad; print('legrad.doctor' in sys.modules, legrad.doctor.examine.__name__)")
    assert done.stdout.strip() == "False examine", done.stderr


def test_import_is_quick_beside_torch():
    code = """
import time, torch, numpy, PIL.Image, PIL.ImageOps
start = time.perf_counter(); import legrad; print(time.perf_counter() - start)
"""
    assert min(float(python(code).stdout) for _ in range(3)) < 0.5


def test_every_public_name_is_there_and_listed():
    for name in legrad.__all__:
        assert getattr(legrad, name) is not None
        assert name in dir(legrad)
    contract = {"load", "wrap", "Explainer", "Explanation", "PREDICTED", "ZeroShot", "Similar", "Contrast", "Prompts"}
    contract |= {"LeGradError", "TruthCheckError", "FlatMapWarning", "ViTAnatomy", "LeWrapper", "LePreprocess"}
    contract |= {"visualize", "list_pretrained", "embedded", "heads", "viz", "doctor"}
    assert contract <= set(legrad.__all__)
    assert legrad.__version__ == importlib.metadata.version("legrad")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = legrad.nonsense


def test_the_authors_package_beside_ours_is_warned_of():
    with (
        mock.patch.object(importlib.metadata, "version", return_value="1.1"),
        pytest.warns(UserWarning, match=r"legrad_torch 1\.1.*pip uninstall legrad_torch"),
    ):
        legrad._warn_of_the_other_package()


def test_errors_form_one_small_tree():
    for error in (legrad.InputError, legrad.TruthCheckError, legrad.UnsupportedModelError):
        assert issubclass(error, legrad.LeGradError)
    assert issubclass(legrad.FlatMapWarning, UserWarning)


def test_the_package_is_typed():
    from pathlib import Path

    assert (Path(legrad.__file__).parent / "py.typed").is_file()


def test_the_formula_exists_once():
    """Only relevance.py takes a positive part of gradients."""
    from pathlib import Path

    files = Path(legrad.__file__).parent.rglob("*.py")
    users = {path.name for path in files if "clamp_(min=0)" in path.read_text() or ".relu(" in path.read_text()}
    assert users == {"relevance.py"}
