"""The transformers adapter: every class of the zoo against the slow twin, and what its facts rest on."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import generic_twin, limits, twin
from helpers.tiny import left_as_found, randomised
from helpers.zoo import transformers as zoo
from torch import nn

import legrad
from legrad.core import state
from legrad.models.hf import library

NAMES = [name for name in zoo.CONFIGS if hasattr(transformers, name.split()[0])]  # what this version has
FIXED = {"Aimv2Model", "Aimv2VisionModel headless"}  # a table of positions that the library does not interpolate
POOLED = {"SiglipModel", "SiglipVisionModel", "Siglip2Model", "Siglip2VisionModel", "Aimv2Model", "Aimv2VisionModel"}
# read-outs that start from a class token; the others average or pool all patches
CLASS_TOKEN = {
    *("AltCLIPModel", "AltCLIPVisionModel", "BlipForImageTextRetrieval", "BlipModel", "BlipVisionModel"),
    *("Blip2VisionModel", "CLIPModel", "CLIPSegForImageSegmentation", "CLIPSegModel", "CLIPSegVisionModel"),
    *("CLIPVisionModel", "CLIPVisionModelWithProjection", "ChineseCLIPModel", "ChineseCLIPVisionModel"),
    *("MetaClip2Model", "MetaClip2VisionModel", "MetaClip2VisionModelWithProjection", "MLCDVisionModel"),
    *("DINOv3ViTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel"),
    *("Dinov2ForImageClassification", "Dinov2ForImageClassification swiglu", "Dinov2Model", "FlavaModel"),
    *("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel", "FlavaImageModel", "ViTMAEModel"),
    *("OwlViTForObjectDetection", "OwlViTModel", "OwlViTVisionModel", "Owlv2ForObjectDetection", "Owlv2Model"),
    *("Owlv2VisionModel", "PixioModel", "RadioModel", "Sapiens2Model", "Tipsv2Model", "Tipsv2VisionModel"),
    *("ViTForImageClassification", "ViTMSNForImageClassification", "ViTMSNModel", "ViTModel", "YolosModel"),
    *("BeitForImageClassification class token", "TimmWrapperForImageClassification", "TimmWrapperModel"),
}
# tokens in front of the patches, where there are not one
PREFIX = {
    **dict.fromkeys(("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"), 2),
    **dict.fromkeys(("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"), 4),
    **{"DINOv3ViTModel": 5, "Sapiens2Model": 3, "Tipsv2Model": 2, "Tipsv2VisionModel": 3},
    **{"PixioModel": 3, "RadioModel": 5, "IJepaModel": 0, "IJepaForImageClassification": 0},
    **dict.fromkeys([name for name in NAMES if name.startswith(("Siglip", "Aimv2"))], 0),
}
TAIL = {"YolosModel": 5}
NORMS = ("post_layernorm", "rms_norm", "vision_model.rms_norm")  # what the published read-out of a pooler leaves out


def setting(name, images=2, size=(32, 32)):
    """A model, images, and two targets with what the twin is to score."""
    model = zoo.build(name)
    anatomy = library.adapt(model).anatomy
    pictures = torch.randn(images, 3, *size)
    if anatomy.output == "logits":
        return model, pictures, [1, 3], [lambda f: f[:, 1], lambda f: f[:, 3]]
    with torch.no_grad():
        width = anatomy.at(size).run(pictures[:1]).shape[-1]
    embeddings = F.normalize(torch.randn(2, width, dtype=torch.float64), dim=-1)
    # a feature without head is scored as it is, see legrad.explain's embedding targets
    return model, pictures, embeddings, [lambda f, e=e: f @ e for e in embeddings]


FLOAT32_NORMS = [name for name in NAMES if name.startswith("Aimv2")]  # whatever the model's dtype


@pytest.mark.parametrize("name", NAMES)
def test_every_class_against_the_twin(name):
    model, pictures, targets, scores = setting(name)
    with left_as_found(model):
        explainer = legrad.wrap(model)
        assert explainer.anatomy.default_readout == ("published" if name in CLASS_TOKEN else "native")
        assert (explainer.anatomy.route == "pooler") == (name in POOLED)
    exact = legrad.wrap(zoo.build(name).double())

    def anatomy_of(copied):
        return library.adapt(copied).anatomy.at((32, 32))

    for readout in ("native", "published"):
        with left_as_found(exact.model):
            explanation = exact.explain(pictures.double(), targets, readout=readout, keep_layers=True)
            if name in FLOAT32_NORMS:  # what the first pass computes in another order, they round to other numbers
                first, explanation = (
                    explanation,
                    exact.explain(pictures.double(), targets, readout=readout, keep_layers=True),
                )
                assert twin.distance(first.layer_relevance, explanation.layer_relevance) < limits.FLOAT32
        norms = [one for one in NORMS if one in dict(exact.anatomy.tower.named_modules())]
        for column, score in enumerate(scores):
            want = generic_twin.layer_maps(model, anatomy_of, pictures, score, readout, norms)
            assert twin.distance(explanation.layer_relevance[:, column], want) < limits.FLOAT64
    single = explainer.explain(pictures, targets, readout="published", keep_layers=True)
    assert twin.distance(single.layer_relevance, explanation.layer_relevance) < limits.FLOAT32


def block_input(anatomy, pictures):
    """Tokens that enter the first block."""
    found = []
    handle = anatomy.blocks[0].register_forward_pre_hook(
        lambda _m, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), state.evaluation_mode(anatomy.tower, anatomy.call_settings):
        anatomy.run(pictures)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_patches_are_where_the_anatomy_says(name):
    size, grid = ((32, 32), (4, 4)) if name in FIXED else ((24, 40), (3, 5))
    anatomy = legrad.wrap(zoo.build(name)).anatomy.at(size)
    prefix = PREFIX.get(name, 1)
    assert (anatomy.num_prefix_tokens, anatomy.num_prefix_keys, anatomy.grid) == (prefix, prefix, grid)
    pictures = torch.randn(1, 3, *size)
    changed = pictures.clone()
    changed[:, :, 16:24, 8:16] += 1
    plain, other = (block_input(anatomy, one) for one in (pictures, changed))
    assert plain.shape[1] == prefix + grid[0] * grid[1] + TAIL.get(name, 0)
    moved = (plain - other).abs().amax((0, 2)).nonzero().flatten().tolist()
    assert moved == [prefix + 2 * grid[1] + 1]


DUAL = [
    *("CLIPModel", "AltCLIPModel", "ChineseCLIPModel", "MetaClip2Model", "CLIPSegModel", "SiglipModel", "Aimv2Model"),
    *("BlipModel", "Tipsv2Model", "Owlv2Model", "OwlViTModel", "CLIPSegForImageSegmentation"),
    *("OwlViTForObjectDetection", "BlipForImageTextRetrieval", "FlavaModel", "Siglip2Model"),
]


@pytest.mark.parametrize("name", DUAL)
def test_texts_go_through_the_text_tower(name):
    model = zoo.build(name)
    pictures = torch.randn(2, 3, 32, 32)
    texts = ["a red bus", "two cats on a mat here"]
    explanation = legrad.wrap(model, tokenizer=zoo.tokenizer()).explain(pictures, texts)
    assert explanation.labels == [texts, texts]
    ids = zoo.tokenizer()(
        texts,
        return_tensors="pt",
        padding="max_length" if name.startswith(("Siglip", "Tipsv2")) else True,
        max_length=16,
        truncation=True,
    )
    with torch.no_grad():
        assert limits.close(explanation.scores, own_similarity(model, pictures, ids))


def own_similarity(model, pictures, ids):
    """(images, texts), by the model's complete forward."""
    name = type(model).__name__
    if name == "BlipForImageTextRetrieval":
        return model(ids["input_ids"], pictures, use_itm_head=False, attention_mask=ids["attention_mask"]).itm_score
    if name == "FlavaModel":  # as FlavaForPreTraining computes its contrastive logits
        image = model.image_projection(model.image_model(pictures).last_hidden_state[:, 0])
        text = model.text_projection(model.text_model(**ids).last_hidden_state[:, 0])
    else:
        inner = getattr(model, "clip", getattr(model, "owlvit", model))
        output = inner(pixel_values=pictures, **ids) if name != "Siglip2Model" else inner(**patches(pictures), **ids)
        image, text = output.image_embeds, output.text_embeds
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def patches(pictures):
    """What Siglip2's processor makes of normalised images of one size, written with loops."""
    rows, cols = pictures.shape[2] // 8, pictures.shape[3] // 8
    cut = [
        [
            one[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].permute(1, 2, 0).flatten()
            for r in range(rows)
            for c in range(cols)
        ]
        for one in pictures
    ]
    return {
        "pixel_values": torch.stack([torch.stack(one) for one in cut]),
        "pixel_attention_mask": torch.ones(len(pictures), rows * cols, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[rows, cols]] * len(pictures)),
    }


