"""Processors of transformers: the same pixels, and frames that say where they come from."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import generic_twin, limits, twin
from helpers.handmade import PICTURES
from helpers.tiny import left_as_found
from helpers.zoo import transformers as zoo
from PIL import Image

import legrad
from legrad.inputs import geometry, transforms
from legrad.models.hf import image_processors, library

SQUARE, WIDE, TALL = (48, 48), (32, 80), (72, 40)
HIGH_WIDE = {"height": 40, "width": 56}
# processor -> arguments; no means and stds, so that the ramps stay readable
PROCESSORS = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}},
    "CLIPImageProcessor wide crop": {"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 52}},
    "BitImageProcessor": {"size": {"shortest_edge": 46}, "crop_size": {"height": 40, "width": 40}},  # DINOv2
    "ChineseCLIPImageProcessor": {"size": HIGH_WIDE, "crop_size": {"height": 40, "width": 40}},
    "SiglipImageProcessor": {"size": HIGH_WIDE},
    "ViTImageProcessor": {"size": HIGH_WIDE},
    "ViTImageProcessor shortest and longest": {"size": {"shortest_edge": 40, "longest_edge": 70}},
    "CLIPImageProcessor no crop": {"size": {"shortest_edge": 40}, "do_center_crop": False},
    "DeiTImageProcessor": {"size": {"height": 46, "width": 46}, "crop_size": {"height": 41, "width": 40}},
    "BeitImageProcessor": {"size": HIGH_WIDE},
    "BlipImageProcessor": {"size": HIGH_WIDE},
    "FlavaImageProcessor": {"size": {"height": 46, "width": 46}, "crop_size": {"height": 40, "width": 40}},
    "DINOv3ViTImageProcessor": {"size": HIGH_WIDE},
    "OwlViTImageProcessor": {"size": HIGH_WIDE},
}


def kinds(names):
    """(name, backend) of the processors that this transformers has."""
    pairs = [(name, backend) for name in names for backend in ("torchvision", "pil")]
    return [(name, backend) for name, backend in pairs if hasattr(transformers, kind_of(name, backend))]


def kind_of(name, backend):
    return name.split()[0] + ("Pil" if backend == "pil" else "")


def processor(name, backend="torchvision", **changes):
    arguments = {**PROCESSORS[name], "do_normalize": False, **changes}
    return getattr(transformers, kind_of(name, backend))(**arguments)


def ramp(height, width):
    """Red grows with the column, green with the row, as steeply as they can; blue is full: zeros are padding."""
    steps = [255 // (side - 1) for side in (height, width)]
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[..., 0] = np.arange(width) * steps[1]
    pixels[..., 1] = np.arange(height)[:, None] * steps[0]
    return Image.fromarray(pixels), steps


def assert_follows(chosen, height, width):
    """Every input pixel comes from where the frame says; processors round pixels to bytes and filter bicubically."""
    frame = transforms.follow(chosen, (height, width))
    picture, steps = ramp(height, width)
    result = chosen(picture) * 255
    assert frame.input == tuple(result.shape[1:])
    assert frame.original == (height, width)
    for axis, side in enumerate((height, width)):
        source = (torch.arange(frame.input[axis]) + 0.5 - frame.offset[axis]) / frame.scale[axis]
        reach = 2 * max(1.0, 1 / frame.scale[axis])
        # along the middle of the image: filters overshoot next to black borders
        other = 1 - axis
        middle = int((height, width)[other] / 2 * frame.scale[other] + frame.offset[other])
        line = result.select(1 + other, min(max(middle, 0), frame.input[other] - 1))
        blue = line[2]
        assert (blue[(source > reach) & (source < side - reach)] > 240).all()
        assert (blue[(source < -reach) | (source > side + reach)] == 0).all()
        interior = (source > 1.5 * reach) & (source < side - 1.5 * reach)
        assert interior.any() or side < 6 * reach
        found = line[other][interior] / steps[axis] + 0.5
        assert torch.allclose(found, source[interior], rtol=0, atol=max(0.3, 1.5 / steps[axis]))
    return frame


def transform(own, size=None, fit="model", model_size=(40, 40)):
    return image_processors.transform(SimpleNamespace(image_size=model_size), own)(size, fit)


@pytest.mark.parametrize(("name", "backend"), kinds(PROCESSORS))
def test_pixels_are_the_processors_own(name, backend):
    for changes in ({}, {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}):
        own = processor(name, backend, **changes)
        for height, width in PICTURES[:5]:
            picture = Image.fromarray(np.random.randint(0, 255, (height, width, 3), dtype=np.uint8))
            want = own(images=picture, return_tensors="pt")["pixel_values"][0]
            assert torch.equal(transform(own)(picture), want)
        mean, std = transform(own).normalisation
        white = own(images=Image.new("RGB", (50, 50), "white"), return_tensors="pt")["pixel_values"][0]
        assert limits.close(white.amax((1, 2)) * std + mean, torch.ones(3))


@pytest.mark.parametrize(("name", "backend"), kinds(PROCESSORS))
def test_frames(name, backend):
    own = processor(name, backend)
    for picture in PICTURES:
        assert_follows(transform(own), *picture)


@pytest.mark.parametrize("fit", ["model", "squash", "pad"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_other_sizes_and_fits(name, fit):
    own = processor(name)
    for size in (None, SQUARE, WIDE, TALL):
        for picture in PICTURES[1:5]:
            frame = assert_follows(transform(own, size, fit), *picture)
            assert size is None or frame.input == size
            if fit != "model":
                assert geometry.seen(frame, geometry.PatchGrid((1, 1), frame.input, frame.input), picture).all()


def test_a_size_keeps_what_the_processor_cuts_off():
    own = processor("BitImageProcessor")
    for picture in PICTURES[:4]:
        plain, same = (transform(own, size).placement(picture) for size in (None, (40, 40)))
        assert np.allclose(plain.scale, same.scale, rtol=0.05)
        assert np.allclose(plain.offset, same.offset, atol=1)


def test_owlv2_puts_the_image_into_a_square():
    own = transformers.Owlv2ImageProcessor(size={"height": 40, "width": 40}, do_normalize=False)
    for picture in PICTURES[1:3]:
        frame = transform(own).placement(picture)
        longest = max(picture)
        assert frame.offset == (0, 0)
        assert frame.scale == (40 / longest, 40 / longest)
        pixels = transform(own)(ramp(*picture)[0])
        beyond = [slice(int(side * scale) + 3, None) for side, scale in zip(picture, frame.scale, strict=True)]
        assert not pixels[:, beyond[0]].any()
        assert not pixels[:, :, beyond[1]].any()


def test_unknown_processors_are_refused_in_words():
    own = transformers.ConvNextImageProcessor()
    with pytest.raises(legrad.InputError, match=r"cannot follow where ConvNextImageProcessor.*float tensor"):
        transform(own)


def test_processor_in_wrap():
    model = zoo.build("CLIPModel")
    own = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    both = transformers.CLIPProcessor(own, zoo.tokenizer())
    pictures = [Image.fromarray(np.random.randint(0, 255, (50, 70, 3), dtype=np.uint8)) for _ in range(2)]
    batch = both(images=pictures, text=["a red bus"], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**batch)
    want = (F.normalize(output.image_embeds) @ F.normalize(output.text_embeds).T).flatten()
    explanation = legrad.wrap(model, transform=both).explain(pictures, "a red bus")
    assert limits.close(explanation.scores.flatten(), want)
    assert explanation.saliency().shape == (2, 1, 50, 70)
    explainer = legrad.wrap(model, transform=own, tokenizer=zoo.tokenizer())
    assert torch.equal(explainer.explain(pictures, "a red bus").relevance, explanation.relevance)
    # the processor's batch instead of the images
    given = explainer.explain(batch, "a red bus")
    assert torch.equal(given.relevance, explanation.relevance)
    assert torch.equal(explainer.explain({"pixel_values": batch["pixel_values"]}, "a red bus").scores, given.scores)
    other = explainer.explain(pictures, "a red bus", size=(40, 24), fit="squash")
    assert other.relevance.shape == (2, 1, 5, 3)
    with pytest.raises(legrad.InputError, match=r"tensor under one of pixel_values.*got input_ids"):
        explainer.explain({"input_ids": batch["input_ids"]}, "a red bus")
    with pytest.raises(legrad.InputError, match='return_tensors="pt"'):
        explainer.explain(own(images=pictures), "a red bus")


def test_timm_wrapper_brings_its_own_transform():
    model = zoo.build("TimmWrapperForImageClassification")
    config = {
        "input_size": [3, 32, 32],
        "crop_pct": 0.9,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "interpolation": "bicubic",
    }
    own = transformers.TimmWrapperImageProcessor(pretrained_cfg=config)
    explainer = legrad.wrap(model, transform=own)
    picture = Image.fromarray(np.random.randint(0, 255, (50, 70, 3), dtype=np.uint8))
    with torch.no_grad():
        want = model(**own(picture)).logits[0, 2]
    assert limits.close(explainer.explain(picture, 2).scores[0, 0], want)
    assert explainer.explain(picture, 2, size=(40, 24), fit="pad").relevance.shape == (1, 1, 5, 3)


# -- SigLIP 2 ------------------------------------------------------------------------------------------------------

SIGLIP2 = {"patch_size": 8, "max_num_patches": 16}
SHAPES = [(64, 64), (90, 40), (30, 120)]


def pictures_of(shapes=SHAPES):
    return [Image.fromarray(np.random.randint(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]


@pytest.mark.parametrize("picture", PICTURES)
def test_siglip2_frames(picture):
    own = transformers.Siglip2ImageProcessor(**SIGLIP2, do_normalize=False)
    for size, fit in ((None, "model"), ((64, 24), "model"), ((64, 24), "squash"), ((24, 64), "pad")):
        chosen = library.naflex.transform(SimpleNamespace(image_size=(32, 32), patch_size=(8, 8)), own)(size, fit)
        frame = assert_follows(chosen, *picture)
        assert fit == "model" or frame.input == size


@pytest.mark.parametrize("backend", ["", "Pil"])
def test_siglip2_pixels_are_the_processors_own(backend):
    kind = f"Siglip2ImageProcessor{backend}"
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    own = getattr(transformers, kind)(**SIGLIP2)
    chosen = library.naflex.transform(SimpleNamespace(image_size=(32, 32), patch_size=(8, 8)), own)(None, "model")
    for picture in pictures_of():
        batch = own(images=picture, return_tensors="pt")
        rows, cols = batch["spatial_shapes"][0].tolist()
        pixels = chosen(picture)
        assert pixels.shape == (3, rows * 8, cols * 8)
        cut = [pixels[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(rows) for c in range(cols)]
        layout = torch.stack([one.permute(1, 2, 0).flatten() for one in cut])
        assert torch.equal(layout, batch["pixel_values"][0, : rows * cols])
        assert torch.equal(library.naflex.patchify(pixels[None], 8)[0], layout)


@pytest.mark.parametrize("name", ["Siglip2Model", "Siglip2ForImageClassification"])
def test_siglip2_is_its_padded_forward_without_the_padding(name):
    model = zoo.build(name).double()
    own = transformers.Siglip2ImageProcessor(**SIGLIP2)
    pictures = pictures_of()
    batch = own(images=pictures, return_tensors="pt")
    assert (batch["pixel_attention_mask"].sum(1) < 16).any()
    pixels = batch["pixel_values"].double()
    marks = {key: batch[key] for key in ("pixel_attention_mask", "spatial_shapes")}
    logits = name.endswith("Classification")
    target = 2 if logits else F.normalize(torch.randn(32, dtype=torch.float64), dim=0)

    def padded(inside, values):
        output = inside(values, **marks) if logits else inside.get_image_features(values, **marks)
        return output.logits if logits else output.pooler_output

    def score(feature):
        return feature[:, 2] if logits else feature @ target

    def anatomy_of(copied):
        facts = library.adapt(copied).anatomy
        kept = (
            "tower",
            "blocks",
            "route",
            "attention",
            "attentions",
            "explained_attentions",
            "num_prefix_keys",
            "keys_to_grid",
            "output",
            "call_settings",
        )
        return SimpleNamespace(
            **{key: getattr(facts, key) for key in kept}, grid=(16,), run=lambda values: padded(copied, values)
        )

    want = generic_twin.layer_maps(model, anatomy_of, pixels, score, "native")
    explainer = legrad.wrap(model, transform=own)
    with left_as_found(model):
        explanation = explainer.explain(pictures, target, keep_layers=True)
        same = explainer.explain({**batch, "pixel_values": pixels}, target, keep_layers=True)
    with torch.no_grad():
        feature = padded(model, pixels)
        feature = feature if logits else F.normalize(feature, dim=-1)
    # images are read and padded in float32 by the processor, so only the batch in float64 is exact
    assert limits.close(explanation.scores[:, 0], score(feature))
    assert limits.close(same.scores[:, 0], score(feature))
    assert torch.equal(explanation.relevance, same.relevance)
    assert [tuple(one) for one in explanation.grids] == [tuple(one) for one in batch["spatial_shapes"].tolist()]
    for index, (rows, cols) in enumerate(explanation.grids):
        count = rows * cols
        assert (want[index, :, count:] == 0).all()
        # averaged classifiers: a mean over the queries, of which the padded batch has more
        share = 16 / count if logits else 1
        expected = share * want[index, :, :count].reshape(-1, rows, cols)
        assert twin.distance(explanation.layer_relevance[index, 0, :, :rows, :cols], expected) < limits.FLOAT64
        assert not explanation.relevance[index, :, rows:].any()
        assert not explanation.relevance[index, :, :, cols:].any()
        alone = explainer.explain(pictures[index], target)
        assert twin.distance(alone.relevance[0, 0], explanation.relevance[index, 0, :rows, :cols]) < limits.FLOAT64
    maps = explanation.saliency()
    assert [tuple(one.shape[-2:]) for one in maps] == SHAPES


def test_siglip2_batches_that_make_no_sense():
    own = transformers.Siglip2ImageProcessor(**SIGLIP2)
    explainer = legrad.wrap(zoo.build("Siglip2Model"), transform=own)
    batch = dict(own(images=pictures_of(), return_tensors="pt"))
    with pytest.raises(legrad.InputError, match="also holds pixel_attention_mask, spatial_shapes"):
        explainer.explain({"pixel_values": batch["pixel_values"]}, torch.ones(32))
    batch["spatial_shapes"] = batch["spatial_shapes"] + 1
    with pytest.raises(legrad.InputError, match="does not fit its mask"):
        explainer.explain(batch, torch.ones(32))
    with pytest.raises(legrad.InputError, match="multiples of its 8 pixel patches"):
        explainer.explain(pictures_of(), torch.ones(32), size=30)
    other = transformers.Siglip2ImageProcessor(patch_size=16)
    with pytest.raises(legrad.InputError, match="patches of 16 pixels, the model takes"):
        legrad.wrap(zoo.build("Siglip2Model"), transform=other)


# -- folders and names ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-clip")
    model = zoo.build("CLIPModel")
    model.half().save_pretrained(path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        path
    )
    zoo.tokenizer().save_pretrained(path)
    return path


def test_a_folder(clip_folder):
    explainer = legrad.load(f"hf:{clip_folder}")
    assert repr(explainer).startswith(f"Explainer(hf:{clip_folder}")
    assert explainer.anatomy.dtype == torch.float32
    assert not explainer.model.training
    pictures = pictures_of()
    explanation = explainer.explain(pictures, ["a red bus", "two cats"])
    kind = transformers.AutoProcessor.from_pretrained(clip_folder)
    model = transformers.AutoModel.from_pretrained(clip_folder, dtype=torch.float32)
    batch = kind(images=pictures, text=["a red bus", "two cats"], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**batch)
    want = F.normalize(output.image_embeds) @ F.normalize(output.text_embeds).T
    assert limits.close(explanation.scores, want)
    half = legrad.load(f"hf:{clip_folder}", dtype=torch.bfloat16)
    assert half.anatomy.dtype == torch.bfloat16
    explanation = half.explain(pictures, ["a red bus", "two cats"])
    assert float((explanation.scores - want).abs().max()) < limits.HALF_COSINE


def test_a_classifiers_folder(tmp_path):
    model = zoo.build("DeiTForImageClassification", id2label=dict(enumerate("abcde")))
    model.save_pretrained(tmp_path)
    transformers.DeiTImageProcessor(
        size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    explanation = legrad.load(f"hf:{tmp_path}").explain(pictures_of(), [legrad.PREDICTED, "c"])
    assert explanation.labels[0][1] == "c"
    assert explanation.labels[0][0].removesuffix(" (predicted)") in set("abcde")


def test_a_timm_checkpoints_folder(tmp_path):
    config = {
        "input_size": [3, 32, 32],
        "crop_pct": 1.0,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "interpolation": "bicubic",
    }
    model = zoo.build("TimmWrapperForImageClassification", pretrained_cfg=config)
    model.save_pretrained(tmp_path)
    explainer = legrad.load(f"hf:{tmp_path}")
    picture = pictures_of()[1]
    with torch.no_grad():
        want = model(**transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture)).logits
    assert limits.close(explainer.explain(picture, [0, 1]).scores, want[:, :2])


def test_siglip2s_folder(tmp_path):
    model = zoo.build("Siglip2Model")
    model.save_pretrained(tmp_path)
    transformers.Siglip2ImageProcessor(**SIGLIP2).save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    pictures = pictures_of()
    explanation = legrad.load(f"hf:{tmp_path}").explain(pictures, ["a red bus"])
    batch = transformers.Siglip2ImageProcessor(**SIGLIP2)(images=pictures, return_tensors="pt")
    # transformers puts its own class around the words of any SigLIP 2 tokenizer
    own = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = own(["a red bus"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, **ids)
    want = F.normalize(output.image_embeds, dim=-1) @ F.normalize(output.text_embeds, dim=-1).T
    assert limits.close(explanation.scores, want)


def test_a_tower_that_was_trained_without_its_pooler(tmp_path):
    """As facebook's DINO checkpoints: transformers fills the pooler with random numbers."""
    model = transformers.ViTModel(transformers.ViTConfig(**zoo.VISION), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    explainer = legrad.load(f"hf:{tmp_path}")
    pictures, target = torch.randn(2, 3, 32, 32), torch.randn(32)
    explanation = explainer.explain(pictures, target)
    with torch.no_grad():
        feature = model(pictures).last_hidden_state[:, 0]
    assert limits.close(explainer.anatomy.run(pictures), feature)
    assert explanation.relevance.shape == (2, 1, 4, 4)


def test_weights_that_do_not_fill_the_model(tmp_path):
    zoo.build("ViTModel").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "architectures": ["ViTForImageClassification"]}))
    with pytest.raises(legrad.InputError, match=r"lack 2 parameters of ViTForImageClassification \(first: classifier"):
        legrad.load(f"hf:{tmp_path}")


def test_names_that_cannot_work(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(legrad.InputError, match=r"no folder 'nobody/nothing'.*could not load it.*without a network"):
        legrad.load("hf:nobody/nothing")
    with pytest.raises(legrad.InputError, match="could not load"):
        legrad.load(f"hf:{tmp_path}")
    config = {"model_type": "vit", "architectures": ["TheirOwnModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(legrad.InputError, match=r"no class of transformers.*TheirOwnModel.*is not run"):
        legrad.load(f"hf:{tmp_path}")
    config = {"model_type": "swin", "architectures": ["SwinForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(legrad.UnsupportedModelError, match="SwinForImageClassification attends inside shifted windows"):
        legrad.load(f"hf:{tmp_path}")
