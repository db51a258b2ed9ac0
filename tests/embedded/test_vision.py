"""The embedded image-text models: scenes, tokenizer and weights."""

import hashlib

import numpy as np
import pytest
import torch
from helpers import limits, twin
from PIL import Image

import legrad
from legrad.embedded import model as embedded
from legrad.embedded import rendering
from legrad.embedded.sprites import SHEET, SPRITE_SIZE, load_sprites
from legrad.embedded.tokenizer import VOCABULARY, WordTokenizer

DATA = SHEET.parent


def test_sizes_of_what_is_shipped():
    assert SHEET.stat().st_size <= 3_000_000
    assert all(path.stat().st_size <= 12_000_000 for path in embedded.FILES.values())
    assert {path.name for path in (DATA / "licenses").iterdir()} == {"Apache-2.0.txt", "OFL-1.1.txt", "NOTICE.txt"}


def test_two_hundred_distinct_concepts_with_sprites():
    names = legrad.embedded.NAMES
    assert len(names) == len(set(names)) == 200
    assert all(name == name.lower() and name.replace(" ", "").isalpha() for name in names)
    sprites = load_sprites()
    assert len(sprites) == 200
    pixels = [np.asarray(sprite) for sprite in sprites]
    assert all(p.shape == (SPRITE_SIZE, SPRITE_SIZE, 4) for p in pixels)
    assert all((p[..., 3] > 127).mean() > 0.1 for p in pixels)
    assert len({p.tobytes() for p in pixels}) == 200


def test_scenes_are_as_promised():
    counts = set()
    for made in legrad.embedded.scenes(60, seed=5):
        assert made.image.shape == (192, 192, 3)
        assert made.image.dtype == np.uint8
        assert made.masks.dtype == np.bool_
        assert made.masks.shape == (len(made.names), 192, 192)
        assert len(set(made.names)) == len(made.names)
        assert set(made.names) <= set(legrad.embedded.NAMES)
        assert int(made.masks.sum(0).max()) == 1, "masks overlap"
        assert all(mask.sum() > 100 for mask in made.masks)
        counts.add(len(made.names))
    assert counts == {1, 2, 3, 4}


def test_objects_are_everywhere_on_the_canvas():
    covered = sum(made.masks.any(0).astype(int) for made in legrad.embedded.scenes(120, seed=6))
    corners = [covered[:24, :24], covered[:24, -24:], covered[-24:, :24], covered[-24:, -24:]]
    assert all(corner.max() > 0 for corner in corners)
    assert (covered > 0).mean() > 0.98


@pytest.fixture
def placements(monkeypatch):
    """What was pasted: concept -> the last, that is the accepted, result of ``_place``."""
    found = {}
    original = rendering._place

    def record(rng, concept, *arguments):
        found[legrad.embedded.NAMES[concept]] = original(rng, concept, *arguments)
        return found[legrad.embedded.NAMES[concept]]

    monkeypatch.setattr(rendering, "_place", record)
    return found


def test_masks_hold_the_pixels_of_their_own_sprite(placements):
    """Up to one exposure per scene and a little grain, the image inside a mask is the pasted sprite."""
    for index in range(20):
        made = legrad.embedded.scene(5, index, objects=(2, 4))
        for name, mask in zip(made.names, made.masks, strict=True):
            rgb, alpha, window, _ = placements[name]
            outside = mask.copy()
            outside[window] = False
            assert not outside.any()
            solid = mask[window] & (alpha > 0.99)
            pixels, sprite = made.image[window][solid].astype(float), rgb[solid].astype(float)
            exposure = (pixels * sprite).sum() / (sprite**2).sum()
            assert 0.75 < exposure < 1.2
            assert np.abs(pixels - np.clip(exposure * sprite, 0, 255)).mean() < 15, name


def test_each_object_keeps_half_of_its_area(placements):
    """Overlap and the border of the canvas included."""
    shares = []
    for index in range(40):
        made = legrad.embedded.scene(12, index, objects=(4, 4))
        assert len(made.names) == 4
        shares += [mask.sum() / placements[name][3] for name, mask in zip(made.names, made.masks, strict=True)]
    assert min(shares) >= 0.5
    assert min(shares) < 0.7, "nothing overlaps"


def test_scenes_are_deterministic_in_the_seed_and_independent_of_the_slice():
    first = list(legrad.embedded.scenes(4, seed=9))
    again = list(legrad.embedded.scenes(2, seed=9, start=2))
    for a, b in zip(first[2:], again, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.masks, b.masks)
        assert a.names == b.names
    other = next(legrad.embedded.scenes(1, seed=10))
    assert not np.array_equal(first[0].image, other.image)
    digest = hashlib.sha256(str([made.names for made in first]).encode()).hexdigest()
    assert digest[:12] == NAMES_DIGEST, "the stream of scenes changed: published numbers no longer hold"


NAMES_DIGEST = "7e58ef86bbbe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "negative"),
        ({"n": 1, "size": 8}, "size >= 32"),
        ({"n": 1, "objects": (0, 2)}, "objects"),
        ({"n": 1, "objects": (3, 2)}, "objects"),
        ({"n": 1, "objects": (1, 9)}, "objects"),
    ],
)
def test_wrong_scene_arguments(arguments, message):
    with pytest.raises(legrad.InputError, match=message):
        legrad.embedded.scenes(**arguments)