def test_classifiers():
    labels = dict(enumerate(("bus", "cat", "dog", "mat", "owl")))
    model = zoo.build("ViTForImageClassification", id2label=labels)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(pictures).logits
    explainer = legrad.wrap(model)
    explanation = explainer.explain(pictures, ["Cat", 3, legrad.PREDICTED])
    best = logits.argmax(1)
    assert explanation.labels == [["cat", "mat", f"{labels[int(i)]} (predicted)"] for i in best]
    assert limits.close(explanation.scores[:, :2], logits[:, [1, 3]])
    assert limits.close(explanation.scores[:, 2], logits.amax(1))
    with pytest.raises(legrad.InputError, match="no class 'car'"):
        explainer.explain(pictures, "car")
    # the library's placeholders are no names
    assert legrad.wrap(zoo.build("ViTForImageClassification")).adapter.labels is None


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "ViTModel", "BlipVisionModel"])
def test_other_sizes_are_the_librarys_own_interpolation(name):
    model = zoo.build(name)
    anatomy = legrad.wrap(model).anatomy
    # as many patches as the model's own size, in another shape
    for size in ((16, 64), (64, 16), (40, 40)):
        pictures = torch.randn(1, 3, *size)
        with torch.no_grad():
            output = getattr(model, "get_image_features", model)(pictures, interpolate_pos_encoding=True)
            assert torch.equal(anatomy.at(size).run(pictures), output.pooler_output)
    assert anatomy.at((16, 64)).at((32, 32)) is anatomy
    with pytest.raises(legrad.InputError, match="smaller than one patch"):
        anatomy.at((4, 32))


