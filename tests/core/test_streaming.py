"""What the pass promises: independence of company, the model left as found, any autograd mode, flat memory."""

import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny, twin

import legrad
from legrad.core import hooks
from legrad.core import state as core_state

KINDS = ["clip", "coca", "siglip", "pe-core", "eva02-clip", "vit-registers"]


def images(count=2, size=(32, 32)):
    return torch.randn(count, 3, *size)


def embeddings(count=2):
    return F.normalize(torch.randn(count, 32), dim=-1)


@pytest.mark.parametrize("name", KINDS)
def test_batch_equals_one_by_one_in_any_order(name):
    explainer, x, t = legrad.wrap(tiny.TOWERS[name]()), images(4), embeddings(3)
    together = explainer.explain(x, t, keep_layers=True)
    for i in range(4):
        for j in range(3):
            alone = explainer.explain(x[i : i + 1], t[j], keep_layers=True)
            assert twin.distance(alone.layer_relevance[0, 0], together.layer_relevance[i, j]) < limits.FLOAT32
            assert limits.close(alone.scores[0, 0], together.scores[i, j], of=together.scores)
    shuffled = explainer.explain(x.flip(0), t.flip(0))
    assert twin.distance(shuffled.relevance, together.relevance.flip(0, 1)) < limits.FLOAT32


def test_small_memory_splits_the_batch_and_changes_nothing():
    explainer, x, t = legrad.wrap(tiny.clip()), images(5), embeddings()
    assert (
        twin.distance(explainer.explain(x, t, memory=1).relevance, explainer.explain(x, t).relevance) < limits.FLOAT32
    )


def test_own_targets_for_every_image():
    explainer, x, t = legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer), images(3), embeddings(4)

    def odd(feature):
        return feature[:, 0].exp()

    own = explainer.explain(x, [[t[0], "cat"], [odd], [t[2], t[3], "dog"]])
    assert own.valid.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert own.labels[1] == ["odd", "", ""]
    asked = [(0, 0, t[0]), (0, 1, "cat"), (1, 0, odd), (2, 0, t[2]), (2, 1, t[3]), (2, 2, "dog")]
    for image, target, what in asked:
        alone = explainer.explain(x[image : image + 1], what)
        assert twin.distance(alone.relevance[0, 0], own.relevance[image, target]) < limits.FLOAT32
        assert limits.close(alone.scores[0, 0], own.scores[image, target], of=own.scores)
    assert not own.relevance[~own.valid].any()
    assert not own.scores[~own.valid].any()
    split = explainer.explain(x, [[t[0], "cat"], [odd], [t[2], t[3], "dog"]], memory=1)
    assert limits.close(split.relevance, own.relevance, maps=True)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference_mode", "enable_grad"])
def test_any_mode_gives_the_same_and_leaves_everything_as_found(name, trainable, mode):
    model, x, t = tiny.TOWERS[name](), images(), embeddings()
    want = legrad.wrap(model).explain(x, t).relevance
    model.train().requires_grad_(trainable)
    model.visual.eval()
    next(model.visual.children()).train()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    context = {
        "plain": torch.set_grad_enabled(True),
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "enable_grad": torch.enable_grad(),
    }[mode]
    explainer = legrad.wrap(model)
    with context, tiny.left_as_found(model):
        if mode == "inference_mode":
            x, t = x.clone(), t.clone()  # inference tensors
        found = explainer.explain(x, t)
    assert twin.distance(found.relevance, want) < limits.FLOAT32
    assert not found.relevance.requires_grad
    assert not found.relevance.is_inference()


def test_other_sizes_leave_the_model_as_found():
    for name in KINDS:
        model, x, t = tiny.TOWERS[name](), images(2, (40, 24)), embeddings()
        with tiny.left_as_found(model):
            legrad.wrap(model).explain(x, t)


def test_dropout_and_drop_path_are_off_in_train_mode():
    model = tiny.timm_clip(
        "vit_base_patch16_siglip_224", proj="none", kwargs={**tiny.THIN, "drop_path_rate": 0.5, "proj_drop_rate": 0.5}
    )
    for x in (images(), images(2, (48, 24))):
        t = embeddings()
        want = legrad.wrap(model.eval()).explain(x, t).relevance
        found = legrad.wrap(model.train()).explain(x, t).relevance
        assert torch.equal(found, want)
    assert all(module.training for module in model.modules())


def test_checkpointing_and_unfused_attention_are_switched_for_the_call():
    for name in ("clip", "eva02-clip", "vit-registers"):
        model, x, t = tiny.TOWERS[name](), images(), embeddings()
        want = legrad.wrap(model).explain(x, t).relevance
        model.visual.set_grad_checkpointing(True)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        with tiny.left_as_found(model):
            found = legrad.wrap(model).explain(x, t).relevance
        assert twin.distance(found, want) < limits.FLOAT32


