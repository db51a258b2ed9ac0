"""Warnings point at the line of the user, wherever inside the package something was noticed."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from helpers import handmade, tiny
from PIL import Image
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

import legrad
from legrad.errors import user_line, warn, warnings_at


@pytest.fixture(scope="module")
def explainer():
    transform = Compose([Resize((32, 32)), ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
    return legrad.wrap(tiny.clip(), transform=transform, tokenizer=tiny.tokenizer)


def animation(path):
    first, *others = [Image.effect_noise((32, 32), spread).convert("RGB") for spread in (20, 60)]
    first.save(path, save_all=True, append_images=others)
    return path


def assert_at_its_line(call, match, category=UserWarning):
    """``call`` is a function of one line, which is the user's."""
    with pytest.warns(category, match=match) as told:
        call()
    places = {(one.filename, one.lineno) for one in told if re.search(match, str(one.message))}
    assert places == {(__file__, call.__code__.co_firstlineno)}


def test_of_arguments_and_names(explainer):
    x = torch.randn(2, 3, 32, 32)
    anatomy, explanation = explainer.anatomy, handmade.explanation()
    assert_at_its_line(lambda: legrad.heads.count(anatomy), "called num_heads now", DeprecationWarning)
    assert_at_its_line(lambda: legrad.Hearing, "legrad.Hearing is called", DeprecationWarning)
    assert_at_its_line(lambda: explanation.pictures, "Explanation.pictures is called", DeprecationWarning)
    assert_at_its_line(lambda: explainer.explain(x, lambda f: f.sum(-1) * 0), "maps are flat", legrad.FlatMapWarning)


def test_of_files_that_threads_read(explainer, tmp_path):
    paths = [animation(tmp_path / f"{name}.gif") for name in "abc"]
    assert_at_its_line(lambda: explainer.prepare(paths), "holds 2 frames")
    assert_at_its_line(lambda: explainer.prepare(paths[0]), "holds 2 frames")


def test_another_line_can_be_named():
    line = user_line()
    assert (line.filename, line.module) == (__file__, __name__)
    assert line.lineno == inspect.currentframe().f_lineno - 2
    with pytest.warns(UserWarning, match="mine") as told, warnings_at(line):
        warn("mine")
    assert (told[0].filename, told[0].lineno) == (__file__, line.lineno)


def test_nothing_counts_frames():
    """Which the next change of the code would make wrong."""
    sources = Path(legrad.__file__).parent.rglob("*.py")
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    assert [name for name, text in texts.items() if "stacklevel" in text or "warnings.warn(" in text] == []


def test_a_message_is_one_line_that_ends():
    assert str(legrad.InputError("two\nlines")) == "two lines"
    message = str(legrad.InputError(f"got {'x' * 100_000}; give less"))
    assert len(message) == 1500
    assert message.startswith("got xxx")
    assert message.endswith("x; give less")
    assert str(legrad.InputError("y" * 1500)) == "y" * 1500
