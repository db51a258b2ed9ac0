"""Ctrl-C anywhere leaves the model, torch and the locks as they were, and the next call is right."""

import os
import threading
import warnings

import numpy as np
import pytest
import torch
from helpers import interrupts, limits, tiny, twin
from PIL import Image

import legrad
from legrad import doctor
from legrad.core import state, undo


def transform():
    from torchvision import transforms

    return transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])


def half_clip():
    return tiny.clip().to(torch.bfloat16)


def trained(model):
    model.train()
    next(model.modules()).eval()
    return model


CALLS = {
    "legrad": (tiny.clip, lambda explainer, x, t: explainer.explain(x, t)),
    "first use": (tiny.clip, lambda explainer, x, t: legrad.wrap(explainer.model).explain(x, t)),
    "half": (half_clip, lambda explainer, x, t: explainer.explain(x, t)),
    "pooler": (tiny.TOWERS["siglip"], lambda explainer, x, t: explainer.explain(x, t)),
    "autograd": (tiny.TOWERS["eva02-clip"], lambda explainer, x, t: explainer.explain(x, t)),
    "another size": (tiny.clip, lambda explainer, x, t: explainer.explain(torch.zeros(1, 3, 40, 32) + 0.5, t)),
    "chefercam": (tiny.clip, lambda explainer, x, t: explainer.explain(x, t, method="chefercam")),
    "lrp": (tiny.TOWERS["vit-registers"], lambda explainer, x, t: explainer.explain(x, t, method="lrp")),
    "maskclip": (tiny.clip, lambda explainer, x, t: explainer.explain(x, t, method="maskclip")),
    "inference": (tiny.clip, lambda explainer, x, t: in_inference(explainer, x, t)),
    "files": (tiny.clip, lambda explainer, x, t: explainer.explain(FILES, t)),
    "predict": (tiny.clip, lambda explainer, x, t: explainer.predict(x)),
    "doctor": (tiny.clip, lambda explainer, x, t: doctor.examine(explainer)),
}
FILES = [np.full((40 + index, 36, 3), 17 * index, np.uint8) for index in range(3)]


def in_inference(explainer, x, t):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return explainer.explain(x.clone(), t)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_leaves_nothing_behind(name):
    build, call = CALLS[name]
    model = trained(build())
    x, t = torch.randn(2, 3, 32, 32), torch.randn(2, 32)
    explainer = legrad.wrap(model, transform=transform())
    want = explainer.explain(x, t).relevance
    call(explainer, x, t)
    points = interrupts.sample(lambda: call(explainer, x, t), 6)
    before = interrupts.state(model)
    for point in points:
        where = interrupts.interrupted(lambda: call(explainer, x, t), point)
        after = interrupts.state(model)
        changed = [key for key in before if before[key] != after[key]]
        assert not changed, (point, where, changed)
    assert not any(interrupts.held_elsewhere(lock) for lock in list(state._locks.values()))
    assert not interrupts.held_elsewhere(state._fused_switch._lock)
    assert twin.distance(explainer.explain(x, t).relevance, want) < limits.FLOAT32


def test_reading_ahead_is_left_without_waiting(tmp_path):
    explainer, t = legrad.wrap(tiny.clip(), transform=transform()), torch.randn(1, 32)
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        Image.fromarray(FILES[0] + index).save(path)
    want = explainer.explain(paths, t).relevance
    for point in interrupts.sample(lambda: explainer.explain(paths, t), 8):
        interrupts.interrupted(lambda: explainer.explain(paths, t), point)
    assert twin.distance(explainer.explain(paths, t).relevance, want) < limits.FLOAT32


def test_the_next_call_clears_what_a_broken_one_left():
    model = tiny.clip()
    explainer, x, t = legrad.wrap(model), torch.randn(1, 3, 32, 32), torch.randn(1, 32)
    explainer.explain(x, t)
    left = undo.Hooks()
    left.__enter__()
    left.before(model.visual, lambda module, args, kwargs: None)
    state.attributes_set([(model.visual, "image_size", (1, 1))]).__enter__()
    explainer.explain(x, t)
    assert not model.visual._forward_pre_hooks
    assert model.visual.image_size != (1, 1)
    assert not undo._thread.borrowed


def test_giving_back_twice_is_giving_back_once():
    model = tiny.clip()
    borrowed = state.evaluation_mode(model, [(model, "training", False)])
    before = interrupts.state(model)
    with borrowed:
        assert not torch.is_grad_enabled()
    borrowed.give_back()
    assert interrupts.state(model) == before


def transforms_of_torch(explainer, t):
    from torch._subclasses.fake_tensor import FakeTensorMode

    def sum_of_map(x):
        return explainer.explain(x, t).relevance.sum()

    def fake():
        with FakeTensorMode():
            explainer.explain(torch.zeros(1, 3, 32, 32), t)

    return {
        "vmap": lambda: torch.func.vmap(sum_of_map)(torch.zeros(2, 1, 3, 32, 32)),
        "grad": lambda: torch.func.grad(sum_of_map)(torch.zeros(1, 3, 32, 32)),
        "jvp": lambda: torch.func.jvp(sum_of_map, (torch.zeros(1, 3, 32, 32),), (torch.ones(1, 3, 32, 32),)),
        "fake": fake,
    }


@pytest.mark.parametrize("name", ["vmap", "grad", "jvp", "fake"])
def test_inside_a_transform_of_torch_one_line_says_so(name):
    explainer, t = legrad.wrap(tiny.clip()), torch.randn(1, 32)
    with pytest.raises(legrad.InputError, match=r"cannot run inside .* call it outside, on plain tensors") as told:
        transforms_of_torch(explainer, t)[name]()
    assert "\n" not in str(told.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_waits_for_no_lock_of_its_parents_threads():
    model = tiny.clip()
    explainer, x, t = legrad.wrap(model), torch.randn(1, 3, 32, 32), torch.randn(1, 32)
    explainer.explain(x, t)
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with state.exclusive(explainer.anatomy.blocks[0]), state.evaluation_mode(model):
            inside.set()
            leave.wait(20)

    def hold_switch():
        state._fused_switch._lock.acquire()
        leave.wait(20)
        state._fused_switch._lock.release()

    threads = [threading.Thread(target=hold), threading.Thread(target=hold_switch)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:

            def explain():
                torch.set_num_threads(1)
                explainer.explain(x, t)
                os._exit(7)

            done = threading.Thread(target=explain, daemon=True)
            done.start()
            done.join(10)
            os._exit(8)
        _, status = os.waitpid(child, 0)
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    assert os.waitstatus_to_exitcode(status) == 7
