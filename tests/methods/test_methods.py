"""Every method against its slow twin, on a class-token, an attention-pooled and an averaged model; and what all of them
promise."""

import math
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, methods_twin, tiny, twin
from helpers.pages import DOCS, snippets
from torch import nn

import legrad
from legrad.core import attention, state
from legrad.core.score import one_hot
from legrad.methods import METHODS, black_box, registry
from legrad.methods.call import MethodInput
from legrad.methods.whole_pass import forward
from legrad.metrics import own as own_metrics


def averaged():
    """A timm classifier whose head averages patches that are normalised already."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", fc_norm=False, num_classes=5, **tiny.SMALL)
    return tiny.randomised(model)


KINDS = {
    "token": (tiny.clip, methods_twin.of_open_clip),
    "map": (tiny.TOWERS["siglip"], methods_twin.of_siglip),
    "average": (averaged, methods_twin.of_timm),
}
FEW = 16  # masks


@pytest.fixture(autouse=True)
def _few_masks(monkeypatch):
    """Nothing that is tested here depends on how many masks there are."""
    rise = replace(METHODS["rise"], function=partial(black_box.rise, masks=FEW))
    monkeypatch.setitem(METHODS, "rise", rise)


TARGETED = [name for name, method in METHODS.items() if method.targets]


def setting(kind, images=2, dtype=torch.float64):
    model = KINDS[kind][0]().to(dtype)
    features = 5 if kind == "average" else 32
    targets = torch.randn(2, features, dtype=torch.float64)
    targets = targets if kind == "average" else F.normalize(targets, dim=-1)
    return model, 2 * torch.randn(images, 3, 32, 32, dtype=dtype), targets


def asked(kind, targets):
    """Targets as explain takes them: embeddings, or functions of logits."""
    return [lambda f, t=t: f @ t.to(f) for t in targets] if kind == "average" else targets


def explained(explainer, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tiny random models: maps look alike, or are flat
        return explainer.explain(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", methods_twin.METHODS)
def test_every_method_equals_its_twin(name, kind):
    model, images, targets = setting(kind)
    described = KINDS[kind][1](model)
    found = explained(legrad.wrap(model), images, asked(kind, targets), method=name)
    zeros = 0
    for image in range(2):
        for target in range(2):
            want = methods_twin.METHODS[name](described, images[image], targets[target])
            if not bool(want.any()):  # the positive part of nothing positive
                zeros += 1
                assert not bool(found.relevance[image, target].any())
                continue
            assert twin.distance(found.relevance[image, target], want) < limits.FLOAT64
    assert zeros < (5 if name == "attentioncam" else 1)


def test_the_twin_of_attention_cam_is_not_always_zero():
    """Of 3 x 4 maps above at least some have positive evidence."""
    lit = 0
    for kind in KINDS:
        model, images, targets = setting(kind)
        found = explained(legrad.wrap(model), images, asked(kind, targets), method="attentioncam")
        lit += int(found.relevance.flatten(2).any(-1).sum())
    assert lit >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_models_own(kind):
    model, images, targets = setting(kind)
    described = KINDS[kind][1](model)
    want = [[methods_twin.forward(described, one, target)[1].item() for target in targets] for one in images]
    for name in METHODS:
        found = explained(legrad.wrap(model), images, asked(kind, targets), method=name)
        assert limits.close(found.scores, torch.tensor(want, dtype=torch.float64)), name


# -- public implementations -----------------------------------------------------------------------------------------


def test_occlusion_equals_captum():
    from captum.attr import Occlusion

    model, images, targets = setting("token", dtype=torch.float32)

    def score(pixels):
        return F.normalize(model.visual(pixels), dim=-1) @ targets[0].float()

    explainer = legrad.wrap(model)
    for window in (1, 2):
        method = replace(METHODS["occlusion"], function=partial(black_box.occlusion, window=window))
        found = explainer.explain(images, targets[0], method=method).relevance[:, 0]
        side = 8 * window
        with torch.no_grad():
            want = Occlusion(score).attribute(images, (3, side, side), strides=(3, 8, 8), baselines=0)
        assert limits.close(found, want[:, 0, ::8, ::8])


class Tokens(nn.Module):
    """The scores of a CLIP, with the patches that enter its last block laid out as feature maps at ``spot``."""

    def __init__(self, visual, targets):
        super().__init__()
        self.visual, self.targets, self.spot = visual, targets, nn.Identity()

    def forward(self, images):
        v = self.visual
        tokens = v.conv1(images).flatten(2).mT
        tokens = torch.cat([v.class_embedding.expand(len(images), 1, -1), tokens], 1) + v.positional_embedding
        tokens = v.ln_pre(tokens)
        for block in v.transformer.resblocks[:-1]:
            tokens = block(tokens)
        maps = self.spot(tokens[:, 1:].mT.unflatten(-1, (4, 4)))
        tokens = v.transformer.resblocks[-1](torch.cat([tokens[:, :1], maps.flatten(2).mT], 1))
        return F.normalize(v.ln_post(tokens[:, 0]) @ v.proj, dim=-1) @ self.targets.T


def test_gradcam_equals_captum():
    from captum.attr import LayerGradCam

    model, images, targets = setting("token")
    found = legrad.wrap(model).explain(images, targets, method="gradcam").relevance
    wrapped = Tokens(model.visual, targets)
    for target in range(2):
        want = LayerGradCam(wrapped, wrapped.spot).attribute(images, target=target, relu_attributions=True)
        assert twin.distance(found[:, target], want[:, 0].detach()) < limits.FLOAT64


# -- black boxes and controls, by hand --------------------------------------------------------------------------------


class Weighted(nn.Module):
    """Two logits that are weighted sums of the input; its blocks are only there to be found."""

    def __init__(self, side=12, patch=4):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 3, side, side))
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)])


def weighted_call(images=2):
    model = Weighted().double().eval()
    anatomy = legrad.ViTAnatomy(
        library="test",
        tower=model,
        run=lambda x: (x[:, None] * model.weights).sum((2, 3, 4)),
        blocks=tuple(model.blocks),
        image_size=(12, 12),
        patch_size=(4, 4),
        grid=(3, 3),
        num_prefix_tokens=0,
        readouts={"native": legrad.Readout(lambda tokens: tokens.mean(1)[:, :2])},
        output="logits",
    )
    scores = [one_hot(index, 2, str(index)) for index in range(2)]
    return MethodInput(anatomy, torch.randn(images, 3, 12, 12, dtype=torch.float64), scores, [0], "native"), model


def cells(pixels):
    return pixels.unflatten(-1, (3, 4)).unflatten(-3, (3, 4)).sum((-3, -1))


def test_occlusion_of_a_weighted_sum_is_what_the_patch_contributes():
    call, model = weighted_call()
    with torch.no_grad():
        found = black_box.occlusion(call)[:, :, 0]
        want = cells((call.batch[:, None] * model.weights).sum(2))
        assert limits.close(found, want)
        assert limits.close(call.answer(), want.sum((-2, -1)))


def test_rise_is_the_mean_score_of_the_masks_that_show_a_patch():
    call, model = weighted_call()
    masks = black_box._random_masks((12, 12), 40, 7, 0.5, 0).double()
    with torch.no_grad():
        found = black_box.rise(call, masks=40)[:, :, 0]
        for image in range(2):
            for target in range(2):
                scores = [float((call.batch[image] * mask * model.weights[target]).sum()) for mask in masks]
                for row in range(3):
                    for col in range(3):
                        shown = [float(m[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].mean()) for m in masks]
                        want = sum(s * w for s, w in zip(scores, shown, strict=True)) / sum(shown)
                        assert float(found[image, target, row, col]) == pytest.approx(want, rel=limits.FLOAT64)


def test_rise_finds_the_patches_that_matter():
    call, model = weighted_call(images=1)
    with torch.no_grad():
        call.batch.fill_(1)
        model.weights.zero_()
        model.weights[0, :, 4:8, 8:12] = 1
        found = black_box.rise(call, masks=400)[0, 0, 0]
    assert int(found.argmax()) == 1 * 3 + 2


def test_masks_are_soft_seeded_and_half_visible():
    masks = black_box._random_masks((30, 20), 300, 7, 0.5, 0)
    assert masks.shape == (300, 30, 20)
    assert float(masks.min()) == 0
    assert float(masks.max()) == pytest.approx(1)
    assert 0.47 < float(masks.mean()) < 0.53
    assert bool(((masks > 0.1) & (masks < 0.9)).any())
    assert torch.equal(masks, black_box._random_masks((30, 20), 300, 7, 0.5, 0))
    assert not torch.equal(masks, black_box._random_masks((30, 20), 300, 7, 0.5, 1))


def test_random_belongs_to_the_image():
    model, images, targets = setting("token", images=3)
    explainer = legrad.wrap(model)
    found = explainer.explain(images, targets, method="random").relevance
    again = explainer.explain(images[[2, 0]], targets[:1], method="random").relevance
    assert torch.equal(again[:, 0], found[[2, 0], 0])
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found[0], found[1])
    assert float(found.min()) >= 0
    assert float(found.max()) < 1


def test_uniform_is_flat_and_says_so():
    model, images, targets = setting("token")
    with pytest.warns(legrad.FlatMapWarning, match="flat"):
        found = legrad.wrap(model).explain(images, targets, method="uniform")
    assert not bool(found.relevance.any())


def test_centre_is_a_gaussian_in_the_middle():
    model, _, targets = setting("token")
    found = legrad.wrap(model).explain(torch.randn(1, 3, 24, 40, dtype=torch.float64), targets[0], method="centre")
    maps = found.relevance[0, 0]
    assert maps.shape == (3, 5)
    assert float(maps[1, 2]) == 1
    assert limits.close(maps, maps.flip(0))
    assert limits.close(maps, maps.flip(1))
    # the distance of the first column from the middle is 4/5, half of that scale is sigma: exp(-(0.8 / 0.5)^2 / 2)
    assert float(maps[1, 0]) == pytest.approx(math.exp(-1.28))


def test_edges_light_up_at_a_step():
    model, _, targets = setting("token")
    image = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    image[..., 20:] = 1  # a vertical step inside the third column of patches
    found = legrad.wrap(model).explain(image, targets[0], method="edges").relevance[0, 0]
    # two of eight columns have a central difference of 1/2
    assert limits.close(found, torch.tensor([0, 0, 0.125, 0], dtype=torch.float64).expand(4, 4))


# -- what all methods promise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_batch_and_targets_equal_one_by_one_and_the_model_is_left_as_found(name, kind):
    model, images, targets = setting(kind, images=3)
    explainer = legrad.wrap(model)
    with tiny.left_as_found(model):
        found = explained(explainer, images, asked(kind, targets), method=name)
        small = explained(explainer, images, asked(kind, targets), method=name, memory=1)
        single = explained(explainer, images[1:2], asked(kind, targets[1:]), method=name)
    assert found.relevance.shape == (3, 2, 4, 4)
    assert found.settings["method"] == name
    assert limits.close(small.relevance, found.relevance, maps=True)
    assert limits.close(single.relevance[0, 0], found.relevance[1, 1], maps=True)
    assert limits.close(single.scores[0, 0], found.scores[1, 1])
    assert METHODS[name].signed or float(found.relevance.min()) >= 0


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs != "nothing"])
def test_the_model_is_left_as_found_after_an_exception(name):
    model, images, targets = setting("token")
    explainer = legrad.wrap(model)
    explainer.explain(images[:1], targets[0])  # the truth check is over

    def fail(module, args, output):
        raise RuntimeError("on purpose")

    handle = model.visual.transformer.resblocks[-1].mlp.register_forward_hook(fail)
    with tiny.left_as_found(model), pytest.raises((RuntimeError, legrad.InputError), match="on purpose"):
        explainer.explain(images, targets, method=name)
    handle.remove()
    explained(explainer, images, targets, method=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TARGETED)
def test_every_image_can_have_its_own_targets(name, kind):
    model, images, targets = setting(kind)
    explainer = legrad.wrap(model)
    own = asked(kind, targets)
    shared = explained(explainer, images, own, method=name)
    found = explained(explainer, images, [[own[1]], [own[0], own[1]]], method=name)
    assert found.valid.tolist() == [[True, False], [True, True]]
    assert limits.close(found.relevance[0, 0], shared.relevance[0, 1], maps=True)
    assert limits.close(found.relevance[1], shared.relevance[1], maps=True)
    assert not bool(found.relevance[0, 1].any())


@pytest.mark.parametrize("name", TARGETED)
def test_a_frozen_model_and_one_in_half_precision(name):
    model, images, targets = setting("token")
    plain = explained(legrad.wrap(model), images, targets, method=name)
    want = plain.relevance
    model.requires_grad_(False)
    frozen = explained(legrad.wrap(model), images, targets, method=name).relevance
    assert limits.close(frozen, want, maps=True)
    single = explained(legrad.wrap(model.float()), images.float(), targets, method=name).relevance
    # a difference of scores is as exact as the scores are
    assert limits.close(single, want, maps=True, of=plain.scores if name == "occlusion" else None)
    half = explained(legrad.wrap(model.bfloat16()), images.bfloat16(), targets, method=name).relevance
    pairs = torch.stack([half.double().flatten(), want.flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) > limits.CORRELATION


LAYERED = [name for name, method in METHODS.items() if method.per_layer]


@pytest.mark.parametrize("name", LAYERED)
def test_layers_can_be_chosen_and_kept(name):
    model, images, targets = setting("token")
    explainer = legrad.wrap(model)
    default = explained(explainer, images, targets, method=name, keep_layers=True)
    assert default.layers == {"all": (0, 1, 2, 3), "last two thirds": (1, 2, 3), "last": (3,)}[METHODS[name].layers]
    some = explained(explainer, images, targets, method=name, layers=[1, -1], keep_layers=True)
    assert some.layers == (1, 3)
    assert limits.close(some.layer_relevance[:, :, 1], default.layer_relevance[:, :, -1], maps=True)
    assert limits.error(some.layer_relevance[:, :, 0], some.layer_relevance[:, :, 1]) > limits.DIFFERENT
    assert limits.close(some.relevance, METHODS[name].merge(some.layer_relevance.unbind(2)), maps=True)


def test_rollout_of_fewer_layers_is_their_product_alone():
    model, images, targets = setting("token")
    explainer = legrad.wrap(model)
    for name in ("rollout", "chefercam"):
        last = explainer.explain(images, targets[0], method=name, layers=1)
        raw = {"rollout": "raw-attention", "chefercam": "gradient-attention"}[name]
        want = explainer.explain(images, targets[0], method=raw).relevance
        assert twin.distance(last.relevance, want / 2 if name == "rollout" else want) < limits.FLOAT64


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("legrad")])
def test_arguments_without_a_use_are_refused_by_name(name):
    model, images, targets = setting("map")
    explainer = legrad.wrap(model)
    method = METHODS[name]

    def refused(**options):
        with pytest.raises(legrad.InputError, match=f"method '{name}' cannot use {next(iter(options))}"):
            explained(explainer, images, targets, method=name, **options)

    refused(readout="native")
    if not method.targets:
        refused(null_target=targets[1])
    if not method.per_layer:
        refused(keep_layers=True)
    if method.layers == "none" or not method.pooler_layers:
        refused(layers=1)
    else:
        explained(explainer, images, targets, method=name, layers=1)


def test_an_unknown_method_is_refused_with_all_names():
    with pytest.raises(legrad.InputError, match=r"'gradcam'.*got 'grad-cam'"):
        legrad.wrap(tiny.clip()).explain(torch.randn(1, 3, 32, 32), torch.randn(32), method="grad-cam")


def test_null_target_works_for_methods_that_see_targets():
    model, images, targets = setting("token")
    explainer = legrad.wrap(model)
    plain = explained(explainer, images, targets, method="gradient-attention").relevance
    null = plain[:, 1:]
    low, high = null.amin((-2, -1), keepdim=True), null.amax((-2, -1), keepdim=True)
    lit = (null - low) / (high - low) > 0.5
    found = explained(
        explainer, images, targets[0], method="gradient-attention", null_target=targets[1], null_threshold=0.5
    )
    assert bool(lit.any())
    assert limits.close(found.relevance, plain[:, :1].masked_fill(lit, 0), maps=True)


def test_signed_maps_are_stretched_from_the_lowest_value():
    model, images, targets = setting("token", dtype=torch.float32)
    found = legrad.wrap(model).explain(images, targets, method="maskclip")
    assert bool((found.relevance.amin((-2, -1)) < 0).all())
    saliency = found.saliency()
    assert float(saliency.min()) == 0
    assert limits.close(saliency.amax((-2, -1)), torch.ones(2, 2))


@pytest.mark.parametrize("name", [name for name in TARGETED if METHODS[name].needs == "gradients"])
def test_attention_that_is_written_out_gives_the_same(name):
    model, images, targets = setting("average")
    explainer = legrad.wrap(model)
    want = explained(explainer, images, asked("average", targets), method=name).relevance
    eager = replace(explainer.anatomy, attention="softmax", call_settings=())
    for block in model.blocks:
        block.attn.fused_attn = False
    written = legrad.wrap(model, anatomy=eager)
    if name == "grad-eclip":
        with pytest.raises(legrad.UnsupportedModelError, match="queries and keys"):
            explained(written, images, asked("average", targets), method=name)
        return
    found = explained(written, images, asked("average", targets), method=name).relevance
    assert limits.close(found, want, maps=True)


def zoo(library, name):
    import importlib

    from tools import support_matrix

    return importlib.import_module(support_matrix.ZOOS[library]).build(name).double()


@pytest.mark.parametrize(
    ("library", "model", "refused"),
    [
        # class attention behind blocks whose maps cannot be chained with it
        (
            "timm",
            "cait_m36_384",
            {"rollout": "cannot be seen", "chefercam": "cannot be seen", "maskclip": "its pooler"},
        ),
        # heads folded into the batch
        ("timm", "samvit_base_patch16", {"raw-attention": "between all tokens", "maskclip": "one grid"}),
        ("timm", "vit_dlittle_patch16_reg1_gap_256", {"gradient-attention": "differential", "maskclip": "plain"}),
        ("timm", "vit_base_patch16_rpn_224", {"textspan": "no residual block"}),
        ("timm", "vit_base_patch16_18x2_224", {"textspan": "no residual block"}),
        ("transformers", "BlipModel", {"maskclip": "writes its attention out", "grad-eclip": "queries and keys"}),
        (
            "transformers, video and audio",
            "timesformer",
            {
                "rise": "frames x rows x cols",
                "edges": "for images",
                "rollout": "between all tokens",
                "lrp": "one grid",
            },
        ),
    ],
)
def test_what_makes_no_sense_for_a_model_is_refused_in_a_sentence(library, model, refused):
    from legrad.core.positions import random_input

    model = zoo(library, model)
    explainer = legrad.wrap(model)
    batch = random_input(explainer.anatomy)
    for name, reason in refused.items():
        with tiny.left_as_found(model), pytest.raises(legrad.UnsupportedModelError, match=reason) as caught:
            explained(explainer, batch, lambda f: f[:, 1], method=name)
        assert "\n" not in str(caught.value)
    for name in ("legrad-norelu", "random", "centre"):
        assert bool(explained(explainer, batch, lambda f: f[:, 1], method=name).relevance.any())


def test_an_activation_as_a_head_keeps_its_relevance():
    """ViT's pooler ends in tanh, which is no gate of something else."""
    model = zoo("transformers", "ViTModel")
    from legrad.core.positions import random_input

    explainer = legrad.wrap(model)
    found = explained(explainer, random_input(explainer.anatomy), lambda f: f[:, 1], method="lrp")
    assert bool(found.relevance.any())


