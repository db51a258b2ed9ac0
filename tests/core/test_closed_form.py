"""Closed-form tails: equal to autograd wherever they are used, and not used where they might not be."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin
from torch import nn

import legrad
from legrad import batches
from legrad.core import memory as chunks
from legrad.core import routes
from legrad.core.planning import Shortcuts
from legrad.core.readout import TokenSpan

# many random directions on one image
pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend on the target")

# class-token, averaged before and after the norm, LayerScale, QuickGELU, registers, another order of modules
COMMON = ["clip", "clip-quickgelu", "clip-layerscale", "clip-avg", "clipa", "mobileclip-b", "vit-registers"]
OTHER = ["clip-custom-blocks", "eva02-clip", "vitamin"]


def plan_of(explainer):
    (plan,) = explainer._first_use.shortcuts.values()
    return plan


def through_autograd(model, *args, **options):
    """The same call without any closed form."""
    slow = legrad.wrap(model)
    with mock.patch.object(slow._first_use, "shortcuts_for", return_value=Shortcuts()):
        return slow.explain(*args, keep_layers=True, **options).layer_relevance


def compare(model, x, t, readout):
    """Closed form against autograd, for one target and for so many that the tail is folded."""
    explainer = legrad.wrap(model)
    with mock.patch.object(routes, "_layer_in_closed_form", wraps=routes._layer_in_closed_form) as closed:
        found = [
            explainer.explain(x, targets, readout=readout, keep_layers=True).layer_relevance for targets in (t[:1], t)
        ]
    assert closed.call_count == 2 * len(explainer.anatomy.blocks)
    expected = through_autograd(model, x, t, readout=readout)
    return max(twin.distance(found[0], expected[:, :1]), twin.distance(found[1], expected))


@pytest.mark.parametrize("readout", ["native", "published"])
@pytest.mark.parametrize("name", COMMON)
def test_equals_autograd(name, readout):
    model, x = tiny.TOWERS[name](), torch.randn(2, 3, 32, 32)
    t = F.normalize(torch.randn(30, 32), dim=-1)
    assert compare(model, x, t, readout) < limits.FLOAT32
    plan = plan_of_first_use(model, x, t)
    assert all(tail.foldable for tail in plan.tails.values())


def plan_of_first_use(model, x, t):
    explainer = legrad.wrap(model)
    explainer.explain(x, t[:1])
    return plan_of(explainer)


@pytest.mark.parametrize("name", OTHER)
def test_other_blocks_keep_the_autograd_tail(name):
    model = tiny.TOWERS[name]()
    assert not plan_of_first_use(model, torch.randn(1, 3, 32, 32), torch.randn(1, 32)).tails


@pytest.mark.parametrize(
    ("name", "options", "gate"),
    [
        ("vit_giant_patch14_reg4_dinov2", {"img_size": 42, "embed_dim": 48, "depth": 2, "num_heads": 4}, 0),
        ("vit_base_patch16_224", {**tiny.THIN, "norm_layer": "rmsnorm"}, None),
        ("vit_base_patch16_224", {**tiny.THIN, "act_layer": "silu", "init_values": 0.3}, None),
    ],
)
def test_gated_mlps_and_other_norms(name, options, gate):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    explainer = legrad.wrap(model)
    t = [lambda feature, i=i: feature[:, i % 7].sin() * (i + 1) for i in range(40)]
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    tails = plan_of(explainer).tails
    assert set(tails) == set(range(len(explainer.anatomy.blocks)))
    assert {tail.gate for tail in tails.values()} == {gate}
    assert all(tail.foldable for tail in tails.values())
    expected = through_autograd(model, x, t)
    assert twin.distance(found, expected) < limits.FLOAT32
    assert (
        twin.distance(explainer.explain(x, t[:1], keep_layers=True).layer_relevance, expected[:, :1]) < limits.FLOAT32
    )


def test_a_wrong_closed_form_is_noticed_and_not_used():
    """LayerScale as a bare parameter of the block cannot be seen from the modules that ran."""

    class Scaled(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block, self.gamma = block, nn.Parameter(torch.tensor(0.5))

        def forward(self, x, **options):
            x = x + self.gamma * self.block.attention(self.block.ln_1(x))
            return x + self.gamma * self.block.mlp(self.block.ln_2(x))

    model = tiny.clip()
    blocks = model.visual.transformer.resblocks
    for index in range(len(blocks)):
        blocks[index] = Scaled(blocks[index])
    x, t = torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert not plan_of(explainer).tails
    assert twin.distance(found, through_autograd(model, x, t)) < limits.FLOAT32


def test_a_hook_that_came_later_is_obeyed():
    model, x, t = tiny.clip(), torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    before = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert plan_of(explainer).tails
    handle = model.visual.transformer.resblocks[1].mlp.register_forward_hook(lambda module, args, output: output * 3)
    hooked = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert twin.distance(hooked, through_autograd(model, x, t)) < limits.FLOAT32
    assert twin.distance(hooked[:, :, 1], before[:, :, 1]) > limits.DIFFERENT
    handle.remove()
    assert torch.equal(explainer.explain(x, t, keep_layers=True).layer_relevance, before)


def test_a_block_that_was_rebuilt_or_trained_on():
    model, x, t = tiny.clip(), torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model)
    explainer.explain(x, t)
    block = model.visual.transformer.resblocks[2]
    block.mlp = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 64))
    with torch.no_grad():
        model.visual.transformer.resblocks[0].ln_2.weight.mul_(torch.linspace(0, 2, 64))
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(model, x, t)) < limits.FLOAT32


def test_masks_and_rows_of_a_class_token_read_out():
    """A block-diagonal attention mask, seen from the class token's row only."""
    model, x, t = tiny.clip(), torch.randn(3, 3, 32, 32), torch.randn(2, 32)
    mask = torch.zeros(17, 17)
    mask[0, 5:] = float("-inf")
    mask[3:, :2] = float("-inf")
    original = model.visual.transformer.forward
    model.visual.transformer.forward = lambda tokens, attn_mask=None: original(tokens, attn_mask=mask)
    for readout in ("native", "published"):
        explainer = legrad.wrap(model)
        found = explainer.explain(x, t, readout=readout, keep_layers=True).layer_relevance
        assert plan_of(explainer).tails
        assert twin.distance(found, through_autograd(model, x, t, readout=readout)) < limits.FLOAT32
        if readout == "native":
            assert not found.flatten(-2)[..., 4:].any()


