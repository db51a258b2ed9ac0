"""Every method on a tiny model of every adapter: a map, or the one sentence that says why there is none."""

import pytest
import torch
from helpers import imagebind_model, openai_clip_model, tiny
from helpers.methods_everywhere import outcome
from helpers.zoo import media as zoo_media
from helpers.zoo import torchvision as zoo_torchvision
from helpers.zoo import transformers as zoo_transformers

import legrad
from legrad.methods import METHODS


def classifier(**options):
    import timm

    torch.manual_seed(0)
    return tiny.randomised(timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL, **options))


MODELS = {
    "open_clip CLIP": tiny.clip,
    "open_clip SigLIP": tiny.TOWERS["siglip"],
    "open_clip CoCa": tiny.coca,
    "timm class token": classifier,
    "timm averaged": lambda: classifier(global_pool="avg", fc_norm=False),
    "torchvision": lambda: zoo_torchvision.build("vit_b_16"),
    "transformers CLIP": lambda: zoo_transformers.build("CLIPModel"),
    "transformers SigLIP": lambda: zoo_transformers.build("SiglipModel"),
    "transformers ViT": lambda: zoo_transformers.build("ViTForImageClassification"),
    "OpenAI clip": lambda: tiny.randomised(openai_clip_model.vit()),
    "ImageBind": lambda: tiny.randomised(imagebind_model.model()),
    "transformers VideoMAE": lambda: tiny.randomised(zoo_media.videomae()),
}
PICTURES_ONLY = "{} is for images (batch, channels, height, width), this model's grid is frames x rows x cols"
REFUSED = {"transformers VideoMAE": {name: PICTURES_ONLY.format(name) for name in ("rise", "occlusion", "edges")}}


@pytest.fixture(scope="module", params=MODELS)
def asked(request):
    return request.param, legrad.wrap(MODELS[request.param]())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_adapter(asked, method):
    name, explainer = asked
    found = outcome(explainer, method)
    assert found == ("flat" if method == "uniform" else REFUSED.get(name, {}).get(method, "map"))
