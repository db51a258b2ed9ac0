"""What once went wrong on valid or broken input of real users: odd modules, odd files, odd settings."""

import json
import threading

import numpy as np
import pytest
import torch
import transformers
from helpers import limits, tiny, twin
from helpers.zoo import media as zoo_media
from helpers.zoo import timm as zoo_timm
from helpers.zoo import transformers as zoo_transformers
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode

import legrad
from legrad.core.score import Direction, contrast
from legrad.doctor import examine
from legrad.inputs import sounds, videos


def first(feature):
    return feature[:, 0]


def test_a_subclass_is_explained_like_its_class():
    """The pooler of Eva sees the class token, also in a class that derives from it."""
    model = zoo_timm.build("vit_pe_core_base_patch16_224")
    image = torch.randn(1, 3, *legrad.wrap(model).anatomy.image_size)
    expected = legrad.wrap(model).explain(image, first).relevance
    model.__class__ = type("MyEva", (type(model),), {})
    assert torch.equal(legrad.wrap(model).explain(image, first).relevance, expected)


def test_keys_that_nobody_declared_are_an_error():
    from dataclasses import replace

    model = zoo_timm.build("vit_pe_core_base_patch16_224")
    wrong = replace(legrad.wrap(model).anatomy, num_prefix_keys=0)
    with pytest.raises(legrad.TruthCheckError, match="keys"):
        legrad.wrap(model, anatomy=wrong).explain(torch.randn(1, *wrong.shape), first)