def test_half_precision():
    for dtype in (torch.bfloat16, torch.float16):
        model, x, t = tiny.clip(), torch.randn(2, 3, 32, 32), torch.randn(40, 32)
        want = legrad.wrap(model).explain(x, t, keep_layers=True).layer_relevance
        explainer = legrad.wrap(model.to(dtype))
        for count in (1, 40):
            found = explainer.explain(x.to(dtype), t[:count], keep_layers=True).layer_relevance
            for one, expected in zip(found.flatten(0, 2), want[:, :count].flatten(0, 2), strict=True):
                assert torch.corrcoef(torch.stack([one.flatten(), expected.flatten()]))[0, 1] > limits.CORRELATION
        assert plan_of(explainer).tails


# -- what was found out once does not hold for ever ----------------------------------------------------------------


def timm_vit(**options):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=7, **{**tiny.THIN, **options}).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def agrees(explainer, x, t):
    found = explainer.explain(x, t, keep_layers=True).layer_relevance
    return twin.distance(found, through_autograd(explainer.model, x, t)) < limits.FLOAT32


def test_a_read_out_that_picks_other_tokens_for_every_image():
    explainer = legrad.wrap(timm_vit(global_pool="max", class_token=False))
    assert agrees(explainer, torch.randn(4, 3, 32, 32), [0, 3])
    assert set(plan_of(explainer).token_spans.values()) == {TokenSpan(None)}


def test_another_head():
    model = timm_vit()
    explainer, x = legrad.wrap(model), torch.randn(2, 3, 32, 32)
    explainer.explain(x, [0])
    model.reset_classifier(7, "avg")
    nn.init.normal_(model.head.weight)
    found = explainer.explain(x, [0, 5], readout="native", keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(model, x, [0, 5], readout="native")) < limits.FLOAT32