def test_sizes_that_cannot_be():
    explainer = legrad.wrap(zoo.build("Aimv2Model"))
    with pytest.raises(legrad.InputError, match=r"Aimv2VisionModel takes images of \(32, 32\) pixels only"):
        explainer.explain(torch.randn(1, 3, 40, 40), torch.randn(24))
    # the library would read a 2 x 8 table as one of 4 x 4
    explainer = legrad.wrap(zoo.build("ViTForImageClassification", image_size=(16, 64)))
    explainer.explain(torch.randn(1, 3, 16, 64), 0)
    with pytest.raises(legrad.InputError, match="square grids only"):
        explainer.explain(torch.randn(1, 3, 32, 32), 0)


@pytest.mark.parametrize("name", ["CLIPModel", "Dinov2ForImageClassification", "DINOv3ViTModel", "BeitModel"])
def test_eager_attention_is_switched_and_put_back(name):
    model, pictures, targets, _ = setting(name)
    want = legrad.wrap(model).explain(pictures, targets)
    model.set_attn_implementation("eager")
    before = [getattr(m.config, "_attn_implementation", None) for m in model.modules() if hasattr(m, "config")]
    assert "eager" in before
    explanation = legrad.wrap(model).explain(pictures, targets)
    after = [getattr(m.config, "_attn_implementation", None) for m in model.modules() if hasattr(m, "config")]
    assert after == before
    assert twin.distance(explanation.relevance, want.relevance) < limits.FLOAT32
    # switched after wrapping, too
    explainer = legrad.wrap(model)
    model.set_attn_implementation({"": "eager"} if name != "CLIPModel" else {"vision_config": "eager"})
    assert twin.distance(explainer.explain(pictures, targets).relevance, want.relevance) < limits.FLOAT32


def test_data2vec_built_eager():
    pictures = torch.randn(2, 3, 32, 32)
    found = []
    for kind in ("sdpa", "eager"):
        model = zoo.build("Data2VecVisionForImageClassification", attn_implementation=kind)
        explainer = legrad.wrap(model)
        assert explainer.anatomy.attention == {"sdpa": "fused", "eager": "softmax"}[kind]
        found.append(explainer.explain(pictures, [0, 2]).relevance)
    assert twin.distance(*found) < limits.FLOAT32


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "DeiTForImageClassification", "Siglip2Model"])
def test_half_precision(name):
    model, pictures, targets, _ = setting(name)
    want = legrad.wrap(model).explain(pictures, targets).relevance.flatten(2)
    half = legrad.wrap(zoo.build(name).bfloat16())
    with left_as_found(half.model):
        found = half.explain(pictures, targets).relevance.flatten(2)
    both = torch.stack([want.flatten(0, 1), found.flatten(0, 1)], 1)
    assert all(torch.corrcoef(pair)[0, 1] > limits.CORRELATION for pair in both)


