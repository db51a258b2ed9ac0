"""The command line with the embedded model, loaded once."""

import sys

import pytest

import legrad
from legrad.cli import main


@pytest.fixture(scope="module")
def explainer():
    return legrad.load("embedded")


@pytest.fixture
def run(explainer, monkeypatch, capsys, tmp_path):
    """Call the entry point as the shell would, in an empty folder; (exit code, stdout, stderr)."""
    load = legrad.load

    def cached(name, device="auto", dtype=None):
        return explainer if (name, device, dtype) == ("embedded", "auto", None) else load(name, device, dtype)

    monkeypatch.setattr(legrad, "load", cached)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["legrad", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return call
