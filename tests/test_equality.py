"""Records that hold tensors can be compared, searched for and kept in sets."""

import numpy as np
import pytest
import torch
from helpers import tiny

import legrad
from legrad.core.score import Direction
from legrad.datasets import Sample
from legrad.embedded import scenes


def score(feature):
    return feature.sum(-1)


# how to make a record, and others that differ from it
RECORDS = {
    "prompts": (lambda: legrad.Prompts("cow", ["a {}", "the {}"]), [legrad.Prompts("cow", ["a {}"])]),
    "zeroshot": (lambda: legrad.ZeroShot(["cow", "pig"]), [legrad.ZeroShot(["cow"])]),
    "similar": (
        lambda: legrad.Similar(np.zeros((2, 2, 3), np.uint8)),
        [legrad.Similar(np.ones((2, 2, 3), np.uint8)), legrad.Similar("a.png"), legrad.Similar(torch.zeros(2, 2, 3))],
    ),
    "audio": (lambda: legrad.Audio(np.zeros(9), 8000), [legrad.Audio(np.zeros(8), 8000), legrad.Audio(np.zeros(9))]),
    "contrast": (
        lambda: legrad.Contrast(torch.ones(4), "a cow"),
        [legrad.Contrast(torch.zeros(4), "a cow"), legrad.Contrast("a cow", torch.ones(4)), legrad.Contrast(1, 2)],
    ),
    "target": (lambda: legrad.Target(score), [legrad.Target(score, "normalized")]),
    "direction": (
        lambda: Direction("a", torch.ones(1, 4)),
        [Direction("b", torch.ones(1, 4)), Direction("a", torch.ones(1, 5)), Direction("a", torch.ones(1, 4), True)],
    ),
    "embedded targets": (
        lambda: legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer).embed(["a cow", "a pig"]),
        [legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer).embed(["a cow"])],
    ),
    "scene": (lambda: next(iter(scenes(1, seed=1))), [next(iter(scenes(1, seed=2)))]),
}


@pytest.mark.parametrize("name", RECORDS)
def test_equal_by_value(name):
    make, others = RECORDS[name]
    one, same = make(), make()
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1
    assert all(one != other for other in others)
    assert one != name
    assert same in [*others, one]
    assert one not in others


def test_samples_are_equal_to_themselves():
    one = Sample("a", None, masks={"cow": np.ones((2, 2), bool)})
    assert one in [Sample("a", None), one]
    assert len({one, Sample("a", None)}) == 2