class Keeper:
    """A hook's owner that must never be copied."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, args, output):
        self.calls += 1
        module.saved = output if isinstance(output, torch.Tensor) else None

    def __deepcopy__(self, memo):
        raise AssertionError("the user's hook was copied")


def test_other_sizes_with_hooks_and_saved_activations():
    model, keeper = zoo_timm.build("vit_tiny_patch16_224"), Keeper()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for block in model.blocks:
        block.register_forward_hook(keeper)
    side = legrad.wrap(model).anatomy.image_size[0]
    model(torch.randn(1, 3, side, side)).sum()
    assert model.blocks[0].saved.grad_fn is not None
    found = legrad.wrap(model).explain(torch.randn(1, 3, side + 16, side), first)
    assert found.relevance.shape[-2:] == (side // 16 + 1, side // 16)
    assert keeper.calls > len(model.blocks)


def test_what_cannot_be_copied_is_named():
    model = zoo_timm.build("vit_tiny_patch16_224")
    model.lock = threading.Lock()
    side = legrad.wrap(model).anatomy.image_size[0]
    assert legrad.wrap(model).explain(torch.randn(1, 3, side, side), first).relevance.any()
    with pytest.raises(legrad.InputError, match="cannot be copied for another input size"):
        legrad.wrap(model).explain(torch.randn(1, 3, side + 16, side), first)
    assert examine(legrad.wrap(model)).healthy


def test_contrast_of_targets_on_two_devices():
    class Elsewhere(TorchFunctionMode):
        """Counts moves: there is no second device here."""

        moves = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                Elsewhere.moves += 1
            return func(*args, **(kwargs or {}))

    a, b = Direction("a", torch.eye(2)[:1]), Direction("b", torch.eye(2)[1:])
    with Elsewhere():
        assert contrast(a, b).direction.tolist() == [[1, -1]]
    assert Elsewhere.moves == 1


@pytest.mark.parametrize("name", ["CLIPModel", "ViTForImageClassification", "SiglipVisionModel", "BlipModel"])
def test_models_that_answer_in_tuples(name):
    model = zoo_transformers.build(name)
    image = torch.randn(1, 3, 32, 32)
    expected = legrad.wrap(model).explain(image, first).relevance
    configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "return_dict")}
    for config in configs.values():
        config.return_dict = False
    assert torch.equal(legrad.wrap(model).explain(image, first).relevance, expected)
    assert not any(config.return_dict for config in configs.values())


def test_videos_and_sounds_of_models_that_answer_in_tuples():
    for name in ("videomae", "timesformer", "ast"):
        model = zoo_media.build(name)
        model.config.return_dict = False
        explainer = legrad.wrap(model)
        assert explainer.explain(torch.randn(1, *explainer.anatomy.shape), first).relevance.any()
        assert model.config.return_dict is False


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_broken_weights_are_one_error(tmp_path, content):
    zoo_transformers.build("ViTForImageClassification").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(legrad.InputError, match="could not load"):
        legrad.load(f"hf:{tmp_path}")


@pytest.mark.parametrize("architectures", [["pipeline"], ["__name__"], [1], "ViTModel", None, []])
def test_odd_architectures(tmp_path, architectures):
    zoo_transformers.build("ViTForImageClassification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    with pytest.raises(legrad.InputError, match="names no class") as caught:
        legrad.load(f"hf:{tmp_path}")
    assert "Expected a folder" not in str(caught.value)


def test_broken_timm_weights(tmp_path):
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit", num_classes=3), tmp_path, {"num_classes": 3}, safe_serialization=True)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(legrad.InputError, match="could not load"):
        legrad.load(f"timm:local-dir:{tmp_path}")


def test_a_broken_animation_leaves_the_image_where_it_was(tmp_path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)) for _ in range(4)]
    whole = tmp_path / "whole.gif"
    frames[0].save(whole, save_all=True, append_images=frames[1:], duration=40)
    data, path = whole.read_bytes(), tmp_path / "cut.gif"
    errors = 0
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        try:
            videos.read(str(path), 4)
        except legrad.InputError:
            errors += 1
    assert errors > len(data) / 7 / 2
    with Image.open(whole) as image:
        image.seek(2)
        videos.read(image, 2)
        assert image.tell() == 2


def test_huge_video_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    import av

    path = tmp_path / "large.mkv"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((256, 256, 3), np.uint8))):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    assert len(videos.read(str(path), 2)[0]) == 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 256 * 256 - 1)
    with pytest.raises(legrad.InputError, match="frames of more than"):
        videos.read(str(path), 2)


def test_long_and_odd_sounds(tmp_path, monkeypatch):
    import soundfile

    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros((4000, 2), np.float32), 16000)
    monkeypatch.setattr(sounds, "_MOST_SAMPLES", 7999)
    with pytest.raises(legrad.InputError, match="8000 samples, at most 7999"):
        sounds.read(str(path), 16000)
    half, _, _ = sounds.opened(torch.ones(10, dtype=torch.bfloat16), 16000)
    assert half.tolist() == [[1.0] * 10]


def test_a_tower_compiled_inside_its_model():
    model = tiny.clip()
    image, embedding = torch.randn(1, 3, 32, 32), torch.randn(32)
    expected = legrad.wrap(model).explain(image, embedding).relevance
    model.visual = torch.compile(model.visual, backend="eager")
    assert twin.distance(legrad.wrap(model).explain(image, embedding).relevance, expected) < limits.FLOAT32


def test_weights_that_are_buffers():
    def buffered(module):
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())

    model = zoo_timm.build("vit_tiny_patch16_224")
    image = torch.randn(1, 3, *legrad.wrap(model).anatomy.image_size)
    expected = legrad.wrap(model).explain(image, first).relevance
    model.apply(buffered)
    assert torch.equal(legrad.wrap(model).explain(image, first).relevance, expected)


def test_the_doctor_reports_what_it_cannot_examine():
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 8, 2, 2, 32, 64).eval()
    for block in model.encoder.layers:
        block.self_attention = nn.MultiheadAttention(32, 2, batch_first=True, add_bias_kv=True).eval()
    report = examine(legrad.wrap(model))
    assert not report.healthy
    assert any("bias_k" in finding.value for finding in report.findings)


def test_radio_asks_for_whole_patches():
    explainer = legrad.wrap(zoo_transformers.build("RadioModel"))
    with pytest.raises(legrad.InputError, match="multiples of"):
        explainer.explain(torch.randn(1, 3, 43, 25), first)


def test_tiles_for_language_models_are_not_made():
    from types import SimpleNamespace

    from legrad.models.hf import image_processors

    own = transformers.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True)
    transform = image_processors.transform(SimpleNamespace(image_size=(32, 32)), own)(None, "model")
    ramp = np.linspace(0, 255, 320, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    pixels = transform(Image.fromarray(ramp))
    assert pixels.shape == (3, 32, 32)
    whole = own(images=Image.fromarray(ramp), return_tensors="pt", crop_to_patches=False)["pixel_values"][0]
    assert torch.equal(pixels, whole)
    assert pixels.max() - pixels.min() > 3  # black to white, not a tile


def test_a_naflex_batch_of_another_patch_size_is_named():
    batch = {
        "pixel_values": torch.randn(1, 16, 16 * 16 * 3),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }
    with pytest.raises(legrad.InputError, match=r"768 values per patch.*8 x 8"):
        legrad.wrap(zoo_transformers.build("Siglip2VisionModel")).explain(batch, first)
