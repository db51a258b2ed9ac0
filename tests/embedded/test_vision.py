"""Scenes, sprites, tokenizer, training and evaluation of the embedded model."""

import hashlib
import json

import numpy as np
import pytest
import torch
from helpers import limits, twin
from helpers.pages import DOCS
from PIL import Image
from torch import nn

import legrad
from legrad.embedded import model as embedded
from legrad.embedded import rendering
from legrad.embedded.sprites import SHEET, SPRITE_SIZE, load_sprites
from legrad.embedded.tokenizer import VOCABULARY, WordTokenizer
from training import evaluate_vision, vision, warm_start

DATA = SHEET.parent
EPSILONS = 2e-3  # what the epsilons of the two models' norms make


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
    assert explainer._adapter.name == name
    made = legrad.embedded.scene(4, 0, objects=(2, 2))
    batch = embedded.normalise(torch.from_numpy(made.image)[None])
    text = explainer._adapter.encode_text(explainer._adapter.tokenize([f"a photo of a {made.names[0]}"])).detach()
    text = torch.nn.functional.normalize(text, dim=-1)[0]
    prefix = 0 if route == "pooler" else 1
    want = twin.relevance(explainer.model, batch, lambda feature: feature @ text.double(), readout, prefix, (12, 12))
    found = explainer.explain(batch, text, keep_layers=True)
    assert twin.distance(found.layer_relevance[:, 0], want) < limits.FLOAT32


@pytest.mark.parametrize("name", evaluate_vision.MODELS)
def test_shipped_models_recognise_and_localise(name):
    """A floor far below the published numbers, on few scenes: it notices a broken file, not a slightly worse one."""
    results = evaluate_vision.evaluate(legrad.load(name), 40, seed=3, progress=lambda steps, **_: steps)
    assert results["model"]["recall"][0] > 0.75
    default = next(value for name, value in results.items() if name.endswith("(default)"))
    assert default["pointing"][0] > 0.7
    assert default["swap"][0] > 0.85
    assert results["random"]["pointing"][0] < 0.3
    assert results["raw attention"]["pointing"][0] < default["pointing"][0]


def test_sample_scene():
    names = legrad.embedded.sample_names()
    assert set(names) <= set(legrad.embedded.NAMES)
    with Image.open(legrad.embedded.SAMPLE) as picture:
        assert min(picture.size) >= 192


def quick(stages, **options):
    """A recipe of a few steps without Muon, whose bfloat16 takes half a minute a step on processors that lack it."""
    return vision.Recipe(**{"stages": stages, "batch": 4, "replays": 1, "muon_rate": 0, **options})


def test_muon_moves_the_matrices_of_blocks_and_pooler():
    tiny = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 6)]), "attn_pool": nn.Linear(4, 4)})
    tiny["head"] = nn.Linear(4, 2)
    before = {name: parameter.detach().clone() for name, parameter in tiny.named_parameters()}
    adam, muon = vision.optimizers(tiny, vision.Recipe(muon_rate=0.5, weight_decay=0))
    held = [{id(p) for group in one.param_groups for p in group["params"]} for one in (adam, muon)]
    matrices = {"blocks.0.weight", "attn_pool.weight"}
    assert held[1] == {id(tiny.get_parameter(name)) for name in matrices}
    assert held[0] == {id(tiny.get_parameter(name)) for name in before.keys() - matrices}
    for parameter in tiny.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.linspace(1, 10, parameter.shape[-1])
    muon.step()
    for name, parameter in tiny.named_parameters():
        step = before[name] - parameter.detach()
        assert bool(step.any()) == (name in matrices)
        if name in matrices:  # a step of the same length in all directions, however long the gradient's are
            lengths = torch.linalg.svdvals(step) / (0.5 * 0.2 * max(step.shape) ** 0.5)
            assert 0.4 < float(lengths.min()) <= float(lengths.max()) < 1.5
    assert [type(one) for one in vision.optimizers(tiny, vision.Recipe(muon_rate=0))] == [torch.optim.AdamW]