def test_gated_activations_share_evenly():
    """EVA-02's SwiGLU is a product of two activations: all relevance arrives, but for biases and the softmax."""
    from legrad.methods import backward_rules

    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    w, u = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    tap = attention.WholeTap("fused", backward_rules.LRP, F.scaled_dot_product_attention)
    for gated in (
        lambda: F.silu(x @ w) * (x @ u),
        lambda: (x @ w) * torch.sigmoid(1.702 * (x @ w)),
        lambda: F.gelu(F.layer_norm(x, (4,)) @ w),
        lambda: F.relu(F.rms_norm(x, (4,)) @ w),
        lambda: torch.tanh(x @ w),
        lambda: (x @ w) @ (x @ u).transpose(-2, -1),
        lambda: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    ):
        plain = gated()
        with tap:
            ruled = gated()
        assert limits.close(ruled, plain)
        (gradient,) = torch.autograd.grad(ruled.sum(), x)
        assert limits.close((gradient * x).sum(), plain.sum())
        (usual,) = torch.autograd.grad(plain.sum(), x)
        assert limits.error((usual * x).sum(), plain.sum()) > limits.DIFFERENT


def test_the_rows_that_a_head_reads():

    for kind, want in (("token", [0]), ("average", list(range(1, 17)))):
        model, images, _ = setting(kind)
        anatomy = legrad.wrap(model).anatomy
        with state.evaluation_mode(model):
            graph = forward(MethodInput(anatomy, images, [], [3], "native"))
        assert graph.rows.tolist() == want


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.needs in ("gradients", "attention")])
def test_a_broken_anatomy_is_noticed(name):
    model, images, targets = setting("token")
    explainer = legrad.wrap(model)
    native = explainer.anatomy.readouts["native"]
    wrong = legrad.Readout(lambda tokens: native.function(tokens * torch.linspace(0.5, 1.5, 64).to(tokens)))
    anatomy = replace(explainer.anatomy, readouts={**explainer.anatomy.readouts, "native": wrong})
    with pytest.raises(legrad.TruthCheckError, match="native read-out"):
        legrad.wrap(model, anatomy=anatomy).explain(images, targets, method=name)


