"""Damaged and hostile files of weights, configurations and names: one line that names the file, and no code is run."""

import json
import os
import pickle
import shutil

import pytest
import timm
import torch
from helpers import tiny
from safetensors.torch import save_file

import legrad
from legrad.datasets import names
from legrad.models.files import check_size

DEEP, DEEP_OBJECT = "[" * 100_000, '{"a":' * 100_000
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
OPEN_CLIP = {
    "model_cfg": {"embed_dim": 32, "vision_cfg": tiny.VISION, "text_cfg": TEXT},
    "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3, "size": 32},
}
SIZES = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "model_args": SIZES,
    "pretrained_cfg": {
        "num_classes": 3,
        "input_size": [3, 32, 32],
        "label_names": ["a", "b", "c"],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("good")
    for name, config, model in (
        ("open_clip", OPEN_CLIP, tiny.clip(text=TEXT)),
        ("timm", TIMM, timm.create_model("vit_tiny_patch16_224", num_classes=3, **SIZES)),
    ):
        (base / name).mkdir()
        file = "open_clip_config.json" if name == "open_clip" else "config.json"
        (base / name / file).write_text(json.dumps(config))
        weights = "open_clip_model.safetensors" if name == "open_clip" else "model.safetensors"
        save_file(model.state_dict(), base / name / weights)
        assert legrad.load(f"{name}:local-dir:{base / name}")
    return base


@pytest.fixture
def changed(folders, tmp_path):
    """A copy of a library's folder with other content in a file."""

    def change(library, file, content):
        folder = tmp_path / library
        shutil.copytree(folders / library, folder)
        if file.endswith(".bin"):
            next(folder.glob("*.safetensors")).unlink()
        write(folder / file, content, tmp_path / "run")
        return folder

    return change


def write(path, content, mark):
    if content == "evil":
        torch.save({"weight": Evil(mark)}, path)
    elif content == "plain pickle":
        path.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    elif content == "list":
        torch.save([1, 2], path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def refused(name, file):
    with pytest.raises(legrad.LeGradError, match=file) as told:
        legrad.load(name)
    assert "\n" not in str(told.value)
    assert "weights_only" not in str(told.value)  # no advice to run the code
    return str(told.value)


def vision(**change):
    return {"model_cfg": {**OPEN_CLIP["model_cfg"], "vision_cfg": {**tiny.VISION, **change}}}


@pytest.mark.parametrize(
    "content",
    [
        *(DEEP, DEEP_OBJECT, "{", "7", "[]", "", b"\xff\xfe\x00", {"model_cfg": 7}, {}),
        {"model_cfg": {"embed_dim": 32, "vision_cfg": tiny.VISION}},
        {"model_cfg": {**OPEN_CLIP["model_cfg"], "vision_cfg": None}},
        *(vision(patch_size=0), vision(nonsense=1), vision(layers=10**7), vision(image_size=10**8)),
        {"model_cfg": {**OPEN_CLIP["model_cfg"], "text_cfg": {**TEXT, "vocab_size": 10**12}}},
        {**OPEN_CLIP, "preprocess_cfg": 7},
        {**OPEN_CLIP, "preprocess_cfg": {"mean": "x", "size": "y"}},
    ],
    ids=lambda content: str(content)[:30],
)
def test_configurations_of_open_clip(changed, content):
    folder = changed("open_clip", "open_clip_config.json", content)
    refused(f"open_clip:local-dir:{folder}", "open_clip_config.json")


@pytest.mark.parametrize(
    "content",
    [
        *(DEEP, "{", "7", {"architecture": 7}, {**TIMM, "model_args": {**SIZES, "depth": 10**7}}),
        *({**TIMM, "model_args": 7}, {**TIMM, "num_classes": "x"}, {**TIMM, "num_classes": 10**10}),
        {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], "label_names": 5}},
        {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], "mean": "x"}},
    ],
    ids=lambda content: str(content)[:30],
)
def test_configurations_of_timm(changed, content):
    folder = changed("timm", "config.json", content)
    refused(f"timm:local-dir:{folder}", "config.json")


@pytest.mark.parametrize("content", [b"", b"garbage", "<html>", "evil", "plain pickle", "list"], ids=str)
@pytest.mark.parametrize(
    ("library", "file"),
    [
        ("open_clip", "open_clip_model.safetensors"),
        ("open_clip", "open_clip_pytorch_model.bin"),
        ("timm", "model.safetensors"),
        ("timm", "pytorch_model.bin"),
    ],
)
def test_weights(changed, tmp_path, library, file, content):
    folder = changed(library, file, content)
    refused(f"{library}:local-dir:{folder}", file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", "evil", "plain pickle", "list"], ids=str)
def test_a_checkpoint_file_of_open_clip(monkeypatch, tmp_path, content):
    """The architecture is a small one, or every case would build 150 M parameters."""
    import open_clip.factory

    config = {**OPEN_CLIP["model_cfg"], "vision_cfg": dict(tiny.VISION), "text_cfg": dict(TEXT)}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", config)
    write(tmp_path / "weights.pt", content, tmp_path / "run")
    refused(f"open_clip:ViT-B-32/{tmp_path / 'weights.pt'}", r"weights\.pt: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "<html>", "evil", "plain pickle"], ids=str)
def test_the_cache_of_torchvision(monkeypatch, tmp_path, content):
    from torchvision.models import ViT_B_16_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / ViT_B_16_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir()
    write(file, content, tmp_path / "run")
    message = refused("torchvision:vit_b_16", file.name)
    assert message.endswith("remove the file, and it is downloaded again")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECT])
def test_deep_names(tmp_path, content):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(legrad.InputError, match=r"names\.json does not hold class names"):
        names.read(tmp_path / "names.json")


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECT])
def test_a_folder_of_deep_json_is_of_no_library(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(legrad.InputError, match="unknown model"):
        legrad.load(str(tmp_path))


def test_sizes():
    vision = {"num_hidden_layers": 40, "hidden_size": 1664, "intermediate_size": 8192}
    image = {"image_size": 336, "patch_size": 14}
    check_size({"vision_config": vision | image, "id2label": {"0": "a"}, "list": [1, {"width": "x"}]}, "config.json")
    for part, message in [
        ({"depth": 10**7, "embed_dim": 8}, r"config\.json asks for 10000000 layers"),
        ({"image_size": [10**6, 10**6], "patch_size": 1}, r"asks for a model of at least \d+ GB, and this machine has"),
        ({"num_labels": 10**10}, "asks for a model of at least"),
        ({"layers": 9000, "width": 10**5}, "asks for a model of at least"),
    ]:
        with pytest.raises(legrad.InputError, match=message):
            check_size({"a": [{"b": part}]}, "config.json")
