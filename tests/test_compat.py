"""The authors' names on top of ours: their README's example unchanged, and right answers for batches."""

import io
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny
from PIL import Image

import legrad

# word for word the example of the authors' README
EXAMPLE = """
import requests
from PIL import Image
import open_clip
import torch

from legrad import LeWrapper, LePreprocess
from legrad.utils import visualize

# ------- model's paramters -------
model_name = 'ViT-B-16'
pretrained = 'laion2b_s34b_b88k'
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# ------- init model -------
model, _, preprocess = open_clip.create_model_and_transforms(
    model_name=model_name, pretrained=pretrained, device=device)
tokenizer = open_clip.get_tokenizer(model_name=model_name)
model.eval()
# ------- Equip the model with LeGrad -------
model = LeWrapper(model)
# ___ (Optional): Wrapper for Higher-Res input image ___
preprocess = LePreprocess(preprocess=preprocess, image_size=448)

# ------- init inputs: image + text -------
url = "http://images.cocodataset.org/val2017/000000039769.jpg"
image = preprocess(Image.open(requests.get(url, stream=True).raw)).unsqueeze(0).to(device)
text = tokenizer(['a photo of a cat']).to(device)

# -------
text_embedding = model.encode_text(text, normalize=True)
print(image.shape)
explainability_map = model.compute_legrad_clip(image=image, text_embedding=text_embedding)

# ___ (Optional): Visualize overlay of the image + heatmap ___
visualize(heatmaps=explainability_map, image=image)
"""


def test_the_readme_example_of_the_authors_runs_unchanged(monkeypatch, tmp_path, capsys):
    """Only what needs the network is replaced: the download of the image, and the weights by random ones."""
    import open_clip

    path = tmp_path / "cats.jpg"
    Image.effect_noise((640, 480), 60).convert("RGB").save(path)
    requests = types.ModuleType("requests")
    requests.get = lambda url, stream: types.SimpleNamespace(raw=io.BytesIO(path.read_bytes()))
    monkeypatch.setitem(sys.modules, "requests", requests)
    text = {"context_length": 77, "vocab_size": 49408}
    small = tiny.clip(image_size=224, patch_size=16, text=text)
    transform = open_clip.image_transform(224, is_train=False)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda **_: (small, None, transform))
    space = {}
    exec(compile(EXAMPLE, "example", "exec"), space)
    assert "torch.Size([1, 3, 448, 448])" in capsys.readouterr().out
    maps = space["explainability_map"]
    assert maps.shape == (1, 1, 448, 448)
    assert float(maps.min()) == 0
    assert float(maps.max()) == 1


@pytest.mark.parametrize("name", ["clip", "coca", "siglip"])
def test_batches_give_a_map_per_image_and_text(name):
    model, x = tiny.TOWERS[name](), torch.randn(3, 3, 32, 32)
    texts = F.normalize(torch.randn(2, 32), dim=-1)
    wrapper = legrad.LeWrapper(model)
    wrapper.empty_embedding = torch.randn(32, 1)
    together = wrapper.compute_legrad(texts, x)
    assert together.shape == (3, 2, 32, 32)
    for i in range(3):
        for j in range(2):
            alone = wrapper.compute_legrad(texts[j : j + 1], x[i : i + 1])
            assert limits.close(alone[0, 0], together[i, j])


def test_wrapper_passes_everything_else_on_and_changes_nothing():
    model, x = tiny.clip(), torch.randn(1, 3, 32, 32)
    texts = F.normalize(torch.randn(2, 32), dim=-1)
    with tiny.left_as_found(model):
        wrapper = legrad.LeWrapper(model, layer_index=0)
        maps = wrapper.compute_legrad_clip(texts, x)
        with torch.no_grad():
            assert torch.equal(wrapper.encode_image(x), model.encode_image(x))
            assert wrapper.visual is model.visual
            assert torch.equal(wrapper(x)[0], model(x)[0])
    assert torch.equal(wrapper.compute_legrad(texts), maps)  # the image of the last encode_image
    with pytest.raises(legrad.InputError, match="needs image="):
        legrad.LeWrapper(model).compute_legrad(texts)
    with pytest.raises(legrad.InputError, match="outside the model's 4 blocks"):
        legrad.LeWrapper(model, layer_index=7)


def test_lepreprocess_squashes_and_keeps_the_rest():
    import open_clip

    transform = open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    tensor = legrad.LePreprocess(transform, 64)(Image.new("RGB", (100, 30), (255, 0, 0)))
    assert tensor.shape == (3, 64, 64)
    assert limits.close(tensor.amax((1, 2)), torch.tensor([1.0, -1.0, -1.0]))


