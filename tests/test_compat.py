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
