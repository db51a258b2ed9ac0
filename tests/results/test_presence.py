"""Whether a target is there: what its definition says, and scenes with present and absent names."""

import copy
import gc
import math
import pickle

import pytest
import torch
from helpers import limits, tiny
from helpers.settings import setting

import legrad
from legrad.results import presence


@pytest.fixture(scope="module")
def embedded():
    return legrad.load("embedded")


def test_the_definition(embedded):
    scene = legrad.embedded.scene(41, 0)
    texts = [f"a photo of a {scene.names[0]}", "a photo of a violin"]
    found = embedded.explain(scene.image, texts)
    feature = embedded.predict(scene.image)[0].double()
    scale = float(embedded.model.logit_scale.detach().exp())
    rivals = [
        float(torch.exp(scale * (feature @ embedded.embed(text).embeddings[0].double()))) for text in presence.GENERIC
    ]
    for target, text in enumerate(texts):
        mine = math.exp(scale * float(feature @ embedded.embed(text).embeddings[0].double()))
        expected = mine / (mine + presence.COMPETITORS * sum(rivals) / len(rivals))
        assert float(found.presence[0, target]) == pytest.approx(expected, abs=1e-5)


def test_present_and_absent_names_are_told_apart(embedded):
    values, truth = [], []
    for index, scene in enumerate(legrad.embedded.scenes(12, seed=43, objects=(1, 3))):
        others = [name for name in legrad.embedded.NAMES[index::40] if name not in scene.names]
        found = embedded.explain(scene.image, [f"a photo of a {name}" for name in (*scene.names, *others)], layers=1)
        values += found.presence[0].tolist()
        truth += [True] * len(scene.names) + [False] * len(others)
    values, truth = torch.tensor(values), torch.tensor(truth)
    # AUROC: how often a present name stands above an absent one
    assert (values[truth][:, None] > values[~truth][None]).double().mean() > 0.95
    assert ((values > presence.ABSENT) == truth).double().mean() > 0.8


def test_of_a_classifier_it_is_the_softmax():
    torch.manual_seed(0)
    model = _classifier()
    explainer, images = legrad.wrap(model), torch.randn(3, 3, 32, 32)
    found = explainer.explain(images, [2, 0, legrad.PREDICTED])
    expected = explainer.predict(images).double().softmax(-1)
    assert limits.error(found.presence[:, :2], expected[:, [2, 0]]) < limits.FLOAT32
    assert limits.error(found.presence[:, 2], expected.amax(-1)) < limits.FLOAT32


def _classifier():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **tiny.SMALL)
    return tiny.randomised(model)


@pytest.mark.filterwarnings("ignore:.*hardly depend on the target")
def test_only_texts_and_classes_have_one(embedded):
    scene = legrad.embedded.scene(41, 0)
    text = f"a photo of a {scene.names[0]}"
    direction = embedded.embed(text).embeddings[0]
    found = embedded.explain(
        [scene.image, scene.image],
        [[text, direction], [legrad.Contrast(text, "a photo of a violin"), lambda f: f[:, 0], text]],
        layers=1,
    )
    known = ~found.presence.isnan()
    assert known.tolist() == [[True, False, False], [False, False, True]]
    assert float(found.presence[0, 0]) == pytest.approx(float(found.presence[1, 2]), abs=1e-6)


@pytest.mark.parametrize("method", ["legrad-centred", "legrad-norelu", "chefercam", "raw-attention", "random"])
def test_of_other_methods(embedded, method):
    scene = legrad.embedded.scene(41, 0)
    text = f"a photo of a {scene.names[0]}"
    found = embedded.explain(scene.image, text, method=method)
    assert float(found.presence[0, 0]) == pytest.approx(
        float(embedded.explain(scene.image, text, layers=1).presence[0, 0]), abs=1e-5
    )


def test_parts_of_an_explanation(embedded):
    scenes = [legrad.embedded.scene(41, index).image for index in range(2)]
    found = embedded.explain(scenes, ["a photo of a cow", "a photo of a bell"], layers=1)
    assert torch.equal(found[1].presence, found.presence[1:])
    assert torch.equal(found["a photo of a bell"].presence, found.presence[:, 1:])
    assert torch.equal(legrad.Explanation.cat([found[0], found[1]]).presence, found.presence)


def test_the_text_tower_runs_once(embedded, monkeypatch):
    explainer = legrad.load("embedded")
    calls = []
    embed = explainer.embed
    monkeypatch.setattr(explainer, "embed", lambda *args: calls.append(args) or embed(*args))
    for _ in range(2):
        found = explainer.explain(legrad.embedded.SAMPLE, "a photo of a cow", layers=1)
        assert not calls or len(calls) == 1
        first = found.presence
    assert len(calls) == 1
    with torch.no_grad():
        next(explainer.model.parameters()).mul_(1.0)  # written to: encoded anew
    assert torch.equal(explainer.explain(legrad.embedded.SAMPLE, "a photo of a cow", layers=1).presence, first)
    assert len(calls) == 2


def test_without_the_explainer_it_is_one_line(tmp_path):
    explainer = legrad.load("embedded")
    found = explainer.explain(legrad.embedded.SAMPLE, "a photo of a cow", layers=1)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        with pytest.raises(legrad.InputError, match="keep its explainer"):
            _ = other.presence
    found.save(tmp_path / "out")
    with pytest.raises(legrad.InputError, match="explain the image again"):
        _ = legrad.Explanation.load(tmp_path / "out").presence
    del explainer
    gc.collect()
    with pytest.raises(legrad.InputError, match="keep its explainer"):
        _ = found.presence


def test_the_temperature():
    assert presence.temperature(torch.nn.Linear(1, 1)) == 100
    model, _, _ = setting("clip")
    assert presence.temperature(model) == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)


def test_figures_grey_absent_targets_out(embedded, monkeypatch):
    monkeypatch.setattr(presence, "GREY", presence.ABSENT)
    scene = legrad.embedded.scene(41, 0)
    there, absent = f"a photo of a {scene.names[0]}", "a photo of a violin"
    found = embedded.explain(scene.image, [there, absent])
    assert [found.is_absent(0, target) for target in range(2)] == [False, True]
    for figure in (found.figure(), legrad.Explanation.cat([found, found]).contact_sheet()):
        panels = [(panel.get_title().replace("\n", " "), panel.images[0]) for panel in figure.axes if panel.images]
        for title, shown in panels:
            is_grey = title.startswith(absent)
            assert title.endswith(", probably absent") == is_grey
            assert bool(shown.get_array()[..., :3].std(-1).max() > 1) != is_grey
        assert {title.split(" cosine")[0] for title, _ in panels} >= {there, absent}
    copied = pickle.loads(pickle.dumps(found))  # nobody can be asked
    assert not copied.is_absent(0, 1)
    copied.figure()
