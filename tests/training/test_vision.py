"""Training and evaluation of the embedded image-text models."""

import json

import pytest
import torch
from helpers import limits
from helpers.pages import DOCS
from torch import nn

import legrad
from legrad.embedded import model as embedded
from training import evaluate_vision, vision, warm_start

EPSILONS = 2e-3  # what the epsilons of the two models' norms make


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


def test_a_complete_run_can_be_resumed(tmp_path):
    """Training may be stopped after its last checkpoint and before the weights are written."""
    recipe, lines = quick((vision.Stage(64, (1, 1), 4, 96, (1.0, 0.0)),)), []
    model = vision.train(tmp_path, recipe, torch.device("cpu"), 0, lines.append, validation=4)
    again = vision.train(tmp_path, recipe, torch.device("cpu"), 0, lines.append, validation=4)
    assert lines[-1] == "resumed at stage 1, step 1"
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