def test_another_pooling_without_another_parameter():
    model = timm_vit()
    explainer, x = legrad.wrap(model), torch.randn(2, 3, 32, 32)
    explainer.explain(x, [0], readout="native")
    assert plan_of(explainer).token_spans["native"].rows == (0, 1)
    model.global_pool = "avg"
    found = explainer.explain(x, [0, 5], readout="native", keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(model, x, [0, 5], readout="native")) < limits.FLOAT32


def test_classes_are_counted_once_and_again_for_another_head():
    model = timm_vit()
    explainer, x, runs = legrad.wrap(model), torch.randn(2, 3, 32, 32), []
    explainer.explain(x, 6)
    model.register_forward_hook(lambda *_: runs.append(1))
    explainer.explain(x, [6, 2])
    assert len(runs) == 1
    model.reset_classifier(9)
    nn.init.normal_(model.head.weight)
    explainer.explain(x, 8)
    with pytest.raises(legrad.InputError, match=r"outside 0\.\.8"):
        explainer.explain(x, 9)


def test_adapters_that_were_off_at_the_first_use():
    import peft

    model, x = timm_vit(), torch.randn(2, 3, 32, 32)
    config = peft.LoraConfig(target_modules=["fc1", "fc2"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    explainer = legrad.wrap(adapted)
    with adapted.disable_adapter():
        explainer.explain(x, [0])
    assert agrees(explainer, x, [0, 3])


def test_a_parallel_block_whose_scale_hides_it():
    from timm.models.vision_transformer import Block

    class Parallel(Block):
        def forward(self, x, *args, **options):
            return x + self.ls1(self.attn(self.norm1(x))) + self.ls2(self.mlp(self.norm2(x)))

    model, x = timm_vit(block_fn=Parallel, init_values=1e-6), torch.randn(2, 3, 32, 32)
    explainer = legrad.wrap(model)
    explainer.explain(x, [0])
    for block in model.blocks:
        block.ls1.gamma.data.fill_(1)  # which no counter of PyTorch's notices
        block.ls2.gamma.data.fill_(1)
    assert agrees(explainer, x, [0])


def test_a_parameter_of_the_block_that_did_nothing_at_the_first_use():
    from timm.models.vision_transformer import Block

    class Gained(Block):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x, *other, **options):
            x = x + self.gain * self.attn(self.norm1(x))
            return x + self.gain * self.mlp(self.norm2(x))

    model, x = timm_vit(block_fn=Gained), torch.randn(2, 3, 32, 32)
    explainer = legrad.wrap(model)
    explainer.explain(x, [0])
    assert plan_of(explainer).tails
    with torch.no_grad():
        for block in model.blocks:
            block.gain.fill_(0.3)
    assert agrees(explainer, x, [0, 3])
    assert not plan_of(explainer).tails


def test_a_block_that_writes_on_its_input():
    from timm.models.vision_transformer import Block

    class InPlace(Block):
        def forward(self, x, *args, **options):
            x += self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    model, x = timm_vit(block_fn=InPlace), torch.randn(2, 3, 32, 32)
    explainer = legrad.wrap(model)
    best = model(x).argmax(-1).tolist()
    # one block after the other, so that nothing is kept to be written on
    want = through_autograd(model, x, [[i] for i in best])
    for targets in (legrad.PREDICTED, [[i] for i in best]):
        found = explainer.explain(x, targets, keep_layers=True).layer_relevance
        assert twin.distance(found, want) < limits.FLOAT32


def test_norms_that_mix_tokens():
    class Mixing(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x - x.mean(1, keepdim=True))

    explainer = legrad.wrap(timm_vit(norm_layer=Mixing))
    x = torch.randn(2, 3, 32, 32)
    found = explainer.explain(x, [0], readout="native", keep_layers=True).layer_relevance
    assert twin.distance(found, through_autograd(explainer.model, x, [0], readout="native")) < limits.FLOAT32


def test_a_model_made_under_inference_mode():
    with torch.inference_mode():
        model = tiny.clip()
    with pytest.raises(legrad.InputError, match="inference_mode"):
        legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), torch.randn(1, 32))


