"""Loading by name: the embedded model, folders in open_clip's hub format, and names that cannot work."""

import json
import logging
import socket
import sys

import pytest
import torch
from helpers import limits, tiny, twin
from safetensors.torch import save_file

import legrad
from legrad.models import network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP as `open_clip.push_to_hf_hub` writes it; text through open_clip's own bundled tokenizer."""
    import open_clip
    from open_clip.push_to_hf_hub import save_config_for_hf

    path = tmp_path_factory.mktemp("tiny-clip")
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": tiny.VISION, "text_cfg": text}
    model = tiny.clip(text=text)
    model.visual.preprocess_mean, model.visual.preprocess_std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "size": 32}
    open_clip.set_model_preprocess_cfg(model, {**preprocess, "resize_mode": "shortest", "mode": "RGB", "fill_color": 0})
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    save_config_for_hf(model, path / "open_clip_config.json", model_config=config)
    assert json.loads((path / "open_clip_config.json").read_text())["preprocess_cfg"]["mean"] == [0.4, 0.5, 0.6]
    return path


def test_local_dir(folder):
    from PIL import Image

    explainer = legrad.load(f"open_clip:local-dir:{folder}")
    want = tiny.clip(text={"context_length": 77, "vocab_size": 49408})
    pictures = [Image.effect_noise((50, 40), 90).convert("RGB"), Image.radial_gradient("L").convert("RGB")]
    explanation = explainer.explain(pictures, ["a cat", "two dogs"])
    assert explanation.scores.shape == (2, 2)
    assert explanation.settings["model"] == f"open_clip:local-dir:{folder}"
    transform = explainer._adapter.transform(None, "model")
    x = torch.stack([transform(picture) for picture in pictures])
    assert tuple(transform.transforms[-1].mean) == (0.4, 0.5, 0.6)
    import open_clip

    tokens = open_clip.get_tokenizer("ViT-B-32")(["a cat", "two dogs"])
    same = legrad.wrap(want).explain(x, want.encode_text(tokens))
    assert twin.distance(explanation.relevance, same.relevance) < limits.FLOAT32


def test_hf_hub_reads_the_same_folder_through_the_hub_cache(folder, monkeypatch, tmp_path):
    """A cache laid out as huggingface_hub writes it stands in for the network."""
    import huggingface_hub.constants

    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    refs = tmp_path / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    x, t = torch.randn(1, 3, 32, 32), torch.randn(32)
    explanation = legrad.load("open_clip:hf-hub:someone/tiny").explain(x, t)
    local = legrad.load(f"open_clip:local-dir:{folder}").explain(x, t)
    assert torch.equal(explanation.relevance, local.relevance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype(folder, dtype):
    explainer = legrad.load(f"open_clip:local-dir:{folder}", dtype=dtype)
    assert explainer.anatomy.dtype == dtype
    want = legrad.load(f"open_clip:local-dir:{folder}")
    x, t = torch.randn(1, 3, 32, 32), torch.randn(32)
    pair = torch.stack([e.explain(x, t).relevance.flatten() for e in (explainer, want)])
    assert float(torch.corrcoef(pair)[0, 1]) > limits.CORRELATION


def test_embedded_is_in_eval_mode_and_explains_a_scene():
    explainer = legrad.load("embedded")
    assert not any(module.training for module in explainer.model.modules())
    scene = next(legrad.embedded.scenes(1, seed=3, objects=(2, 2)))
    explanation = explainer.explain(scene.image, [f"a photo of a {name}" for name in scene.names])
    assert explanation.relevance.shape == (1, 2, 12, 12)
    assert explanation.saliency().shape == (1, 2, 192, 192)
    half = legrad.load("embedded", dtype=torch.bfloat16)
    assert half.anatomy.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", legrad.InputError, "unknown model 'nothing'"),
        ("embedded:x", legrad.InputError, "unknown model 'embedded:x'; expected 'embedded', 'embedded:map' or"),
        ("open_clip:", legrad.InputError, "unknown model"),
        ("open_clip:ViT-B-99/openai", legrad.InputError, "nearest: .*ViT-B"),
        ("open_clip:ViT-B-16", legrad.InputError, "say which weights"),
        ("open_clip:ViT-B-16/nobody", legrad.InputError, "has no weights 'nobody'"),
        ("open_clip:RN50/openai", legrad.UnsupportedModelError, "a ResNet, not a ViT"),
        ("open_clip:convnext_base/laion400m_s13b_b51k", legrad.UnsupportedModelError, "not a ViT"),
        ("open_clip:MobileCLIP-S1/datacompdr", legrad.UnsupportedModelError, "not a ViT"),
        ("open_clip:local-dir:/nowhere", legrad.InputError, "open_clip_config.json"),
    ],
)
def test_names_that_cannot_work(name, error, message):
    with pytest.raises(error, match=message):
        legrad.load(name)


