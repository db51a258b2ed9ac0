"""timm: facts and read-outs of every family, by hand and against the slow twin; loading, sizes, images, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import generic_twin, limits, tiny, twin
from helpers.zoo import timm as zoo_timm
from PIL import Image

import legrad
from legrad.core import state
from legrad.core.positions import position_check, random_input
from legrad.core.truth import truth_check
from legrad.inputs import geometry, transforms
from legrad.models.timm import library as adapter


def norm_token(m, z):
    return m.head(m.norm(z)[:, 0])


def mean_norm(m, z):
    return m.head(m.norm(z.mean(1)))


def mean_fc_norm(m, z):
    return m.head(m.fc_norm(z.mean(1)))


def patches_fc_norm(prefix):
    return lambda m, z: m.head(m.fc_norm(z[:, prefix:].mean(1)))


def norm_patches(prefix):
    return lambda m, z: m.head(m.norm(z)[:, prefix:].mean(1))


def pooled(first):
    return lambda m, z: m.head(m.attn_pool(m.norm(z)[:, first:]))


def pooled_raw(first):
    return lambda m, z: m.head(m.attn_pool(z[:, first:]))


def distilled(m, z):
    return (m.head(m.norm(z)[:, 0]) + m.head_dist(m.norm(z)[:, 1])) / 2


def mean_distilled(m, z):
    mean = m.norm(z.mean(1))
    return (m.head(mean) + m.head_dist(mean)) / 2


def cait(m, z):
    token = m.cls_token.expand(len(z), -1, -1)
    for block in m.blocks_token_only:
        token = block(z, token)
    return m.head(m.norm(token)[:, 0])


def xcit(m, z):
    z = torch.cat([m.cls_token.expand(len(z), -1, -1), z], 1)
    for block in m.cls_attn_blocks:
        z = block(z)
    return m.head(m.norm(z)[:, 0])


def sam(m, z):
    return m.head.fc(m.neck(z.transpose(1, 2).reshape(len(z), -1, 4, 4)).mean((2, 3)))


def sam_mean(m, z):
    return sam(m, z.mean(1, keepdim=True).expand(-1, 16, -1))


def merged(m, z):
    return m.head(m.norm(m.encoder.merger(z.reshape(len(z), 4, 4, -1)).mean(1)))


def merged_mean(m, z):
    return merged(m, z.mean(1, keepdim=True).expand(-1, 16, -1))


def deepseek(m, z):
    return m.head(m.norm(m.encoder.norm(z).mean(1)))


def deepseek_mean(m, z):
    return m.head(m.norm(m.encoder.norm(z.mean(1))))


def gemma(m, z):
    return m.head(m.norm(z.mean(1)))


# name -> prefix tokens, prefix keys of the explained attention, attentions, taps, auto, native and published read-out
FAMILIES = {
    "vit_base_patch16_224": (1, 1, 1, (0,), "published", norm_token, mean_norm),
    "vit_small_patch14_reg4_dinov2": (5, 5, 1, (0,), "published", norm_token, mean_norm),
    "deit3_base_patch16_224": (1, 1, 1, (0,), "published", norm_token, mean_norm),
    "deit_base_distilled_patch16_224": (2, 2, 1, (0,), "published", distilled, mean_distilled),
    "vit_base_patch16_radio_v3": (8, 8, 1, (0,), "published", lambda m, z: z[:, 0], lambda m, z: z.mean(1)),
    "vit_base_patch16_reg4_gap_256": (4, 4, 1, (0,), "native", patches_fc_norm(4), mean_fc_norm),
    "vit_base_patch16_gap_224": (0, 0, 1, (0,), "native", norm_patches(0), mean_norm),
    "vit_base_patch16_rpn_224": (0, 0, 1, (0,), "native", patches_fc_norm(0), mean_fc_norm),
    "vit_base_patch16_xp_224": (1, 1, 1, (0,), "published", norm_token, mean_norm),
    "vit_base_patch16_18x2_224": (1, 1, 2, (0, 1), "published", norm_token, mean_norm),
    "vit_dwee_patch16_reg1_gap_256": (1, 1, 2, (0,), "native", patches_fc_norm(1), mean_fc_norm),
    "vit_dpwee_patch16_reg1_gap_256": (1, 1, 2, (0,), "native", patches_fc_norm(1), mean_fc_norm),
    "vit_base_patch16_siglip_224": (0, 0, 1, (0,), "native", pooled(0), pooled_raw(0)),
    "vit_so150m_patch16_reg4_map_256": (4, 0, 1, (0,), "native", pooled(4), pooled_raw(4)),
    "test_vit3": (1, 1, 1, (0,), "native", pooled(0), pooled_raw(0)),
    "vit_pe_core_base_patch16_224": (1, 1, 1, (0,), "native", pooled(0), pooled_raw(0)),
    "eva02_base_patch14_448": (1, 1, 1, (0,), "native", patches_fc_norm(1), mean_fc_norm),
    "eva02_enormous_patch14_clip_224": (1, 1, 1, (0,), "published", norm_token, mean_norm),
    "vit_small_patch16_dinov3": (5, 5, 1, (0,), "native", norm_patches(5), mean_norm),
    "vit_base_patch16_sapiens2": (9, 9, 1, (0,), "published", norm_token, mean_norm),
    "vit_base_patch16_rope_reg1_gap_256": (1, 1, 1, (0,), "native", patches_fc_norm(1), mean_fc_norm),
    "beit_base_patch16_224": (1, 1, 1, (0,), "native", patches_fc_norm(1), mean_fc_norm),
    "vit_relpos_base_patch16_clsgap_224": (1, 1, 1, (0,), "native", patches_fc_norm(1), mean_fc_norm),
    "vit_base_mci_224": (1, 1, 1, (0,), "published", norm_token, mean_norm),
    "vitamin_small_224": (0, 0, 1, (0,), "native", patches_fc_norm(0), mean_fc_norm),
    "naflexvit_base_patch16_gap": (4, 4, 1, (0,), "native", patches_fc_norm(4), mean_fc_norm),
    "naflexvit_base_patch16_map": (1, 0, 1, (0,), "native", pooled(1), pooled_raw(1)),
    "cait_xxs24_224": (0, 1, 2, (0, 1), "native", cait, cait),
    "xcit_nano_12_p8_224": (0, 1, 2, (0, 1), "native", xcit, xcit),
    "samvit_base_patch16_224": (0, 0, 1, (0,), "native", sam, sam_mean),
    "qwen3_vit_88m_merge": (0, 0, 1, (0,), "native", merged, merged_mean),
    "deepseek_vit_412m": (0, 0, 1, (0,), "native", deepseek, deepseek_mean),
    "gemma4_vit_167m": (0, 0, 1, (0,), "native", gemma, gemma),
}


def known(names):
    """Names that the installed timm has; the oldest supported one lacks some, and cannot build EVA02-E."""
    import timm

    there = set(zoo_timm.names()) - ({"eva02_enormous_patch14_clip_224"} if timm.__version__ == "1.0.20" else set())
    return [name for name in names if name in there]


@pytest.mark.parametrize("name", known(FAMILIES))
def test_family(name):
    """Facts and read-outs as written above; the facts hold for the model itself; maps of the twin."""
    prefix, keys, attentions, taps, auto, native, published = FAMILIES[name]
    model = zoo_timm.build(name)
    anatomy = legrad.wrap(model).anatomy
    assert (anatomy.num_prefix_tokens, anatomy.num_prefix_keys) == (prefix, keys)
    assert (anatomy.attentions, anatomy.explained_attentions, anatomy.default_readout) == (attentions, taps, auto)
    assert anatomy.grid == (4, 4)
    z = torch.randn(2, prefix + 16, model.embed_dim)
    with torch.no_grad():
        for readout, expected in (("native", native), ("published", published)):
            assert limits.close(anatomy.readouts[readout].function(z), expected(model, z)), readout
    with state.evaluation_mode(model, anatomy.call_settings):
        batch = random_input(anatomy)
        truth_check(anatomy, batch)
        position_check(anatomy, batch)
    against_twin(model, batch)


def against_twin(model, batch, size=None):
    explainer = legrad.wrap(model.double())

    def score(feature):
        return feature[:, :4].sum(-1) - 2 * feature[:, 4]

    def anatomy_of(copied):
        anatomy = legrad.wrap(copied).anatomy
        return anatomy if size is None else anatomy.at(size)

    readout = explainer.anatomy.default_readout
    with tiny.left_as_found(model):
        found = explainer.explain(batch.double(), score, keep_layers=True).layer_relevance[:, 0]
    expected = generic_twin.layer_maps(model, anatomy_of, batch, score, readout)
    assert twin.distance(found, expected) < limits.FLOAT64


@pytest.mark.parametrize("name", known(["vit_dwee_patch16_reg1_gap_256"]))
def test_differential_attention_is_that_of_the_difference(name):
    """The written-out form of timm itself: A = A1 - lambda A2 as one leaf."""
    model = zoo_timm.build(name).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    found = legrad.wrap(model).explain(x, 5, layers=[1]).relevance[0, 0]
    with torch.no_grad():
        tokens = model.blocks[0](model._pos_embed(model.patch_embed(x)))
    block, attn = model.blocks[1], model.blocks[1].attn
    with torch.no_grad():
        q, k, v = attn.qkv(block.norm1(tokens)).chunk(3, 2)
        q, k = (
            attn.q_norm(q.reshape(1, 17, 2 * attn.num_heads, -1)),
            attn.k_norm(k.reshape(1, 17, 2 * attn.num_heads, -1)),
        )
        both = torch.einsum("bqhd,bkhd->bhqk", q, k * attn.scale).softmax(-1)
        leaf = both[:, 0::2] - attn._compute_lambda() * both[:, 1::2]
        v = v.reshape(1, 17, attn.num_heads, -1)
    leaf.requires_grad_()
    out = attn.sub_norm(torch.einsum("bhqk,bkhd->bhqd", leaf, v)) * (1 - attn.lambda_init)
    out = attn.proj(attn.norm(out.transpose(1, 2).flatten(2)))
    z = tokens + block.ls1(out)
    z = z + block.ls2(block.mlp(block.norm2(z)))
    model.head(model.fc_norm(z[:, 1:].mean(1)))[0, 5].backward()
    expected = leaf.grad.clamp(min=0).mean((1, 2))[0, 1:].reshape(4, 4)
    assert twin.distance(found, expected) < limits.FLOAT64


def test_parallel_attentions_are_averaged():
    model = zoo_timm.build("vit_base_patch16_18x2_224")
    anatomy = legrad.wrap(model).anatomy
    x = torch.randn(1, 3, 64, 64)
    one, two = (
        legrad.wrap(model, anatomy=replace(anatomy, explained_attentions=(tap,))).explain(x, 5).relevance
        for tap in (0, 1)
    )
    assert twin.distance(legrad.wrap(model).explain(x, 5).relevance, (one + two) / 2) < limits.FLOAT32
    assert twin.distance(one, two) > limits.DIFFERENT


SIZED = ["vit_base_patch16_siglip_224", "eva02_base_patch14_448", "beit_base_patch16_224", "cait_xxs24_224"]
SIZED += [
    "vit_relpos_base_patch16_clsgap_224",
    "vit_small_patch16_dinov3",
    "naflexvit_base_patch16_gap",
    "xcit_nano_12_p8_224",
]


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")
@pytest.mark.parametrize("name", known(SIZED))
def test_sizes(name):
    model = zoo_timm.build(name)
    anatomy = legrad.wrap(model).anatomy
    rows, cols = anatomy.patch_size
    size = (3 * rows, 6 * cols)
    if name.startswith(("beit", "vit_relpos")) and not hasattr(model, "set_input_size"):  # up to timm 1.0.29
        with pytest.raises(legrad.InputError, match="pixels only; leave size=None"):
            anatomy.at(size)
        return
    other = anatomy.at(size)
    assert (other.grid, other.image_size) == ((3, 6), size)
    with state.evaluation_mode(model, anatomy.call_settings):
        position_check(other, random_input(other))
    against_twin(model, random_input(other), size)


def test_dynamic_models_are_used_as_they_are():
    import timm

    shrunk = {**zoo_timm.NARROW, "img_size": 64, "dynamic_img_size": True}
    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", **shrunk))
    other = legrad.wrap(model).anatomy.at((48, 96))
    assert other.tower is model
    assert other.grid == (3, 6)
    static = timm.create_model("vit_tiny_patch16_224", **{**shrunk, "dynamic_img_size": False}).eval()
    static.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 48, 96)
    assert twin.distance(*(legrad.wrap(m).explain(x, 3).relevance for m in (model, static))) < limits.FLOAT32
    padding = timm.create_model("vit_tiny_patch16_224", **shrunk, dynamic_img_pad=True)
    assert legrad.wrap(tiny.randomised(padding)).explain(torch.randn(1, 3, 50, 90), 3).relevance.shape[-2:] == (4, 6)
    with pytest.raises(legrad.InputError, match="multiples of"):
        legrad.wrap(model).explain(torch.randn(1, 3, 50, 96), 3)


def test_sizes_that_cannot_be():
    for name in ("naflexvit_base_patch16_gap", "xcit_nano_12_p8_224", "samvit_base_patch16_224"):
        with pytest.raises(legrad.InputError, match="multiples of"):
            legrad.wrap(zoo_timm.build(name)).explain(torch.randn(1, 3, 65, 64), lambda f: f[:, 0])


@pytest.mark.parametrize("kwargs", [{"global_pool": "prr"}, {"global_pool": "avgmax"}, {"in_chans": 4}])
def test_options_that_no_name_has(kwargs):
    import timm

    try:
        model = timm.create_model("vit_tiny_patch16_224", **zoo_timm.NARROW, img_size=64, **kwargs)
    except AssertionError:
        pytest.skip("this timm does not know the option")
    tiny.randomised(model)
    assert legrad.wrap(model).anatomy.route == ("pooler" if "prr" in kwargs.values() else "self-attention")
    batch = random_input(legrad.wrap(model).anatomy)
    against_twin(model, batch)
    if "in_chans" in kwargs:
        with pytest.raises(legrad.InputError, match="no preprocessing"):
            legrad.wrap(model).explain("image.jpg", 3)


def test_left_as_found_with_checkpointing_and_eager_attention():
    model = zoo_timm.build("vit_so150m_patch16_reg4_map_256").train()
    model.set_grad_checkpointing(True)
    for module in (*model.blocks.modules(), model.attn_pool):
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    x, wide = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 48, 80)
    with tiny.left_as_found(model):
        explanation = legrad.wrap(model).explain(x, 3)
        legrad.wrap(model).explain(wide, 3)
    want = legrad.wrap(zoo_timm.build("vit_so150m_patch16_reg4_map_256")).explain(x, 3)
    assert torch.equal(explanation.relevance, want.relevance)


# -- images, labels, outputs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (53, 87, 3), np.uint8))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "naflexvit_base_patch16_gap"])
@pytest.mark.parametrize("fit", ["model", "squash", "pad"])
@pytest.mark.parametrize("size", [None, 70, (56, 84)])
def test_transforms_can_be_followed(name, fit, size, picture):
    transform = adapter.adapt(zoo_timm.build(name)).transform(size and geometry.as_size(size), fit)
    own = 4 * (14 if "14" in name else 16)
    frame = transforms.follow(transform, (picture.height, picture.width))
    assert (
        frame.input == tuple(transform(picture).shape[1:]) == ((own, own) if size is None else geometry.as_size(size))
    )
    whole = [(0 - frame.offset[axis]) / frame.scale[axis] for axis in (0, 1)]
    if fit != "model":
        assert all(corner <= 0.5 for corner in whole), "the whole image is seen"


def test_images_at_the_models_own_size(picture):
    """The configuration says 224, the model was built for 64."""
    explainer = legrad.wrap(zoo_timm.build("vit_tiny_patch16_224"))
    assert explainer.explain(picture, 3).relevance.shape == (1, 1, 4, 4)
    assert explainer.explain(picture, 3, size=(48, 80), fit="squash").relevance.shape == (1, 1, 3, 5)


def test_labels(picture):
    explainer = legrad.wrap(zoo_timm.build("vit_tiny_patch16_224"))
    labels = adapter.labels(explainer.model)
    assert len(labels) == 1000
    assert labels[1] == "goldfish, Carassius auratus"
    by_name, by_index = explainer.explain(picture, labels[1].upper()), explainer.explain(picture, 1)
    assert torch.equal(by_name.relevance, by_index.relevance)
    assert by_index.labels == [["goldfish, Carassius auratus"]]
    predicted = explainer.explain(picture, legrad.PREDICTED)
    x = adapter.adapt(explainer.model).transform(None, "model")(picture)[None]
    with torch.no_grad():
        best = int(explainer.model(x).argmax())
    assert predicted.labels == [[f"{labels[best]} (predicted)"]]
    with pytest.raises(legrad.InputError, match="no class 'gold fish'; nearest:"):
        explainer.explain(picture, "gold fish")


def test_labels_only_where_they_belong():
    import timm

    def model(**kwargs):
        return timm.create_model("vit_tiny_patch16_224", **zoo_timm.NARROW, img_size=64, **kwargs)

    assert adapter.labels(model(num_classes=10)) is None
    assert adapter.labels(model(num_classes=0)) is None
    own = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat", "n2": "dog"}, "num_classes": 2}
    assert adapter.labels(model(pretrained_cfg_overlay=own, num_classes=2)) == ("cat", "dog")
    sparse = {"label_names": {"0": "cat", "2": "dog"}, "num_classes": 3}
    assert adapter.labels(model(pretrained_cfg_overlay=sparse, num_classes=3)) == ("cat", "class 1", "dog")


def test_outputs():
    """No head: a feature. CLIP's weights: a projection, compared by cosine. Anything else: logits."""
    import timm

    assert legrad.wrap(zoo_timm.build("vit_small_patch14_reg4_dinov2")).anatomy.output == "feature"
    clip = "vit_base_patch32_clip_224"

    def output(tag, **kwargs):
        model = timm.create_model(f"{clip}.{tag}", **zoo_timm.NARROW, img_size=64, **kwargs)
        return legrad.wrap(tiny.randomised(model)).anatomy.output

    assert output("openai") == "embedding"
    assert output("openai", num_classes=7) == "logits"
    assert output("laion2b_ft_in1k") == "logits"
    explainer = legrad.wrap(zoo_timm.build("vit_base_patch16_clip_quickgelu_224"))
    x = torch.randn(1, 3, 64, 64)
    explanation = explainer.explain(x, torch.randn(2, 512))
    assert bool((explanation.scores.abs() <= 1).all())
    with pytest.raises(legrad.InputError, match="no text tower"):
        explainer.explain(x, "a cat")


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny classifier as timm pushes it to the hub."""
    import timm
    from timm.models._hub import has_hf_hub, save_for_hf

    if not has_hf_hub():
        pytest.skip("this timm is too old for this huggingface_hub")
    path = tmp_path_factory.mktemp("tiny-vit")
    args = {**zoo_timm.NARROW, "img_size": 64, "num_classes": 3}
    model = tiny.randomised(timm.create_model("vit_tiny_patch16_224", **args))
    config = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "cat", "n2": "dog", "n3": "two\nlines"}}
    save_for_hf(model, path, model_config=config, model_args=args, safe_serialization=True)
    return path


def test_local_dir(folder, picture):
    explainer = legrad.load(f"timm:local-dir:{folder}")
    assert not explainer.model.training
    explanation = explainer.explain(picture, ["dog", 0, legrad.PREDICTED])
    assert explanation.settings["model"] == f"timm:local-dir:{folder}"
    assert explanation.labels[0][:2] == ["dog", "cat"]
    assert explanation.relevance.shape == (1, 3, 4, 4)
    half = legrad.load(f"timm:local-dir:{folder}", dtype=torch.bfloat16)
    assert half.anatomy.dtype == torch.bfloat16
    pair = torch.stack([e.explain(picture, "dog").relevance.flatten() for e in (explainer, half)])
    assert float(torch.corrcoef(pair)[0, 1]) > limits.CORRELATION


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(legrad.InputError, match=r"no timm model in .*expected a folder with config.json"):
        legrad.load(f"timm:local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(legrad.UnsupportedModelError, match="resnet18 is no plain vision transformer"):
        legrad.load(f"timm:local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    with pytest.raises(legrad.InputError, match="timm could not load"):
        legrad.load(f"timm:local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("vit_tiny_patch16_242", legrad.InputError, r"nearest: vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.nobody", legrad.InputError, r"no weights 'nobody' for vit_tiny_patch16_224; it has \["),
        ("vit_base_patch16_18x2_224", legrad.InputError, r"no weights for vit_base_patch16_18x2_224.*legrad.wrap"),
        ("resnet50", legrad.UnsupportedModelError, r"timm's resnet50 is no plain vision transformer \(resnet\)"),
        ("swin_tiny_patch4_window7_224.ms_in1k", legrad.UnsupportedModelError, "swin_transformer"),
        ("volo_d1_224", legrad.UnsupportedModelError, "volo"),
    ],
)
def test_names_that_cannot_work(name, error, words):
    with pytest.raises(error, match=words):
        legrad.load(f"timm:{name}")


def test_offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("vit_tiny_patch16_224", "hf-hub:someone/nothing"):
        with pytest.raises(legrad.InputError, match=r"(?s)timm could not load .*Without a network"):
            legrad.load(f"timm:{name}")


def test_refusals():
    """One clear sentence, for every kind of network that is no plain ViT."""
    import timm

    small = {"resnet18": {}, "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1)}}
    for name, kwargs in small.items():
        with pytest.raises(legrad.UnsupportedModelError, match=r"convolutional, windowed, hierarchical"):
            legrad.wrap(timm.create_model(name, **kwargs))
    vit = {**zoo_timm.NARROW, "img_size": 64}
    with pytest.raises(legrad.UnsupportedModelError, match=r"FeatureGetterNet is no plain"):
        legrad.wrap(timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=1, **vit))
    with pytest.raises(legrad.UnsupportedModelError, match=r"global_pool=''.*returns all tokens"):
        legrad.wrap(timm.create_model("vit_tiny_patch16_224", global_pool="", **vit))
    with pytest.raises(legrad.UnsupportedModelError, match=r"class-attention stage.*global_pool='token'"):
        legrad.wrap(timm.create_model("cait_xxs24_224", global_pool="avg", **vit))
    assert "language model" in adapter.not_supported("qwen3_vit_88m_enc") or "qwen3_vit_88m_enc" not in zoo_timm.names()


def test_available():
    listed = dict(adapter.available())
    assert listed["timm:vit_tiny_patch16_224.augreg_in21k"] == ""
    assert "resnet" in listed["timm:resnet50.a1_in1k"]
    assert sum(not reason for reason in listed.values()) > 300
