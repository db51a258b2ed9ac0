"""What is public, how light the import is, and the neighbour with our import name."""

import ast
import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import legrad

PACKAGE = Path(legrad.__file__).parent


def test_import_brings_nothing_but_ourselves_beside_torch(loaded_by):
    """What makes an import slow: no optional library, and nothing else that torch, numpy and Pillow do not bring."""
    brought = loaded_by("import legrad") - loaded_by("import torch, numpy, PIL.Image, PIL.ImageOps")
    assert "legrad" in brought
    assert {name.partition(".")[0] for name in brought} - sys.stdlib_module_names == {"legrad"}
    # nor what only few need of our own
    own = {name.split(".")[1] for name in brought if name.startswith("legrad.")}
    assert not own & {"bench", "cli", "datasets", "metrics"}


def test_the_doctor_comes_when_called(loaded_by):
    assert "legrad.doctor" not in loaded_by("import legrad")
    assert "legrad.doctor" in loaded_by("import legrad; legrad.doctor.examine")


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


def test_modules_of_packages_come_when_they_are_used():
    code = (
        "import legrad; legrad.bench.runner.run, legrad.bench.report.report, legrad.metrics.segmentation.measure, "
        "legrad.methods.METHODS, legrad.datasets.MaskFolder; assert 'runner' in dir(legrad.bench)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for module in (legrad.bench, legrad.metrics):
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            _ = module.nonsense


def test_lists_of_models_and_methods():
    names = legrad.list_models()
    assert len(names) > 500
    assert names[:3] == ["embedded", "embedded:map", "embedded:speech"]
    everything = legrad.list_models(supported=False)
    assert set(names) < set(everything)
    clip = legrad.list_models("vit-b-16", library="open_clip")
    assert "open_clip:ViT-B-16/openai" in clip
    assert all(name.startswith("open_clip:") and "vit-b-16" in name.lower() for name in clip)
    assert legrad.list_models("timm:vit_small_patch14_*") == legrad.list_models("vit_small_patch14_*", "timm")
    assert legrad.list_models("no such model") == []
    assert set(legrad.list_methods()) == set(legrad.methods.METHODS)
    for arguments, message in (
        ((3,), "filter is a part of a name"),
        (("", "keras"), "library is one of"),
        (("", None, "x"), "supported is True or False"),
    ):
        with pytest.raises(legrad.InputError, match=message):
            legrad.list_models(*arguments)


def test_what_happens_is_logged_and_nothing_is_printed(caplog, capfd):
    with caplog.at_level(logging.DEBUG, "legrad"):
        explainer = legrad.load("embedded", device="cpu")
        explainer.explain(next(legrad.embedded.scenes(1)).image, "a cow")
    assert "loaded embedded on cpu, torch.float32" in caplog.text
    assert "explained 1 images, 1 of 1" in caplog.text
    assert {record.name.partition(".")[0] for record in caplog.records if "legrad" in record.name} == {"legrad"}
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("legrad").handlers)


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
    assert (PACKAGE / "py.typed").is_file()


# file and function of the positive parts that are no formula's, and what they are of
POSITIVE_PARTS = {
    ("localisation.py", "energy"): "the energy inside a mask counts what a map says in favour",
    ("figures.py", "_shares"): "lengths of error bars",
    ("record.py", "entropy"): "shares of what a map says in favour",
}


def positive_parts(source):
    """(function, line) of every call that takes the positive part of something: relu, or a lower bound of 0 alone."""
    found = []

    def takes(call):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in ("relu", "relu_", "ReLU"):
            return True
        if name not in ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_", "maximum"):
            return False
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        lower = [*call.args[:2], *(named[key] for key in ("min", "a_min") if key in named)]
        upper = [*call.args[1:], *(named[key] for key in ("max", "a_max") if key in named)]
        zero = any(isinstance(one, ast.Constant) and one.value == 0 for one in lower)
        return zero and all(isinstance(one, ast.Constant) and one.value in (None, 0) for one in upper)

    def visit(node, function):
        if isinstance(node, ast.Call) and takes(node):
            found.append((function, node.lineno))
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(source), "")
    return found


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("g.clamp(min=0).mean(2)", True),
        ("g.clamp_(0)", True),
        ("g.clip(0.0, None)", True),
        ("torch.clamp(g, min=0)", True),
        ("torch.clamp(g, 0)", True),
        ("g.clamp_min(0)", True),
        ("torch.maximum(g, 0)", True),
        ("F.relu(g)", True),
        ("g.relu()", True),
        ("nn.ReLU()(g)", True),
        ("pixels.clamp(0, 1)", False),
        ("np.clip(pixels, 0, 255)", False),
        ("pixels.clamp(min=0, max=1)", False),
        ("places.clip(0, size - 1)", False),
        ("length.clamp(min=1e-20)", False),
        ("np.maximum(count, 1)", False),
        ("activations = (F.gelu, F.relu)", False),
    ],
)
def test_positive_parts_are_recognised(code, is_one):
    assert bool(positive_parts(code)) == is_one


def test_the_formula_exists_once():
    """Only relevance.py takes the positive part of gradients, and the other methods those that are theirs."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if "methods" not in path.relative_to(PACKAGE).parts:
            for function, line in positive_parts(path.read_text(encoding="utf-8")):
                found.setdefault((path.name, function), []).append(line)
    assert [name for name, _ in found].count("relevance.py") == 1
    assert {place for place in found if place[0] != "relevance.py"} == set(POSITIVE_PARTS), found


def test_no_torch_and_no_model_library_comes_with_the_import(loaded_by):
    heavy = {"torch", "numpy", "PIL", "timm", "open_clip", "transformers", "torchvision", "matplotlib", "rich", "typer"}
    assert not heavy & loaded_by("import legrad")
    assert not heavy & loaded_by("import legrad; dir(legrad); legrad.__all__; legrad.__version__")


def room(name):
    """The first part below the package: a folder or a module."""
    return name.split(".")[1] if name.count(".") else name


def test_private_names_stay_in_their_room():
    """Neither a name with an underscore nor a module with one is imported from another room, here or by scripts."""
    root = PACKAGE.parents[1]
    files = [
        path
        for folder in (PACKAGE, *map(root.joinpath, ("training", "performance", "tools")))
        for path in folder.rglob("*.py")
    ]
    assert len(files) > 150
    strangers = []
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        own = parts[2] if parts[0] == "src" and len(parts) > 2 else parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "legrad":
                private = [
                    alias.name for alias in node.names if alias.name.startswith("_") and not alias.name.startswith("__")
                ]
                private += [part for part in node.module.split(".") if part.startswith("_")]
                if private and room(node.module) != own:
                    strangers.append((str(path.relative_to(root)), node.module, private))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private_attribute = node.attr.startswith("_") and not node.attr.startswith("__")
                if private_attribute and node.value.id in ("explainer", "explanation", "adapter"):
                    strangers.append((str(path.relative_to(root)), node.value.id, node.attr))
    assert strangers == []


def test_modules_of_methods_are_attributes(loaded_by):
    assert "torch" not in loaded_by("import legrad.methods, legrad.methods.catalogue")
    loaded_by("import legrad.methods\nassert legrad.methods.black_box.rise\nassert legrad.methods.METHODS")
    loaded_by("import legrad.methods\nassert not hasattr(legrad.methods, 'nonsense')")


def test_the_other_package_is_looked_for_without_reading_metadata(tmp_path, monkeypatch):
    assert not legrad._may_be_there("legrad_torch")
    (tmp_path / "Legrad-Torch-1.1.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert legrad._may_be_there("legrad_torch")