def test_offline_says_what_still_works(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(legrad.InputError, match=r"HF_HUB_OFFLINE is set\)\. Without a network only"):
        legrad.load("open_clip:hf-hub:someone/absent")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub that refuses connections; every request to it is counted."""
    import huggingface_hub.constants
    from huggingface_hub.utils import _http

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    pauses = []
    monkeypatch.setattr(_http.time, "sleep", pauses.append)
    return endpoint, pauses


@pytest.mark.parametrize(
    "name",
    [
        "hf:openai/clip-vit-base-patch32",
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:hf-hub:someone/absent",
        "timm:vit_tiny_patch16_224.augreg_in21k",
    ],
)
def test_without_a_network_a_load_fails_at_once_and_quietly(no_network, capfd, caplog, name):
    import huggingface_hub.constants

    endpoint, pauses = no_network
    with pytest.raises(legrad.InputError, match="not in the cache") as told:
        legrad.load(name)
    assert f"{endpoint} cannot be reached (" in str(told.value)
    assert "Connection refused" in str(told.value)
    assert "HF_HUB_OFFLINE" not in str(told.value)
    assert pauses == []  # no attempt is repeated
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert logging.root.manager.disable == 0


def test_torchvision_without_a_network(no_network, monkeypatch, capfd):
    import torchvision

    def get_model(*_, **__):
        print("Downloading: ...", file=sys.stderr)
        raise OSError(f"no route within {socket.getdefaulttimeout()} s")

    monkeypatch.setattr(network, "unreachable", lambda url: "no route")
    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with pytest.raises(
        legrad.InputError, match=r"could not load 'vit_b_16': no route within 4\.0 s\. Without a network"
    ):
        legrad.load("torchvision:vit_b_16")
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_the_cache_serves_without_a_network(folder, no_network, tmp_path):
    snapshot = tmp_path / "cache" / "models--someone--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    (tmp_path / "cache/models--someone--tiny/refs").mkdir()
    (tmp_path / "cache/models--someone--tiny/refs/main").write_text("0" * 40)
    assert legrad.load("open_clip:hf-hub:someone/tiny").anatomy.library == "open_clip"
    assert no_network[1] == []


def test_a_server_that_can_be_reached(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert network.unreachable(url) == ""
        # through a proxy, which is asked for a tunnel where the server speaks https
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "")
        assert network.unreachable("http://nowhere.invalid") == ""
    assert "refused" in network.unreachable("http://nowhere.invalid")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")  # known to the libraries, perhaps
    assert network.unreachable("https://nowhere.invalid") == ""


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("EMBEDDED", "embedded"), ("Embedded:Map", "embedded:map")],
)
def test_names_in_another_case(name, canonical):
    assert legrad.load(name).adapter.name == canonical


def test_names_of_libraries_in_another_case(monkeypatch):
    monkeypatch.setattr(network, "unreachable", lambda url: "no network in tests")
    for name, canonical in {
        "Open_CLIP:vit-b-32/LAION2B_s34b_b79k": "open_clip could not load 'ViT-B-32/laion2b_s34b_b79k'",
        "TIMM:ViT_tiny_patch16_224.AugReg_in21k": "timm could not load 'vit_tiny_patch16_224.augreg_in21k'",
    }.items():
        with pytest.raises(legrad.InputError, match=canonical):
            legrad.load(name)


def test_every_listed_name_has_a_verdict_without_building():
    from legrad.models.registry import available

    listed = dict(available())
    assert listed["embedded"] == listed["embedded:map"] == ""
    assert listed["open_clip:ViT-B-16/laion2b_s34b_b88k"] == ""
    assert listed["open_clip:ViT-B-16-SigLIP/webli"] == ""
    assert "ResNet" in listed["open_clip:RN50/openai"]
    assert sum(not reason for reason in listed.values()) > 150


@pytest.mark.parametrize("size", [None, 64, (32, 48)])
@pytest.mark.parametrize("fit", ["model", "squash", "pad"])
def test_images_at_other_sizes_and_fits(folder, size, fit):
    from PIL import Image

    explainer = legrad.load(f"open_clip:local-dir:{folder}")
    picture = Image.effect_noise((90, 60), 90).convert("RGB")
    explanation = explainer.explain(picture, "a cat", size=size, fit=fit)
    height, width = (32, 32) if size is None else (size, size) if isinstance(size, int) else size
    assert explanation.relevance.shape[-2:] == (height // 8, width // 8)
    assert explanation.saliency().shape == (1, 1, 60, 90)
    # a 3:2 image loses pixels only where it is cropped
    assert bool(explanation.seen.all()) == (fit != "model" or size == (32, 48))


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_devices_that_are_not_there(device):
    with pytest.raises(legrad.InputError, match=f"cannot use device '{device}'"):
        legrad.load("embedded", device=device)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", torch.float16])
def test_types_by_name(dtype):
    assert legrad.load("embedded", dtype=dtype).anatomy.dtype is torch.float16


@pytest.mark.parametrize("dtype", ["half16", "int8", torch.int8, "nn", 16])
def test_types_that_no_model_has(dtype):
    with pytest.raises(legrad.InputError, match=r"dtype is one of torch\.float32, .* \(or its name\), got"):
        legrad.load("embedded", dtype=dtype)


@pytest.mark.parametrize("name", [None, torch.nn.Linear(1, 1)])
def test_a_model_is_no_name(name):
    with pytest.raises(legrad.InputError, match=r"takes a model's name.*legrad\.wrap\(model\)"):
        legrad.load(name)


def test_a_device_without_weights():
    with pytest.raises(legrad.InputError, match="'meta' has no weights"):
        legrad.load("embedded", device="meta")


# -- names that are nearly right ----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, folder, monkeypatch):
    """One folder of every library, in the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oc").symlink_to(folder)
    for name, config in {
        "hugging": {"model_type": "vit", "architectures": ["ViTForImageClassification"]},
        "timmy": {"architecture": "vit_tiny_patch16_224"},
        "other": {"mine": 1},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hugging", r"unknown model 'hugging'.*did you mean 'hf:hugging'\?$"),
        ("./timmy", r"did you mean 'timm:local-dir:\./timmy'\?$"),
        ("oc", r"did you mean 'open_clip:local-dir:oc'\?$"),
        ("other", r"lists what can be loaded$"),
        ("hf:timmy", r"could not load 'timmy'.*did you mean 'timm:local-dir:timmy'\?$"),
        ("hf:oc", r"did you mean 'open_clip:local-dir:oc'\?$"),
        ("timm:local-dir:hugging", r"no timm model in 'hugging'.*did you mean 'hf:hugging'\?$"),
        ("open_clip:local-dir:timmy", r"did you mean 'timm:local-dir:timmy'\?$"),
        ("hf:huggin", r"^there is no folder 'huggin', and as a repository transformers could not load it: "),
        ("openai/clip-vit-base-patch32", r"did you mean 'hf:openai/clip-vit-base-patch32'\?$"),
        ("ViT-B-16", r"did you mean 'open_clip:ViT-B-16/laion2b_s34b_b88k' or 'open_clip:ViT-B-16/"),
        ("vit-b-16/OPENAI", r"did you mean 'open_clip:ViT-B-16/openai'\?$"),
        ("ViT-B/32", r"did you mean 'open_clip:ViT-B-32/openai'\?$"),
        ("ViT_Base_Patch16_224", r"did you mean 'timm:vit_base_patch16_224'\?$"),
        ("vit_b_16", r"did you mean 'torchvision:vit_b_16'\?$"),
        ("timm/vit_base_patch16_224.dino", r"did you mean 'timm:vit_base_patch16_224\.dino'\?$"),
        ("openclip:ViT-B-16/openai", r"did you mean 'open_clip:ViT-B-16/openai'\?$"),
        ("huggingface:google/vit-base-patch16-224", r"did you mean 'hf:google/vit-base-patch16-224'\?$"),
        ("dinov2", r"did you mean 'timm:\w+dinov2"),
        ("embeded", r"did you mean 'embedded'\?$"),
        (
            "resnet50",
            r"; timm's resnet50 is no plain vision transformer \(resnet\) and torchvision's resnet50 is not a ViT",
        ),
        ("RN50", r"; open_clip's RN50 is a ResNet, not a ViT: LeGrad needs a vision transformer"),
        ("open_clip:vit-b-17/openai", r"open_clip has no model 'vit-b-17'; nearest: ViT-B-1"),
        ("hf:./huggin", r"^there is no folder './huggin'$"),
    ],
)
def test_a_name_that_is_nearly_right(folders, name, message, monkeypatch):
    monkeypatch.setattr(network, "unreachable", lambda url: "no network in tests")
    with pytest.raises(legrad.InputError, match=message) as told:
        legrad.load(name)
    assert ".." not in str(told.value)


@pytest.mark.parametrize(
    "prefix", ["", "hf:", "hf:~nobody-here/", "timm:local-dir:", "open_clip:local-dir:", "open_clip:ViT-B-16/"]
)
def test_names_that_no_file_can_have(prefix, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(legrad.InputError) as told:
        legrad.load(prefix + "x" * 3000)
    assert "\n" not in str(told.value)