def test_contrast_of_a_late_target_and_a_callable():
    explainer, x = legrad.wrap(timm_vit()), torch.randn(3, 3, 32, 32)

    def first(feature):
        return feature[:, 0]

    found = explainer.explain(x, [legrad.Contrast(legrad.PREDICTED, first)])
    for row in range(3):
        alone = explainer.explain(x[row : row + 1], [legrad.Contrast(legrad.PREDICTED, first)])
        assert twin.distance(alone.relevance[0], found.relevance[row]) < limits.FLOAT32


# -- chunks of images and targets ---------------------------------------------------------------------------------


def running_out_above(images, targets):
    """A pass that only has memory for so many images and targets."""
    real, passes = batches.explain_batch, []

    def explain_batch(anatomy, batch, scores, *args, **limits):
        passes.append((len(batch), len(scores)))
        if len(batch) > images or len(scores) > targets:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(anatomy, batch, scores, *args, **limits)

    return passes, mock.patch.object(batches, "explain_batch", explain_batch)


def test_out_of_memory_halves_the_chunks_and_goes_on_with_one_warning():
    model, x, t = tiny.clip(), torch.randn(5, 3, 32, 32), torch.randn(6, 32)
    want = legrad.wrap(model).explain(x, t)
    passes, patched = running_out_above(images=1, targets=2)
    with patched, tiny.left_as_found(model), pytest.warns(UserWarning, match="out of memory") as told:
        found = legrad.wrap(model).explain(x, t)
    assert sum("out of memory" in str(one.message) for one in told) == 1
    assert twin.distance(found.relevance, want.relevance) < limits.FLOAT32
    assert limits.close(found.scores, want.scores)
    assert passes[0] == (5, 6)
    assert passes[1] == (2, 6)  # nothing is tried twice
    assert passes[-1] == (1, 1)
    assert len(passes) < 40


def test_nothing_left_to_halve():
    passes, patched = running_out_above(images=0, targets=0)
    with (
        patched,
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(legrad.LeGradError, match="smaller size"),
    ):
        legrad.wrap(tiny.clip()).explain(torch.randn(2, 3, 32, 32), torch.randn(2, 32))
    assert passes[-1] == (1, 1)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert chunks.ran_out(MemoryError())
    assert chunks.ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"))
    assert not chunks.ran_out(RuntimeError("shapes do not fit"))


def test_memory_in_bytes_chooses_the_chunks():
    anatomy = legrad.wrap(tiny.clip()).anatomy
    assert chunks.free_bytes(torch.device("cpu")) > 1 << 20
    small, large = (chunks.Budget(anatomy, 3, 4, memory) for memory in (1 << 20, 1 << 33))
    assert 1 <= small.images < large.images == 32
    assert large.keep_until_answer
    assert not chunks.Budget(anatomy, 3, 4, 1).keep_until_answer


@pytest.mark.parametrize("memory", ["auto", 1])
@pytest.mark.parametrize("name", ["clip", "siglip", "clip-custom-blocks"])
def test_targets_that_wait_for_the_answer_run_the_model_once_where_memory_allows(name, memory):
    model, x = tiny.TOWERS[name](), torch.randn(3, 3, 32, 32)
    wrapped = legrad.wrap(model, tokenizer=tiny.tokenizer)
    names = ["cat", "dog", "a red bicycle", "sky"]
    late = [legrad.ZeroShot(names, ["{}"]), "dog", legrad.Contrast(legrad.ZeroShot(names, ["{}"]), "sky")]
    wrapped.explain(x, "cat")
    runs = []
    handle = model.visual.register_forward_hook(lambda *_: runs.append(1))
    found = wrapped.explain(x, late, memory=memory)
    handle.remove()
    # one at a time, and twice, where there is no room
    assert len(runs) == (1 if memory == "auto" else 6)
    similarity = wrapped.explain(x, names).scores
    best = similarity.argmax(1).tolist()
    assert [row[0] for row in found.labels] == [names[i] for i in best]
    known = [[names[i], "dog", legrad.Contrast(names[i], "sky")] for i in best]
    want = wrapped.explain(x, known)
    assert twin.distance(found.relevance, want.relevance) < limits.FLOAT32
    assert limits.close(found.scores, want.scores)
