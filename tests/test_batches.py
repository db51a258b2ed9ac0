"""Memory of a whole call: windows of images, originals that are read again, layers merged as they come."""

import pickle
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import limits, tiny
from PIL import Image

import legrad
from legrad import batches
from legrad.inputs import images, originals, prepare


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (40 + index, 60, 3), np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def explainer():
    from torchvision import transforms

    transform = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])
    return legrad.wrap(tiny.clip(), transform=transform)


def test_originals_beyond_the_memory_are_read_again(explainer, files):
    target = torch.randn(32)
    whole, small = explainer.explain(files, target), explainer.explain(files, target, memory=60_000)
    assert isinstance(whole.images, list)
    assert isinstance(small.images, originals.Originals)
    assert limits.close(small.relevance, whole.relevance, maps=True)
    for index in range(5):
        assert np.array_equal(small.images[index], whole.images[index])
        assert np.array_equal(small.overlay(index), whole.overlay(index))
    assert [image.shape for image in small.images[1:3]] == [(41, 60, 3), (42, 60, 3)]
    copy = pickle.loads(pickle.dumps(small))
    assert np.array_equal(copy.images[4], whole.images[4])


def test_an_original_is_read_once_for_all_its_overlays(explainer, files):
    small = explainer.explain(files, torch.randn(3, 32), memory=4)
    with mock.patch.object(originals.ImageFile, "array", autospec=True, side_effect=originals.ImageFile.array) as read:
        small.figure(0)
        for target in range(3):
            small.overlay(0, target)
    assert read.call_count == 1


def test_a_file_that_is_gone_or_changed_is_told(explainer, files):
    small = explainer.explain(files, torch.randn(32), memory=4)
    shutil.copy(files[1], files[0])
    files[2].unlink()
    for index, change in ((0, "was changed"), (2, "is gone")):
        with pytest.raises(legrad.InputError, match=rf"{files[index].name} {change} since it was explained"):
            small.overlay(index)
    small.overlay(1)


def test_images_in_memory_are_kept(explainer, files):
    opened = [images.read(path) for path in files]
    assert isinstance(explainer.explain(opened, torch.randn(32), memory=4).images, list)


def test_two_windows_are_alive_at_most(files):
    made, used = [], []

    def job(index):
        def make():
            made.append(index)
            return index

        return make

    for window in prepare.InputQueue([job(index) for index in range(30)]).windows(4):
        used += window
        assert len(made) <= len(used) + 4
    assert used == list(range(30))


def test_inputs_are_given_up_once_they_are_explained(explainer, files):
    windows = prepare.InputQueue.windows
    with mock.patch.object(prepare.InputQueue, "windows", lambda self, _: windows(self, 2)):
        sizes = []
        original = batches.Question.results

        def results(self, anatomy, inputs, members, shortcuts):
            sizes.append(sum(item.tensor.numel() > 0 for item in inputs))
            yield from original(self, anatomy, inputs, members, shortcuts)

        with mock.patch.object(batches.Question, "results", results):
            explainer.explain(files, torch.randn(32))
    assert max(sizes) == 2
    inputs = explainer.prepare(files)
    explainer.explain(inputs, torch.randn(32))
    assert inputs.tensor.shape == (5, 3, 32, 32)


def test_layers_are_merged_as_they_come(explainer, files):
    question, kept = batches.Question._one_pass, []

    def one_pass(self, *arguments):
        result = question(self, *arguments)
        kept.append(result.per_layer)
        return result

    with mock.patch.object(batches.Question, "_one_pass", one_pass):
        merged = explainer.explain(files, torch.randn(2, 32), null_target=torch.randn(32))
        layered = explainer.explain(files, torch.randn(2, 32), keep_layers=True)
    assert kept[0] is None
    assert kept[-1] is not None
    assert merged.layer_relevance is None
    assert limits.close(layered.layer_relevance.mean(2), layered.relevance, maps=True)