@pytest.mark.parametrize("kind", embedded.FILES)
def test_training_can_be_interrupted_and_resumed_to_the_same_place(tmp_path, kind, monkeypatch):
    stages = (vision.Stage(64, (1, 1), 12, 96, (1.0, 0.5)), vision.Stage(80, (1, 2), 4, 96, (0.5, 0.0)))
    recipe, lines = quick(stages, kind=kind), []
    device, loss_of = torch.device("cpu"), vision.loss_of
    whole = vision.train(tmp_path / "whole", recipe, device, workers=0, log=lines.append, validation=4)
    calls = iter(range(3))

    class Interrupted(Exception):
        pass

    def interrupted(*arguments):
        if next(calls) == 2:
            raise Interrupted
        return loss_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(vision, "loss_of", interrupted)
        with pytest.raises(Interrupted):
            vision.train(tmp_path / "parts", recipe, device, workers=0, log=lines.append, save_every=0, validation=4)
    resumed = vision.train(tmp_path / "parts", recipe, device, workers=0, log=lines.append, validation=4)
    assert "resumed at stage 0, step 2" in lines
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert limits.close(a, b)
    assert resumed.visual.image_size == (80, 80)


@pytest.mark.parametrize("steps", [3, 4])
def test_training_resumed_after_any_number_of_steps_ends(tmp_path, steps):
    recipe = quick((vision.Stage(64, (1, 1), 24, 96, (1.0, 0.0)),), replays=2)
    batches = iter(range(recipe.stages[0].pictures // recipe.batch))

    class Interrupted(Exception):
        pass

    def replace_loss(*arguments):
        if next(batches) == steps:
            raise Interrupted
        return loss_of(*arguments)

    loss_of = vision.loss_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "loss_of", replace_loss)
        with pytest.raises(Interrupted):
            vision.train(tmp_path, recipe, torch.device("cpu"), 0, lambda _: None, save_every=0, validation=4)
    lines = []
    vision.train(tmp_path, recipe, torch.device("cpu"), 0, lines.append, validation=4)
    assert lines[0] == f"resumed at stage 0, step {steps}"
    assert lines[-1].startswith("stage 0 done")


def test_training_can_start_at_a_later_stage(tmp_path):
    stages = (vision.Stage(96, (1, 1), 16, 160, (1.0, 0.5)), vision.Stage(64, (1, 2), 8, 160, (0.5, 0.0)))
    recipe, lines = quick(stages), []
    model = vision.train(tmp_path, recipe, torch.device("cpu"), 0, lines.append, validation=4, first_stage=1)
    assert model.visual.image_size == (64, 64)
    assert [line.split(":")[0] for line in lines] == ["stage 1 done"]


def test_training_can_start_from_other_weights(tmp_path):
    recipe = quick((vision.Stage(192, (1, 1), 4, 192, (0.0, 0.0)),))
    shipped, _ = embedded.load()
    model = vision.train(
        tmp_path, recipe, torch.device("cpu"), workers=0, log=lambda _: None, validation=4, initial=embedded.WEIGHTS
    )
    for a, b in zip(shipped.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)  # a learning rate of zero


def test_the_sibling_starts_as_the_class_tokens_path():
    """Copied blocks give the same tokens, and the pooler, whole, what the last block makes of the class token."""
    from timm.layers import AttentionPoolLatent, LayerNorm

    source, _ = embedded.load()
    pictures = torch.rand(1, 3, 192, 192)
    model = warm_start.warm_start(source, pictures).eval()
    blocks, trunk = source.visual.transformer.resblocks, model.visual.trunk
    tokens = torch.randn(1, 145, 256)
    with torch.no_grad():
        for new, old in zip(trunk.blocks, blocks, strict=True):
            assert torch.allclose(new(tokens), old(tokens), atol=EPSILONS)
        pool = AttentionPoolLatent(256, num_heads=4, mlp_ratio=4, norm_layer=LayerNorm)
        warm_start._copy_class_token_path(pool, blocks[-1], tokens[0, 0])
        assert torch.allclose(pool(trunk.norm(tokens)), blocks[-1](tokens)[:, 0], atol=EPSILONS)
        ids = torch.tensor([[5, 7, source.vocab_size - 1] + [0] * 29])
        assert torch.equal(model.encode_text(ids), source.encode_text(ids))
        patches = source.visual._embeds(pictures)[:, 1:]
        assert torch.allclose(trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pictures))), patches, atol=EPSILONS)