def test_visualize_takes_both_kinds_of_images_and_saves(tmp_path):
    maps = torch.rand(1, 2, 48, 48)
    figure = legrad.visualize(
        image=torch.randn(1, 3, 48, 48), heatmaps=maps, text_prompts=["a/b", "c"], save_path=tmp_path
    )
    assert len([axis for axis in figure.axes if axis.images]) >= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heatmap_a-b.png", "heatmap_c.png"]
    legrad.visualize(image=Image.new("RGB", (60, 20)), heatmaps=maps)
    with pytest.raises(legrad.InputError, match="PIL image or a tensor"):
        legrad.visualize(image=np.zeros((3, 3)), heatmaps=maps)


def test_list_pretrained_prints_and_returns_pairs(capsys):
    pairs = legrad.list_pretrained()
    assert ("ViT-B-16", "laion2b_s34b_b88k") in pairs
    assert not [name for name, _ in pairs if name.startswith(("RN", "convnext"))]
    assert "laion2b_s34b_b88k" in capsys.readouterr().out


def test_visualize_loses_no_map_and_no_file(tmp_path):
    maps, image = torch.rand(2, 8, 8), Image.new("RGB", (8, 8))
    mine = tmp_path / "heatmap_a-cat.png"
    Image.new("RGB", (8, 8), "red").save(mine)
    before = mine.read_bytes()
    for _ in range(2):
        legrad.visualize(image, maps, text_prompts=["a cat", "a cat!"], save_path=tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["heatmap_a-cat-2.png", "heatmap_a-cat-3.png", "heatmap_a-cat.png"]
        assert mine.read_bytes() == before
    with Image.open(tmp_path / "heatmap_a-cat-2.png") as result:
        painted = result.convert("RGB")
    painted.putpixel((0, 0), (1, 2, 3))
    painted.save(tmp_path / "heatmap_a-cat-2.png")
    legrad.visualize(image, maps, text_prompts=["a cat", "a cat!"], save_path=tmp_path)
    with Image.open(tmp_path / "heatmap_a-cat-2.png") as result:
        assert result.getpixel((0, 0)) == (1, 2, 3)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_prompts": ["a"]}, "one text per map: got 1 text_prompts for 2 heatmaps"),
        ({"text_prompts": "ab"}, "one text per map: got 1"),
        ({"text_prompts": ["a"] * 3}, "got 3 text_prompts"),
        ({"heatmaps": None}, r"heatmaps are a tensor \(1, texts, H, W\) or \(texts, H, W\), got NoneType"),
        ({"heatmaps": torch.rand(8, 8)}, r"got Tensor \(8, 8\)"),
        ({"image": None}, "PIL image or a tensor"),
        ({"alpha": "x"}, r"alpha lies in \[0, 1\], got 'x'"),
        ({"save_path": __file__}, "cannot write into .*test_compat.py"),
        ({"save_path": 7}, "the folder is a path, got int"),
        ({"save_path": "a\0b"}, "the folder is a path, got 'a"),
    ],
)
def test_visualize_says_what_is_wrong(changes, message):
    arguments = {"image": Image.new("RGB", (8, 8)), "heatmaps": torch.rand(2, 8, 8), **changes}
    with pytest.raises(legrad.InputError, match=message):
        legrad.visualize(**arguments)


def test_wrong_types_for_the_authors_names():
    import open_clip

    transform = open_clip.image_transform(32, is_train=False)
    for call, message in [
        (lambda: legrad.LeWrapper(tiny.clip(), "x"), "layer_index is a whole number, got 'x'"),
        (lambda: legrad.LeWrapper(tiny.clip(), None), "layer_index is a whole number, got None"),
        (lambda: legrad.LePreprocess(None, 32), "preprocess is open_clip's transform, .*got NoneType"),
        (lambda: legrad.LePreprocess(transform, 0), "image_size is a whole number from 1, got 0"),
        (lambda: legrad.LePreprocess(transform, "x"), "image_size is a whole number from 1, got 'x'"),
        (lambda: legrad.LeWrapper(tiny.clip()).compute_legrad("x"), "text_embedding is a tensor, got str"),
        (lambda: legrad.LeWrapper(tiny.clip()).compute_legrad(torch.rand(1, 32), "x"), "image is a tensor, got str"),
    ]:
        with pytest.raises(legrad.InputError, match=message):
            call()
    assert legrad.LeWrapper(tiny.clip(), np.int64(-1))._layers == [3]