def test_a_surrounding_autocast_changes_nothing():
    for name in KINDS:
        model, x, t = tiny.TOWERS[name](), images(), embeddings()
        want = legrad.wrap(model).explain(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            found = legrad.wrap(model).explain(x, t)
            assert torch.is_autocast_enabled("cpu")
        assert torch.equal(found.relevance, want.relevance)
        assert torch.equal(found.scores, want.scores)


class Boom(Exception):
    pass


@pytest.mark.parametrize("name", ["clip", "siglip", "pe-core"])
@pytest.mark.parametrize("where", ["block", "attention", "target"])
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_left_as_found_after_an_exception_in_the_middle(name, where, error):
    model, x, t = tiny.TOWERS[name](), images(), embeddings()
    explainer = legrad.wrap(model)
    want = explainer.explain(x, t).relevance
    block = explainer.anatomy.blocks[1]

    def explode(*_):
        raise error

    targets = t
    handle = None
    if where == "block":
        handle = block.register_forward_hook(explode)
    elif where == "attention":
        handle = (block.mlp if hasattr(block, "mlp") else block).register_forward_pre_hook(explode)
    else:
        targets = [explode]
    model.train()
    with tiny.left_as_found(model), pytest.raises(error):
        explainer.explain(x, targets)
    if handle:
        handle.remove()
    with torch.no_grad():  # inside a tap attention's output would be a leaf
        assert not model.visual(x).requires_grad
    assert twin.distance(explainer.explain(x, t).relevance, want) < limits.FLOAT32


def test_users_hooks_run_and_see_detached_outputs():
    model, x, t = tiny.clip(), images(), embeddings()
    seen = []
    hook = lambda module, args, output: seen.append((output.requires_grad, torch.is_grad_enabled()))  # noqa: E731
    handle = model.visual.transformer.resblocks[1].register_forward_hook(hook)
    want = legrad.wrap(tiny.clip()).explain(x, t).relevance
    assert twin.distance(legrad.wrap(model).explain(x, t).relevance, want) < limits.FLOAT32
    assert seen
    assert all(state == (False, False) for state in seen)
    handle.remove()


def test_explaining_inside_a_callable_target_is_independent():
    model, x, t = tiny.clip(), images(), embeddings()
    explainer = legrad.wrap(model)
    inner = []

    def nested(feature):
        if feature.requires_grad:
            inner.append(explainer.explain(x, t, layers=2).relevance)
            with torch.no_grad():
                model.visual(x)
        return feature @ t[0]

    with tiny.left_as_found(model):
        found = explainer.explain(x, [nested]).relevance
    assert twin.distance(found[:, 0], explainer.explain(x, t).relevance[:, 0]) < limits.FLOAT32
    want = explainer.explain(x, t, layers=2).relevance
    assert inner
    assert all(torch.equal(one, want) for one in inner)


def test_two_threads_on_one_model_with_a_bystander():
    model = tiny.clip()
    explainer, wrapped_again = legrad.wrap(model), legrad.wrap(model)
    inputs, t = [images() for _ in range(2)], embeddings()
    want = [explainer.explain(x, t).relevance for x in inputs]
    with torch.no_grad():
        plain = [model.visual(x) for x in inputs]
    problems = []

    def work(index, use):
        try:
            for _ in range(15):
                assert twin.distance(use.explain(inputs[index], t).relevance, want[index]) < limits.FLOAT32
        except BaseException as error:
            problems.append(error)

    def bystand():
        try:
            with torch.no_grad():
                for _ in range(60):
                    assert limits.close(model.visual(inputs[0]), plain[0])
        except BaseException as error:
            problems.append(error)

    with tiny.left_as_found(model):
        threads = [
            threading.Thread(target=work, args=(0, explainer)),
            threading.Thread(target=work, args=(1, wrapped_again)),
            threading.Thread(target=bystand),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems, problems


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["clip", "coca", "siglip", "eva02-clip"])
def test_half_precision_with_a_thousand_tokens(name, dtype):
    """fp16 gradients fall with the number of tokens and would vanish unscaled."""
    model, t = tiny.TOWERS[name](), embeddings()
    x = images(1, (256, 288))
    want = legrad.wrap(model).explain(x, t)
    assert want.relevance.shape[-2] * want.relevance.shape[-1] == 1152
    model.to(dtype)
    found = legrad.wrap(model).explain(x, t)
    assert found.relevance.dtype == torch.float32
    for a, b in zip(found.relevance[0], want.relevance[0], strict=True):
        assert float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) > limits.CORRELATION
        assert float(a.sum() / b.sum()) == pytest.approx(1, abs=limits.HALF_SUM)
    assert float((found.scores - want.scores).abs().max()) < limits.HALF_COSINE


