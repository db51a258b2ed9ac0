"""Images are prepared by threads, in windows: the answer is that of one call, and nothing goes on after an error."""

import functools
import threading
import time
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import limits, tiny
from PIL import Image

import legrad
from legrad.core import streaming
from legrad.inputs import geometry, prepare


@pytest.fixture
def files(tmp_path):
    """Seven images of different sizes and content."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(7)]
    for index, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (40 + index, 60, 3), np.uint8)).save(path)
    return paths


def transform():
    from torchvision import transforms

    return transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])


def windowed(count):
    """As on a device of its own, where ``count`` images go in at once."""
    whole = prepare.InputQueue.windows
    return mock.patch.object(prepare.InputQueue, "windows", lambda self, _: whole(self, count))


def job(number, log=None, seconds=0.0, error=None):
    def make():
        time.sleep(seconds)
        if log is not None:
            log.append(number)
        if error:
            raise error
        return prepare.Input(torch.zeros(1), geometry.Placement((1, 1), (1, 1)), None, str(number))

    return make


def test_windows_come_in_order_though_the_first_image_is_the_slowest():
    sources = prepare.InputQueue([job(index, seconds=0.02 * (index == 0)) for index in range(7)])
    assert [[one.name for one in window] for window in sources.windows(3)] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert [len(window) for window in sources.windows()] == [7]


def test_the_first_windows_are_small():
    """The model has something to do while the other images are read."""
    sources = prepare.InputQueue([job(index) for index in range(200)])
    with mock.patch.object(prepare, "_FIRST_WINDOW", 8):
        assert [len(window) for window in sources.windows(64)] == [8, 16, 32, 64, 64, 16]
        assert [len(window) for window in sources.windows()] == [200]


def test_the_next_window_is_prepared_while_this_one_is_used():
    done = threading.Event()
    last = functools.partial(lambda: (done.set(), job(3)())[1])
    windows = prepare.InputQueue([job(0), job(1), job(2), last]).windows(2)
    next(windows)
    assert done.wait(10)
    assert [one.name for one in next(windows)] == ["2", "3"]


def test_what_lies_behind_an_unreadable_image_is_given_up():
    log = []
    behind = [job(index, log, seconds=0.005) for index in range(200)]
    with pytest.raises(legrad.InputError, match="broken"):
        list(prepare.InputQueue([job(0, error=legrad.InputError("broken")), *behind]).windows(2))
    assert len(log) < 100
    assert not [one for one in threading.enumerate() if one.name.startswith("legrad-images")]


def test_windows_give_what_one_call_gives(files):
    explainer = legrad.wrap(tiny.clip(), transform=transform())
    targets = [[torch.randn(32) for _ in range(2)] for _ in files]
    alone = explainer.explain(files, targets)
    with windowed(2):
        together = explainer.explain(files, targets)
    assert together.names == alone.names == [str(path) for path in files]
    assert [one.shape for one in together.images] == [(40 + index, 60, 3) for index in range(7)]
    assert limits.close(together.relevance, alone.relevance, maps=True)
    assert limits.close(together.scores, alone.scores)


def test_one_warning_of_little_memory_for_all_windows(files):
    explainer = legrad.wrap(tiny.clip(), transform=transform())
    whole, sizes = streaming.explain_batch, []

    def small(anatomy, batch, *rest, **options):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(anatomy, batch, *rest, **options)

    patched = mock.patch("legrad.batches.explain_batch", small)
    with windowed(3), patched, pytest.warns(UserWarning, match="out of memory") as told:
        explainer.explain(files, torch.randn(1, 32))
    assert sum("out of memory" in str(one.message) for one in told) == 1
    assert sizes == [3, 1, 1, 1, 1, 1, 1, 1]


def test_a_missing_file_in_a_late_window_is_told(files, tmp_path):
    explainer = legrad.wrap(tiny.clip(), transform=transform())
    with windowed(2), pytest.raises(legrad.InputError, match="no such image"):
        explainer.explain([*files, tmp_path / "gone.png"], torch.randn(1, 32))


def test_one_lazily_opened_image_may_come_many_times(files):
    explainer = legrad.wrap(tiny.clip(), transform=transform())
    with Image.open(files[0]) as lazy:
        many = explainer.explain([lazy] * 12, torch.randn(1, 32))
    assert torch.equal(many.relevance, many.relevance[:1].expand_as(many.relevance))
