"""What shells complete, without loading any model library."""

import json
import os
import subprocess
import sys

import pytest

from legrad.cli import completion
from legrad.cli.completion import NAMES
from legrad.methods import METHODS
from legrad.versions import versions


def completed(monkeypatch, capsys, *words):
    """What bash offers for words as it splits them, the last one unfinished."""
    from legrad.cli import main

    monkeypatch.setenv("_LEGRAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["legrad", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setattr(sys, "argv", ["legrad"])
    with pytest.raises(SystemExit):
        main.main()
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["explain", "--readout", ""], ["auto", "published", "native"]),
        (["explain", "--format", "w"], ["webp"]),
        (["explain", "--dtype", "b"], ["bfloat16"]),
        (["models", "--library", "t"], ["timm", "torchvision"]),
        (["explain", "--model", "e"], ["embedded", "embedded:map", "embedded:speech"]),
        (["explain", "--model", "tor"], ["torchvision:"]),
        # bash hands over the parts around a colon, and replaces the last one
        (["explain", "--model", "torchvision", ":", "vit_b_32"], ["vit_b_32/IMAGENET1K_V1"]),
        (["doctor", "torchvision", ":", "vit_b_32"], ["vit_b_32/IMAGENET1K_V1"]),
        (["explain", "--model", "embedded", ":"], ["map", "speech"]),
        (["bench", "all", "--model", "embedded", ":", "m"], ["map"]),
        (["explain", "--readout", "=", "nat"], ["native"]),
        (["explain", "--format", "="], ["png", "jpg", "webp"]),
        (["explain", "--model", "=", "torchvision", ":", "vit_b_32"], ["vit_b_32/IMAGENET1K_V1"]),
        (["mo"], ["models"]),
    ],
)
def test_bash(monkeypatch, capsys, words, expected):
    assert completed(monkeypatch, capsys, *words) == expected


def test_methods(monkeypatch, capsys):
    offered = completed(monkeypatch, capsys, "explain", "--method", "grad")
    assert offered == [name for name in METHODS if name.startswith("grad")]
    assert len(offered) > 1


def test_names_of_the_file():
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    if names["versions"] != versions(*names["versions"]):
        pytest.skip("the file was written with other versions of the libraries")
    from tools.completion_names import names as current

    assert names == json.loads(json.dumps(current()))


def test_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(completion, "NAMES", tmp_path / "absent.json")
    assert completion.methods("") == []
    assert completion.models("") == ["hf:"]


def test_completion_of_names_loads_no_torch(loaded_by):
    words = {"_LEGRAD_COMPLETE": "complete_bash", "COMP_WORDS": "legrad\nexplain\n--model\ntimm\n:", "COMP_CWORD": "4"}
    code = f"""
import contextlib, io, os, sys
os.environ |= {words!r}
sys.argv = ["legrad"]
import legrad.cli.main as cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): cli.main()
"""
    assert not {"torch", "numpy", "PIL", "timm", "open_clip", "torchvision"} & loaded_by(code)


def test_python_m_legrad(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "legrad", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("legrad ")
