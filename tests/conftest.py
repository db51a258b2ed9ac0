import functools
import runpy
import subprocess
import sys
import types

import hypothesis
import pytest
import torch

# the same examples in every run, and no clock; --hypothesis-profile=long looks for new ones
_ALL = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck), "database": None}
hypothesis.settings.register_profile("default", derandomize=True, max_examples=40, print_blob=True, **_ALL)
hypothesis.settings.register_profile("long", max_examples=3000, print_blob=True, **_ALL)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def loaded_by():
    """The names of all modules that a fresh interpreter holds after a statement; one process for each statement."""

    @functools.cache
    def loaded(statement):
        code = f"import sys\n{statement}\nprint(*sys.modules)"
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return frozenset(done.stdout.split())

    return loaded


@pytest.fixture
def script(monkeypatch, capsys):
    """``python -m module arguments`` in this process: returncode, stdout, stderr."""

    def call(module, *arguments):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = stopped.value.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # as the interpreter prints it
            code, err = 1, err + code
        return types.SimpleNamespace(returncode=code or 0, stdout=out, stderr=err)

    return call