def test_open_clips_mixed_half_precision():
    """precision="fp16" keeps LayerNorm in float32."""
    from open_clip.model import convert_weights_to_lp

    model, t, x = tiny.clip(), embeddings(), images(1, (128, 128))
    want = legrad.wrap(model).explain(x, t).relevance
    convert_weights_to_lp(model, torch.bfloat16)
    assert {p.dtype for p in model.visual.parameters()} == {torch.float32, torch.bfloat16}
    found = legrad.wrap(model).explain(x, t).relevance
    for a, b in zip(found[0], want[0], strict=True):
        assert float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) > limits.CORRELATION


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_memory_is_flat_over_depth_for_trainable_parameters(name):
    """The numbers that autograd saves for backward and has not released, at any time of the pass."""

    def build(depth):
        if name == "clip":
            return tiny.clip(layers=depth)
        return tiny.timm_clip("vit_base_patch16_siglip_224", proj="none", kwargs={**tiny.THIN, "depth": depth})

    def peak(depth):
        model = build(depth).requires_grad_(True)
        explainer, x, t = legrad.wrap(model), images(1, (128, 128)), embeddings(1)
        explainer.explain(x, t)  # the truth check is done
        current = [0, 0]

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor.detach()  # a node that saves its own output would never die
                current[0] += tensor.numel()
                current[1] = max(current)

            def __del__(self):
                current[0] -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            explainer.explain(x, t)
        return current[1]

    shallow, deep = peak(4), peak(12)  # four layers may be worked off together
    assert shallow > 0
    assert deep <= shallow * 1.01, (shallow, deep)


def test_a_flat_map_is_zeros_and_a_warning():
    model, x = tiny.clip(), images()
    direction = torch.randn(32)

    def constant(feature):
        return (feature * 0 @ direction) + 1

    with pytest.warns(legrad.FlatMapWarning, match="constant"):
        found = legrad.wrap(model).explain(x, [constant, direction])
    assert not found.relevance[:, 0].any()
    assert bool(found.relevance[:, 1].any())
    assert bool(torch.isfinite(found.relevance).all())
    saliency = found.saliency()
    assert bool(torch.isfinite(saliency).all())
    assert not saliency[:, 0].any()


def test_maps_that_ignore_the_prompt_are_named():
    model, x, t = tiny.clip(), images(), embeddings(1)
    near = F.normalize(t + 1e-4 * torch.randn(1, 32), dim=-1)
    with pytest.warns(UserWarning, match="hardly depend on the target"):
        found = legrad.wrap(model).explain(x, torch.cat([t, near]))
    assert found.prompt_independent.tolist() == [[True, True], [True, True]]
    with pytest.warns(UserWarning, match="hardly depend on the target"):
        found = legrad.wrap(model).explain(x, t, null_target=near[0])
    assert bool(found.prompt_independent.all())
    opposite = legrad.wrap(model).explain(x, torch.cat([t, -t]))
    assert not opposite.prompt_independent.any()


def test_hooks_are_inert_for_other_forwards_in_between():
    """A forward started from ``visit`` on another model must not be captured either."""
    model, other, x, t = tiny.clip(), tiny.clip(seed=5), images(), embeddings()
    want = legrad.wrap(model).explain(x, t).relevance

    def busy(feature):
        with torch.no_grad():
            other.visual(x)
        return feature @ t[0]

    assert twin.distance(legrad.wrap(model).explain(x, [busy]).relevance[:, 0], want[:, 0]) < limits.FLOAT32


def test_grouped_queries_repeat_values():
    """enable_gqa: four query heads share two value heads."""
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    output, calls = hooks.tapped(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), verify=True)
    assert calls[0].value.shape == (2, 4, 5, 8)
    assert calls[0].mismatch < limits.FLOAT32
    assert torch.equal(calls[0].value[:, 1], v[:, 0])
    assert output.requires_grad


@pytest.mark.parametrize("setting", [True, False])
def test_attention_is_fused_in_blocks_that_nobody_looks_at_and_the_switch_is_put_back(setting):
    """``nn.MultiheadAttention`` writes its maps out without gradients; a thread that leaves first changes nothing."""
    mha, before, seen = torch.backends.mha, torch.backends.mha.get_fastpath_enabled(), []
    inside, leave = threading.Event(), threading.Event()
    model = tiny.clip()
    model.visual.transformer.resblocks[0].register_forward_hook(lambda *_: seen.append(mha.get_fastpath_enabled()))

    def stay():
        with core_state.evaluation_mode(tiny.clip()):
            inside.set()
            leave.wait(10)

    try:
        mha.set_fastpath_enabled(setting)
        other = threading.Thread(target=stay)
        other.start()
        assert inside.wait(10)
        legrad.wrap(model).explain(torch.randn(1, 3, 32, 32), torch.randn(32), layers=1)
        assert not mha.get_fastpath_enabled()  # the other thread is still inside
        leave.set()
        other.join()
        assert mha.get_fastpath_enabled() == setting
        assert seen
        assert not any(seen)
    finally:
        leave.set()
        mha.set_fastpath_enabled(before)