def test_no_method_loads_anything_heavy(loaded_by):
    assert not {"open_clip", "timm", "captum", "torchvision"} & loaded_by("import legrad.methods")


def test_the_page_has_every_method_with_its_source():

    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `") for row in rows] == list(METHODS)
    for row, method in zip(rows, METHODS.values(), strict=True):
        assert ("signed" in row[1]) == method.signed
        if "arXiv:" in method.source and "as above" not in row[2]:
            authors = method.source.split(",")[0].removeprefix("rules of ").split(" et al")[0]
            assert authors.split()[-1] in row[2] or "rules as above" in row[2]


def test_the_snippets_of_the_page_run():
    explainer = legrad.wrap(tiny.clip())
    images, targets = torch.randn(1, 3, 32, 32), torch.randn(32)
    calls, of_heads, own, register, metric = snippets("docs/methods.md")
    assert 'method="chefercam"' in calls
    asked = 'explain("photo.jpg", "a photo of a dog"', 'head_relevance(explainer, "photo.jpg", "a photo of a dog"'
    assert all(call in of_heads for call in asked)
    variables = {"explainer": explainer, "images": images, "targets": targets, "torch": torch}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for code in (calls, of_heads):
            exec(
                code.replace('"photo.jpg", "a photo of a dog"', "images, targets").replace("[0, 3]", "[0, 1]"),
                variables,
            )
        exec(own.replace("masks=4000", "masks=4"), variables)
        try:
            *by_name, measured, _ = register.split("\n")
            assert "bench.measure" in measured  # tests/bench/test_own.py has this call
            exec("\n".join(by_name), {**variables, "legrad": legrad})
            exec(metric, {"legrad": legrad})
        finally:
            METHODS.pop("brightness")
            registry._BY_NAME.pop("brightness")
            own_metrics._METRICS.pop("covered")
    found = explainer.explain(images, targets, method=variables["method"])
    assert limits.close(found.relevance[0, 0, 1, 2], images[0, :, 8:16, 16:24].mean())


def test_the_catalogue_is_that_of_the_methods():
    from legrad.methods import METHODS
    from legrad.methods.catalogue import ABOUT

    assert list(ABOUT) == list(METHODS)
    assert {name: (method.summary, method.source) for name, method in METHODS.items()} == ABOUT
