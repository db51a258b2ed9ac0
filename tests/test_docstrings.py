"""The examples in docstrings run as they stand."""

import doctest
import importlib
import pkgutil
import warnings

import pytest
import torch

import legrad


def _examples():
    """(id, example) of every docstring with an example, in modules that name one."""
    finder, found = doctest.DocTestFinder(exclude_empty=True), []
    for module in pkgutil.walk_packages(legrad.__path__, "legrad."):
        path = importlib.util.find_spec(module.name).origin
        with open(path, encoding="utf-8") as file:
            if ">>>" not in file.read():
                continue
        for example in finder.find(importlib.import_module(module.name), globs={"legrad": legrad, "torch": torch}):
            if example.examples and example.name.startswith(module.name):
                found.append(pytest.param(example, id=example.name))
    return sorted(found, key=lambda param: param.id)


@pytest.mark.parametrize("example", _examples())
def test_an_example(example, tmp_path, monkeypatch):
    from legrad.methods import registry
    from legrad.metrics import own

    monkeypatch.chdir(tmp_path)
    for table in (registry.METHODS, registry._BY_NAME, own._METRICS):
        for name in ("brightness", "covered"):
            monkeypatch.setitem(table, name, None)  # restored behind the test
    lines = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = runner.run(example, out=lines.append)
    assert result.failed == 0, "".join(lines)


def test_public_calls_have_examples():
    names = {param.id.removeprefix("legrad.") for param in _examples()}
    for name in (
        "explainer.load",
        "explainer.wrap",
        "explainer.Explainer.explain",
        "explainer.Explainer.embed",
        "explainer.Explainer.prepare",
        "explainer.Explainer.predict",
        "stream.Streams.stream",
        "convenience.Convenience.heads",
        "results.explanation.Explanation.saliency",
        "results.explanation.Explanation.overlay",
        "results.drawing.Drawings.figure",
        "results.explanation.Explanation.save",
        "results.collection.Collection.load",
        "results.collection.Collection.cat",
        "results.collection.Collection.__getitem__",
        "models.registry.list_models",
        "methods.registry.list_methods",
        "methods.registry.register_method",
        "metrics.own.register_metric",
        "citations.bibtex",
        "targets.kinds.Prompts",
        "targets.kinds.ZeroShot",
        "targets.kinds.Contrast",
        "targets.kinds.Similar",
        "heads.head_relevance",
    ):
        assert name in names, name
