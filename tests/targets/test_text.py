"""The text tower: every text once, in batches that fit into memory, very long texts told soon, NaN named."""

import pytest
import torch
import torch.nn.functional as F
from helpers import limits, tiny

import legrad
from legrad.core.memory import texts_per_forward
from legrad.targets import text

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly depend")
TEXTS = [f"number {index}" for index in range(20)]


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


def counted(model, tokenizer=tiny.tokenizer):
    """An explainer, and the numbers of texts that its tokenizer and its text tower got."""
    tokenized, encoded = [], []
    original = model.encode_text
    model.encode_text = lambda ids, *rest, **options: (encoded.append(len(ids)), original(ids, *rest, **options))[1]
    return (
        legrad.wrap(model, tokenizer=lambda texts: (tokenized.append(len(texts)), tokenizer(texts))[1]),
        tokenized,
        encoded,
    )


def test_batches_fit_into_memory(x, monkeypatch):
    explainer, _, encoded = counted(tiny.clip())
    whole = explainer.explain(x, TEXTS)
    assert encoded == [20]
    monkeypatch.setattr(text, "texts_per_forward", lambda *_: 8)
    found = explainer.explain(x, TEXTS)
    assert encoded[1:] == [8, 8, 4]
    assert limits.close(found.relevance, whole.relevance, maps=True)
    assert found.labels == whole.labels


def test_the_estimate_follows_memory_and_the_text_tower():
    small, large = (legrad.wrap(tiny.clip(text={"width": width})) for width in (32, 256))

    def texts(explainer, memory):
        return texts_per_forward(explainer.model, explainer.anatomy.tower, 77, memory)

    assert 1 == texts(small, 1) < texts(large, 1 << 26) < texts(large, 1 << 27) < texts(small, 1 << 27)
    assert texts(small, 1 << 40) == 256
    # measured: 0.9 MB for each text of 77 tokens and a width of 256
    assert texts(large, 200 << 20) * 0.9e6 < 200 << 20


def test_a_prompt_is_encoded_once_for_all_targets_and_images(x):
    explainer, _, encoded = counted(tiny.clip())
    cow = legrad.Prompts("cow", ["a {}", "the {}"])
    explainer.explain(x, [["a cow", cow, legrad.Contrast("a cow", "the cow")], ["a cow", "a dog"]], null_target="a cow")
    assert encoded == [3]
    encoded.clear()
    explainer.explain(x, [legrad.ZeroShot(["cow", "dog"], ["a {}"]), "a cow", "a cow"], null_target="a")
    assert encoded == [2, 1]


def first_letters(texts):
    """Eight ids of the first letters; it must not see more of a text than it can use."""
    assert max(map(len, texts)) <= 30_000
    ids = torch.zeros(len(texts), 8, dtype=torch.long)
    for row, letters in enumerate(texts):
        codes = [1 + ord(letter) % 60 for letter in " ".join(letters.split())[:7]]
        ids[row, : len(codes)] = torch.tensor(codes)
        ids[row, len(codes)] = 63
    return ids


def test_many_long_texts_are_tokenized_few_times(x):
    explainer, tokenized, _ = counted(tiny.clip(), first_letters)
    with pytest.warns(UserWarning, match="context.*19 more texts"):
        explainer.explain(x, [f"{name} is a word of which no letter fits the row" for name in TEXTS])
    assert len(tokenized) <= 4


@pytest.mark.parametrize("long", ["x" * 1_000_000, "cow " * 250_000])
def test_a_very_long_text_is_told_soon(x, long):
    explainer = legrad.wrap(tiny.clip(), tokenizer=first_letters)
    with pytest.warns(UserWarning, match="longer than the model's context"):
        found = explainer.explain(x, [long, "a dog"])
    assert found.labels[0] == [long, "a dog"]
    with pytest.warns(UserWarning, match="longer than the model's context"):
        beginning = explainer.explain(x, long[:1000])
    assert limits.close(found.relevance[:, 0], beginning.relevance[:, 0], maps=True)


def test_a_long_text_that_fits_is_read_to_its_end(x):
    def without_spaces(texts):
        return tiny.tokenizer(["".join(text.split()) for text in texts])

    explainer = legrad.wrap(tiny.clip(), tokenizer=without_spaces)
    found, expected = explainer.explain(x, "c" + " " * 50_000 + "ow"), explainer.explain(x, "cow")
    assert torch.equal(found.relevance, expected.relevance)


def test_a_text_tower_that_runs_out_gets_fewer_at_once(x):
    model = tiny.clip()
    original, sizes = model.encode_text, []

    def small(ids, *rest, **options):
        sizes.append(len(ids))
        if len(ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(ids, *rest, **options)

    expected = F.normalize(original(tiny.tokenizer(TEXTS)), dim=-1).detach()
    model.encode_text = small
    targets = legrad.wrap(model, tokenizer=tiny.tokenizer).embed(TEXTS)
    assert sizes == [20, 10, 5, 5, 5, 5]
    assert limits.close(targets.embeddings, expected)


@pytest.mark.parametrize("weight", ["text_projection", "transformer.resblocks.0.mlp.c_fc.weight"])
def test_nan_of_the_text_tower_is_named(x, weight):
    model = tiny.clip()
    with torch.no_grad():
        dict(model.named_parameters())[weight][0, 0] = torch.nan
    with pytest.raises(legrad.InputError, match=f"text embedding of 'a cow' holds NaN.*weight {weight}"):
        legrad.wrap(model, tokenizer=tiny.tokenizer).explain(x, "a cow")


@pytest.mark.parametrize("wrong", [None, torch.zeros(3, 32), torch.zeros(32), [1.0]])
def test_text_towers_that_give_something_else(x, wrong):
    model = tiny.clip()
    model.encode_text = lambda *_, **__: wrong
    with pytest.raises(legrad.InputError, match=r"for 1 texts, expected \(texts, features\)"):
        legrad.wrap(model, tokenizer=tiny.tokenizer).explain(x, "a cow")