def test_head_only_stage_trains_nothing_in_front_of_the_head(tmp_path):
    recipe = quick((vision.Stage(192, (1, 1), 8, 192, (1.0, 0.0), head_only=True),), kind="map")
    begin = vision.start(recipe, embedded.WEIGHTS, 192)
    model = vision.train(tmp_path, recipe, torch.device("cpu"), 0, lambda _: None, 1, 4, initial=embedded.WEIGHTS)
    same = [name for name, p in begin.named_parameters() if torch.equal(p, model.get_parameter(name))]
    changed = {name for name, _ in begin.named_parameters()} - set(same)
    assert "visual.trunk.attn_pool.latent" in changed
    assert "visual.head.proj.weight" in changed
    assert not any(".blocks." in name or "text." in name or "embed" in name for name in changed)


def test_images_of_another_size_keep_the_siblings_weights():
    model, _ = embedded.load(embedded.MAP_WEIGHTS)
    small = embedded.at_size(model, 128)
    assert small.visual.image_size == (128, 128)
    assert small.visual.trunk.pos_embed.shape == (1, 64, 256)
    again = embedded.at_size(small, 192)
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b) == (name != "visual.trunk.pos_embed")


def test_training_never_sees_where_objects_are():
    recipe = vision.Recipe()
    pictures, labels = vision.Batches(vision.Stage(64, (1, 3), 8, 64, (1.0, 0.0)), 4, recipe.seed, 0, 1)[0]
    assert pictures.shape == (4, 64, 64, 3)
    assert labels.shape == (4, 200)  # names, nothing else
    assert set(labels.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", embedded.FILES)
def test_trimmed_text_features_equal_the_models_own(kind):
    model, tokenizer = embedded.load(embedded.FILES[kind])
    tokens = tokenizer(vision.prompts(__import__("random").Random(0))[:20])
    with torch.no_grad():
        assert limits.close(vision.text_features(model, tokens), model.encode_text(tokens))


def test_evaluation_by_hand():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, :2] = True
    masks[1, 3, 2:] = True
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = 1.0  # in its mask
    maps[1, 0, 1] = 1.0  # in the other's mask
    assert evaluate_vision.points(maps, masks) == (1, 2)
    assert evaluate_vision.swaps(maps, masks) == (1, 2)
    similarity = torch.zeros(200)
    similarity[[0, 5]] = 1
    assert evaluate_vision.recall_at_k(similarity, (legrad.embedded.NAMES[0], legrad.embedded.NAMES[7])) == (1, 2)
    assert evaluate_vision.interval([1, 1, 1], [1, 1, 1]) == (1, 1, 1)
    value, low, high = evaluate_vision.interval([1, 0] * 200, [1] * 400)
    assert value == 0.5
    assert 0.44 < low < 0.46
    assert 0.54 < high < 0.56
    with pytest.raises(legrad.InputError, match="trained on"):
        evaluate_vision.evaluate(legrad.load("embedded"), 1, legrad.embedded.TRAINING_SEEDS[0])
    with pytest.raises(legrad.InputError, match="trained on"):  # localisation uses the next seed
        evaluate_vision.evaluate(legrad.load("embedded"), 1, legrad.embedded.TRAINING_SEEDS[0] - 1)


def test_raw_attention_of_the_pooler_is_the_one_that_ran(monkeypatch):
    import torch.nn.functional as F

    explainer = legrad.load("embedded:map")
    images = torch.randn(2, 3, 192, 192)
    ran, attend = [], F.scaled_dot_product_attention

    def record(q, k, v, **options):
        ran.append((q, k))
        return attend(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    found = evaluate_vision._raw_attention(explainer, images)
    q, k = ran[-1]
    assert q.shape == (2, 4, 1, 64)
    want = (q @ k.mT / 8).softmax(-1).mean(1).reshape(2, 12, 12)
    assert limits.close(found, want)
    assert found.shape == (2, 12, 12)


@pytest.mark.parametrize("name", evaluate_vision.MODELS)
def test_published_page_is_made_of_the_published_numbers(name):
    weights, page = evaluate_vision.MODELS[name]
    content = json.loads((DOCS / page).read_text(encoding="utf-8"))
    assert content["model"] == name
    assert content["scenes"] == 2000
    assert content["card"] == embedded.card(weights)
    assert (DOCS / page).with_suffix(".md").read_text(encoding="utf-8") == evaluate_vision.markdown(content)


def test_evaluation_of_an_unknown_model(script):
    done = script("training.evaluate_vision", "--model", "embedded:x")
    assert done.returncode == 2
    assert "unknown model" in done.stderr


@pytest.mark.parametrize("module", ["vision", "evaluate_vision"])
def test_scripts_have_help(module, script):
    done = script(f"training.{module}", "--help")
    assert done.returncode == 0
    assert "--device" in done.stdout
