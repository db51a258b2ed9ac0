"""The pass against the slow twin: every tower, both routes, all read-outs and kinds of targets."""

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from helpers.settings import PREFIX, setting, side

import legrad

POOLED = {"coca", "siglip", "siglip2", "pe-core"}
CLASS_TOKEN = {"clip", "clip-quickgelu", "clip-layerscale", "clip-no-ln-pre", "clip-custom-blocks"} | {
    "eva02-clip",
    "mobileclip-b",
    "vit-token-registers",
}


def expected(model, name, images, embeddings, readout, grid=(4, 4)):
    maps = [twin.relevance(model, images, lambda f, e=e: f @ e, readout, PREFIX.get(name, 1), grid) for e in embeddings]
    return torch.stack(maps, 1)


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", tiny.TOWERS)
def test_every_tower_and_readout(name, readout):
    model, images, embeddings = setting(name)
    want = expected(model, name, images, embeddings, readout)
    found = legrad.wrap(model).explain(images, embeddings, readout=readout, keep_layers=True)
    assert twin.distance(found.layer_relevance, want) < limits.FLOAT32
    assert twin.distance(found.relevance, want.mean(2)) < limits.FLOAT32
    exact = legrad.wrap(model.double()).explain(images.double(), embeddings, readout=readout, keep_layers=True)
    assert exact.relevance.dtype == torch.float64
    assert twin.distance(exact.layer_relevance, want) < limits.FLOAT64


@pytest.mark.parametrize("name", tiny.TOWERS)
def test_auto_is_published_for_class_token_models_only(name):
    model, images, embeddings = setting(name, images=1)
    explainer = legrad.wrap(model)
    readout = "published" if name in CLASS_TOKEN else "native"
    auto = explainer.explain(images, embeddings)
    named = explainer.explain(images, embeddings, readout=readout)
    other = explainer.explain(images, embeddings, readout={"native": "published", "published": "native"}[readout])
    assert auto.settings["readout"] == readout
    assert torch.equal(auto.relevance, named.relevance)
    if name == "vitamin":  # averages all tokens, then normalises: the published read-out is its own
        assert twin.distance(other.relevance, named.relevance) < limits.FLOAT32
    else:
        assert twin.distance(other.relevance, named.relevance) > limits.DIFFERENT
    assert (explainer.anatomy.route == "pooler") == (name in POOLED)


@pytest.mark.parametrize("name", ["clip", "clipa", "coca", "siglip", "eva02-clip", "pe-core", "vit-registers"])
def test_scores_are_the_models_own_answer(name):
    model, images, embeddings = setting(name)
    found = legrad.wrap(model).explain(images, embeddings, readout="published")
    with torch.no_grad():
        feature = model.visual(images)
        feature = F.normalize(feature[0] if isinstance(feature, tuple) else feature, dim=-1)
    assert limits.close(found.scores, feature @ embeddings.float().T)


def test_text_targets_go_through_the_text_tower():
    model, images, _ = setting("clip")
    explainer = legrad.wrap(model, tokenizer=tiny.tokenizer)
    texts = ["cat", "a longer one"]
    with torch.no_grad():
        embeddings = F.normalize(model.encode_text(tiny.tokenizer(texts)), dim=-1)
    found, same = explainer.explain(images, texts), explainer.explain(images, embeddings)
    assert twin.distance(found.relevance, same.relevance) < limits.FLOAT32
    assert found.labels == [texts, texts]


def test_prompts_average_normalised_embeddings():
    model, images, _ = setting("clip")
    explainer = legrad.wrap(model, tokenizer=tiny.tokenizer)
    with torch.no_grad():
        parts = F.normalize(model.encode_text(tiny.tokenizer(["a cat", "cat!"])), dim=-1)
    found = explainer.explain(images, legrad.Prompts("cat", ["a {}", "{}!"]))
    same = explainer.explain(images, parts.mean(0))
    assert twin.distance(found.relevance, same.relevance) < limits.FLOAT32
    assert found.labels == [["cat"], ["cat"]]


def test_zero_shot_takes_the_best_name_of_every_image():
    model, _, _ = setting("clip")
    images = 3 * torch.randn(16, 3, 1, 1) + torch.randn(16, 3, 32, 32)
    explainer = legrad.wrap(model, tokenizer=tiny.tokenizer)
    names = ["cat", "dog", "zebra", "x"]
    with torch.no_grad():
        classes = F.normalize(model.encode_text(tiny.tokenizer([f"a {n}" for n in names])), dim=-1)
        best = (F.normalize(model.visual(images), dim=-1) @ classes.T).argmax(1)
    assert len(best.unique()) > 1
    found = explainer.explain(images, legrad.ZeroShot(names, ["a {}"]))
    assert found.labels == [[names[i]] for i in best]
    for row, index in enumerate(best):
        own = explainer.explain(images[row : row + 1], f"a {names[index]}")
        assert twin.distance(found.relevance[row], own.relevance[0]) < limits.FLOAT32


def test_similar_uses_the_other_images_feature():
    model, images, _ = setting("clip")
    other = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        feature = model.visual(other)[0]
    explainer = legrad.wrap(model)
    found, same = explainer.explain(images, legrad.Similar(other)), explainer.explain(images, feature)
    assert twin.distance(found.relevance, same.relevance) < limits.FLOAT32


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_contrast_explains_the_difference_of_two_scores(name):
    model, images, embeddings = setting(name)
    explainer = legrad.wrap(model)
    readout = explainer.anatomy.default_readout
    want = twin.relevance(
        model, images, lambda f: f @ embeddings[0] - f @ embeddings[1], readout, PREFIX.get(name, 1), (4, 4)
    )
    found = explainer.explain(images, legrad.Contrast(embeddings[0], embeddings[1]), keep_layers=True)
    assert twin.distance(found.layer_relevance[:, 0], want) < limits.FLOAT32
    pair = explainer.explain(images, embeddings)
    assert limits.close(found.scores[:, 0], pair.scores[:, 0] - pair.scores[:, 1], of=pair.scores)


