"""Folders of transformers with damaged files: weights, index, configuration, processor, tokenizer."""

import json
import os
import shutil

import pytest
import torch
import transformers
from helpers.zoo import transformers as zoo

import legrad

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    zoo.build("CLIPModel").save_pretrained(path)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**sizes).save_pretrained(path)
    zoo.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def changed(good, tmp_path):
    def change(file, content):
        folder = tmp_path / "folder"
        shutil.copytree(good, folder)
        if file.startswith("pytorch_model") or "index" in file:
            (folder / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        else:
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return change


def refused(folder, message):
    with pytest.raises(legrad.LeGradError, match=message) as told:
        legrad.load(f"hf:{folder}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [DEEP, "7", "{", "", b"\xff\xfe"], ids=lambda content: str(content)[:9])
@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_damaged_files(changed, file, content):
    refused(changed(file, content), file)


@pytest.mark.parametrize(
    "content",
    [
        {"image_processor_type": "Nonsense"},
        {"image_processor_type": "CLIPImageProcessor", "size": "x"},
        {"image_processor_type": "CLIPImageProcessor", "image_mean": "x"},
    ],
)
def test_a_processor_that_lies(changed, content):
    refused(
        changed("preprocessor_config.json", content),
        r"cannot be used, preprocessor_config\.json: .*transform=",
    )


def test_missing_companions_are_no_error(changed):
    folder = changed("unused.txt", "")
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    explainer = legrad.load(f"hf:{folder}")
    assert explainer.explain(torch.randn(1, 3, 32, 32), torch.randn(24)).relevance.shape == (1, 1, 4, 4)
    with pytest.raises(legrad.InputError, match="text targets need a tokenizer"):
        explainer.explain(torch.randn(1, 3, 32, 32), "a cow")


def test_a_processor_of_code_is_left_out(changed):
    content = {"auto_map": {"AutoImageProcessor": "there--file.Kind"}, "image_processor_type": "Kind"}
    folder = changed("preprocessor_config.json", content)
    with pytest.warns(UserWarning, match=r"without preprocessor_config\.json, for it needs code .* transform="):
        explainer = legrad.load(f"hf:{folder}")
    assert explainer.adapter.transform is None


class Evil:
    def __reduce__(self):
        return os.mkdir, ("never made",)


def test_a_pickle_with_code(changed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "evil")
    refused(changed("pytorch_model.bin", (tmp_path / "evil").read_bytes()), r"pytorch_model\.bin: .*could run any code")
    assert not (tmp_path / "never made").exists()


@pytest.mark.parametrize(
    "shard", ["../folder/model.safetensors", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", 5, None]
)
def test_an_index_that_leads_out_of_its_folder(changed, shard):
    folder = changed("model.safetensors.index.json", {"metadata": {}, "weight_map": {"weight": shard}})
    refused(folder, r"model\.safetensors\.index\.json names .* expected one in its own folder")


@pytest.mark.parametrize(
    "change",
    [
        {"vision_config": {"num_hidden_layers": 10_000_000}},
        {"text_config": {"num_hidden_layers": 10_000_000}},
        {"vision_config": {"image_size": 10**9}},
        {"num_labels": 10**11},
        {"vision_config": {"patch_size": 0}},
        {"vision_config": 7},
    ],
    ids=str,
)
def test_a_configuration_that_asks_too_much(changed, good, change):
    config = json.loads((good / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    refused(changed("config.json", config), r"config\.json")