@pytest.mark.parametrize("size", [64, 128, 384])
def test_scenes_of_other_sizes(size):
    made = next(legrad.embedded.scenes(1, size=size, objects=(2, 2)))
    assert made.image.shape == (size, size, 3)
    assert made.masks.shape == (2, size, size)


def test_tokenizer_accepts_any_text():
    tokenizer = WordTokenizer.shipped()
    texts = ["a photo of a dog", "", "Ünïcödé 中文 🎈", "x" * 500, "dogs", "A PHOTO, of a dog!"]
    ids = tokenizer(texts)
    assert ids.shape == (6, 32)
    assert ids.dtype == torch.int64
    assert int(ids.max()) == tokenizer.eot_token_id == tokenizer.vocab_size - 1
    assert (ids == tokenizer.eot_token_id).sum(1).tolist() == [1] * 6
    assert (ids[:, 0] == tokenizer.sot_token_id).all()
    assert tokenizer.encode("dogs") == [*tokenizer.encode("dog"), *tokenizer.encode("s")]
    assert tokenizer.encode("hot air balloon") != tokenizer.encode("balloon")
    assert torch.equal(tokenizer("dog"), tokenizer(["dog"]))
    assert tokenizer("dog", context_length=5).shape == (1, 5)
    assert all(len(tokenizer.encode(word)) == 1 for word in VOCABULARY.read_text(encoding="utf-8").split())


def test_shipped_model_is_a_genuine_small_clip_with_a_card():
    import open_clip

    model, tokenizer = embedded.load()
    assert type(model) is open_clip.CLIP
    assert model.visual.grid_size >= (12, 12)
    parameters = sum(p.numel() for p in model.parameters())
    assert 3e6 <= parameters <= 6e6
    assert model.token_embedding.num_embeddings == tokenizer.vocab_size


def test_shipped_sibling_is_a_genuine_clip_with_a_map_head():
    import open_clip
    from timm.layers import AttentionPoolLatent
    from timm.models import VisionTransformer

    model, tokenizer = embedded.load(embedded.MAP_WEIGHTS)
    assert type(model) is open_clip.CustomTextCLIP
    trunk = model.visual.trunk
    assert type(trunk) is VisionTransformer
    assert type(trunk.attn_pool) is AttentionPoolLatent
    assert trunk.num_prefix_tokens == 0
    sizes = {"layers": len(trunk.blocks), "width": trunk.embed_dim, "patch_size": trunk.patch_embed.patch_size[0]}
    assert sizes == {name: embedded.VISION[name] for name in sizes}
    assert trunk.embed_dim // trunk.blocks[0].attn.num_heads == embedded.VISION["head_width"]
    assert model.visual.image_size == trunk.patch_embed.img_size == (embedded.IMAGE_SIZE,) * 2
    assert model.text.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("kind", embedded.FILES)
def test_cards(kind):
    card = embedded.card(embedded.FILES[kind])
    assert {"data", "recipe", "steps", "pictures", "seconds", "machine", "held_out_recall_at_k"} <= set(card)
    seeds = range(card["recipe"]["seed"], card["recipe"]["seed"] + len(card["recipe"]["stages"]))
    assert set(seeds) <= set(legrad.embedded.TRAINING_SEEDS)
    if kind == "map":
        assert "model.safetensors" in card["start"]
        assert card["kind"] == card["recipe"]["kind"] == kind


@pytest.mark.parametrize(
    ("name", "route", "readout"), [("embedded", "self-attention", "published"), ("embedded:map", "pooler", "native")]
)
def test_shipped_models_are_exact(name, route, readout):
    """Trained weights, a real scene: the default maps against the slow twin."""
    explainer = legrad.load(name)
    anatomy = explainer.anatomy
    assert (anatomy.route, anatomy.default_readout, anatomy.grid) == (route, readout, (12, 12))
    assert explainer.adapter.name == name
    made = legrad.embedded.scene(4, 0, objects=(2, 2))
    batch = embedded.normalise(torch.from_numpy(made.image)[None])
    text = explainer.adapter.encode_text(explainer.adapter.tokenize([f"a photo of a {made.names[0]}"])).detach()
    text = torch.nn.functional.normalize(text, dim=-1)[0]
    prefix = 0 if route == "pooler" else 1
    want = twin.relevance(explainer.model, batch, lambda feature: feature @ text.double(), readout, prefix, (12, 12))
    found = explainer.explain(batch, text, keep_layers=True)
    assert twin.distance(found.layer_relevance[:, 0], want) < limits.FLOAT32


def test_sample_scene():
    names = legrad.embedded.sample_names()
    assert set(names) <= set(legrad.embedded.NAMES)
    with Image.open(legrad.embedded.SAMPLE) as image:
        assert min(image.size) >= 192


def test_images_of_another_size_keep_the_siblings_weights():
    model, _ = embedded.load(embedded.MAP_WEIGHTS)
    small = embedded.at_size(model, 128)
    assert small.visual.image_size == (128, 128)
    assert small.visual.trunk.pos_embed.shape == (1, 64, 256)
    again = embedded.at_size(small, 192)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b) == (name != "visual.trunk.pos_embed")