@pytest.mark.parametrize("name", ["clip", "coca", "siglip"])
def test_callable_targets(name):
    model, images, embeddings = setting(name)

    def odd(feature):
        return (feature @ embeddings[0].to(feature)).exp() + feature[:, 3].square()

    explainer = legrad.wrap(model)
    want = twin.relevance(model, images, odd, "native", PREFIX.get(name, 1), (4, 4))
    found = explainer.explain(images, odd, readout="native", keep_layers=True)
    assert twin.distance(found.layer_relevance[:, 0], want) < limits.FLOAT32
    assert found.labels[0] == ["odd"]
    mixed = explainer.explain(images, legrad.Contrast(odd, embeddings[1]), readout="native")
    other = twin.relevance(
        model, images, lambda f: odd(f) - f @ embeddings[1], "native", PREFIX.get(name, 1), (4, 4)
    ).mean(1)
    assert twin.distance(mixed.relevance[:, 0], other) < limits.FLOAT32


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_null_target_zeroes_what_lights_up_for_nothing(name):
    model, images, embeddings = setting(name, targets=3)
    explainer = legrad.wrap(model)
    plain = explainer.explain(images, embeddings)
    null = plain.relevance[:, 2:]
    low, high = null.amin((-2, -1), keepdim=True), null.amax((-2, -1), keepdim=True)
    lit = (null - low) / (high - low) > 0.6
    found = explainer.explain(images, embeddings[:2], null_target=embeddings[2], null_threshold=0.6, keep_layers=True)
    assert bool(lit.any())
    assert not bool(lit.all())
    assert limits.close(found.relevance, plain.relevance[:, :2].masked_fill(lit, 0), maps=True)
    assert twin.distance(found.layer_relevance.mean(2), plain.relevance[:, :2]) < limits.FLOAT32  # stays uncorrected


@pytest.mark.parametrize("name", tiny.TOWERS)
@pytest.mark.parametrize("cells", [(6, 6), (3, 7), (8, 2)])
def test_other_sizes_against_the_twin_of_a_resampled_model(name, cells):
    """8 x 2 cells are as many as the 4 x 4 of the model: positions must be resampled all the same."""
    model, _, embeddings = setting(name)
    size = tuple(count * side(name) // 4 for count in cells)
    images = torch.randn(2, 3, *size)
    with tiny.left_as_found(model):
        found = legrad.wrap(model).explain(images, embeddings, keep_layers=True)
    resampled = resample(model, size, cells)
    readout = found.settings["readout"]
    want = expected(resampled, name, images, embeddings, readout, cells)
    assert found.relevance.shape[-2:] == cells
    assert twin.distance(found.layer_relevance, want) < limits.FLOAT32


def resample(model, size, grid):
    """The same weights for another size by the libraries' own means, in a separate copy."""
    import copy

    from timm.layers import resample_abs_pos_embed

    model = copy.deepcopy(model)
    tower = model.visual
    if hasattr(tower, "trunk"):
        tower.trunk.set_input_size(img_size=size)
    else:
        positions = tower.positional_embedding[None]
        tower.positional_embedding = torch.nn.Parameter(resample_abs_pos_embed(positions, grid, (4, 4))[0])
    return model


def test_layers_choose_blocks():
    model, images, embeddings = setting("clip")
    explainer = legrad.wrap(model)
    every = explainer.explain(images, embeddings, keep_layers=True)
    assert every.layers == (0, 1, 2, 3)
    for layers, want in [(1, (3,)), (3, (1, 2, 3)), ([0, -1], (0, 3)), ([2], (2,)), ((-1, 1), (1, 3))]:
        some = explainer.explain(images, embeddings, layers=layers, keep_layers=True)
        assert some.layers == want
        assert limits.close(some.layer_relevance, every.layer_relevance[:, :, list(want)], maps=True)
        assert limits.close(some.relevance, every.layer_relevance[:, :, list(want)].mean(2), maps=True)
        assert limits.close(some.scores, every.scores)


@pytest.mark.parametrize("layers", [0, -2, 5, [4], [-5], [1, 1], [3, -1], [], True, "x", 1.5])
def test_wrong_layers_are_refused_and_the_message_names_the_sequence_form(layers):
    with pytest.raises(legrad.InputError, match="sequence of indices"):
        legrad.wrap(tiny.clip()).explain(torch.randn(1, 3, 32, 32), torch.randn(32), layers=layers)


def test_a_size_that_is_no_multiple_of_the_patch_leaves_a_rest_unseen():
    model, _, embeddings = setting("clip")
    found = legrad.wrap(model).explain(torch.randn(1, 3, 37, 50), embeddings)
    assert found.relevance.shape[-2:] == (4, 6)
    assert bool(found.seen[0, :32, :48].all())
    assert not found.seen[0, 32:].any()
    assert not found.seen[0, :, 48:].any()


def test_a_convolutional_stem_asks_for_whole_patches():
    with pytest.raises(legrad.InputError, match="multiples of"):
        legrad.wrap(tiny.TOWERS["vitamin"]()).explain(torch.randn(1, 3, 70, 64), torch.randn(32))


def test_a_trunk_that_was_resized_behind_open_clips_back():
    model = tiny.TOWERS["siglip"]()
    model.visual.trunk.set_input_size(img_size=48)
    found = legrad.wrap(model).explain(torch.randn(1, 3, 48, 48), torch.randn(32))
    assert found.relevance.shape == (1, 1, 6, 6)