def test_masked_autoencoder_sees_the_whole_image():
    model = zoo.build("ViTMAEModel")
    assert model.config.mask_ratio == 0.75
    pictures = torch.randn(2, 3, 32, 32)
    explainer = legrad.wrap(model)
    target = torch.randn(32)
    with left_as_found(model):
        first = explainer.explain(pictures, target).relevance
    torch.manual_seed(2)
    assert torch.equal(first, explainer.explain(pictures, target).relevance)
    assert model.config.mask_ratio == 0.75


def test_a_users_subclass_is_known():
    class Mine(transformers.ViTForImageClassification):
        pass

    model = Mine(transformers.ViTConfig(**zoo.VISION, num_labels=3)).eval()
    assert legrad.wrap(model).anatomy.output == "logits"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("Swin", "SwinForImageClassification attends inside shifted windows"),
        ("ConvNext", "ConvNextForImageClassification is a convolutional network"),
        ("PoolFormer", "is a convolutional network"),
    ],
)
def test_refused(kind, says):
    sizes = {"Swin": {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 1], "image_size": 32}}
    small = sizes.get(kind, {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8]})
    model = getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**small))
    with pytest.raises(legrad.UnsupportedModelError, match=f"transformers' .*{says}"):
        legrad.wrap(model)


def test_unknown_models_are_refused_in_words():
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**zoo.TEXT))
    with pytest.raises(legrad.UnsupportedModelError, match=r"CLIPTextModel is not a classifier.*anatomy="):
        legrad.wrap(text)
    assert library.adapt(nn.Linear(2, 2)) is None


def test_the_zoo_covers_the_adapter_and_the_librarys_maps():
    listed = [name for name in zoo.names() if not zoo.not_applicable(name)]
    assert set(listed) == set(zoo.CONFIGS)
    known = {name for module in library.MODULES for name in module.FAMILIES}
    elsewhere = {"FlavaForPreTraining", "ViTMAEForPreTraining", "YolosForObjectDetection"} | {
        f"{kind}ForMaskedImageModeling" for kind in ("ViT", "DeiT", "Beit")
    }
    images = {name for module in library.MODULES[:2] for name in module.FAMILIES}
    assert images - elsewhere == {name.split()[0] for name in zoo.CONFIGS}
    for name in zoo.names():
        if zoo.not_applicable(name) and name not in known:
            assert library.reason(name)


@pytest.mark.parametrize(
    "name",
    ["ViTForMaskedImageModeling", "ViTMAEForPreTraining", "YolosForObjectDetection", "BeitForMaskedImageModeling"],
)
def test_models_trained_otherwise_show_their_tower(name):
    arguments = {"image_size": [32, 40], "num_detection_tokens": 5} if name.startswith("Yolos") else {}
    config = getattr(transformers, name.split("For")[0] + "Config")(
        **{**zoo.VISION, "encoder_stride": 8, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2, **arguments}
    )
    model = getattr(transformers, name)(config).eval()
    pictures, target = torch.randn(1, 3, 32, 40), torch.randn(32)
    with left_as_found(model):
        legrad.wrap(model).explain(pictures, target)


def test_the_frame_tower_of_pe_audio_video():
    """Refused as a whole, for a reason that says what can be done; and that can be done."""
    tower = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "ref_feat_shape": 4}
    vision = {"model_args": tower, "num_labels": 16, "model_type": "timm_wrapper"}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.PeVideoEncoderConfig(vision_config=vision, head_dim=16, **sizes)
    model = randomised(transformers.PeVideoEncoder(config))
    # one token for each of three frames
    assert model(torch.randn(1, 3, 3, 32, 32)).last_hidden_state.shape == (1, 3, 32)
    with pytest.raises(legrad.UnsupportedModelError, match=r"one token .*vision_model\) can be wrapped alone"):
        legrad.wrap(model)
    tower = legrad.wrap(model.embedder.vision_model)
    explanation = tower.explain(torch.randn(1, 3, 32, 32), lambda feature: feature[:, 0])
    assert explanation.relevance.shape == (1, 1, 4, 4)
