"""Hostile input of every kind: an answer, or an error of the library in one line; never a raw one, nothing changed.

The default run takes the same few examples each time. For hours of new ones:

    python -m pytest tests/test_fuzz.py --hypothesis-profile=long
"""

import functools
import inspect
import json

import numpy as np
import pytest
import torch
from helpers import hostile, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import legrad
from legrad import heads
from legrad.cli.main import app
from legrad.datasets import names
from legrad.inputs import depth, sounds
from legrad.inputs import images as image_files

COLOURS = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)


@functools.cache
def _clip():
    return legrad.wrap(tiny.clip(), tokenizer=tiny.tokenizer)


@functools.cache
def _classifier():
    import timm

    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return legrad.wrap(tiny.randomised(timm.models.VisionTransformer(num_classes=5, **small)), labels=list("abcde"))


@functools.cache
def _result():
    return _clip().explain(torch.rand(2, 3, 32, 32), ["a cow", "a bell"], keep_layers=True)


explainers = st.sampled_from([_clip, _classifier])
inputs = torch.rand(2, 3, 32, 32)


@given(explainers, hostile.images)
def test_images(make, images):
    with tiny.left_as_found(make().model):
        hostile.check_explanation(
            hostile.outcome(lambda: make().explain(images, torch.ones(5 if make is _classifier else 32)))
        )


@given(explainers, hostile.targets)
def test_targets(make, targets):
    with tiny.left_as_found(make().model):
        hostile.check_explanation(hostile.outcome(lambda: make().explain(inputs, targets)))


@given(explainers, hostile.targets)
def test_embed(make, targets):
    with tiny.left_as_found(make().model):
        hostile.outcome(lambda: make().embed(targets))


OPTIONS = (
    *("layers", "readout", "method", "size", "fit", "null_target", "null_threshold", "keep_layers", "memory"),
    *("value_range", "allow_private_urls"),
)


@given(st.dictionaries(st.sampled_from(OPTIONS), hostile.values | hostile.arrays, min_size=1, max_size=2))
def test_options(options):
    with tiny.left_as_found(_clip().model):
        hostile.check_explanation(hostile.outcome(lambda: _clip().explain(inputs, "a cow", **options)))


@given(st.sampled_from(sorted(legrad.methods.METHODS)), hostile.targets)
def test_targets_of_every_method(method, targets):
    hostile.check_explanation(hostile.outcome(lambda: _clip().explain(inputs[:1], targets, method=method)))


ANATOMY = ("tower", "run", "blocks", "image_size", "patch_size", "num_prefix_tokens", "grid", "readouts", "output")
MORE_ANATOMY = ("attentions", "explained_attentions", "attention", "route", "shape", "axes", "default_readout")


@given(st.dictionaries(st.sampled_from(ANATOMY + MORE_ANATOMY), hostile.values, min_size=1, max_size=2))
def test_anatomies(fields):
    model = tiny.clip()
    known = legrad.wrap(model).anatomy
    whole = {name: getattr(known, name) for name in ANATOMY} | {"library": "own"} | fields
    hostile.outcome(lambda: legrad.wrap(model, anatomy=legrad.ViTAnatomy(**whole)).explain(inputs, torch.ones(32)))


@given(
    st.sampled_from(["transform", "tokenizer", "anatomy", "labels", "audio_encoder"]),
    hostile.values | hostile.callables,
)
def test_wrap(argument, value):
    explainer = hostile.outcome(lambda: legrad.wrap(tiny.clip(), **{argument: value}))
    if explainer is not None:
        hostile.outcome(lambda: explainer.explain([COLOURS], "a cow"))


@given(hostile.values)
def test_load(name):
    hostile.outcome(lambda: legrad.load(name))


@given(
    st.sampled_from(["saliency", "overlay", "figure", "layer_figure", "animation"]),
    st.lists(hostile.values, max_size=3),
)
def test_views_of_results(view, arguments):
    function = getattr(_result(), view)
    result = hostile.outcome(lambda: function(*arguments[: len(inspect.signature(function).parameters)]))
    if hasattr(result, "savefig"):
        result.clear()


@given(
    st.sampled_from(["of_heads", "num_heads", "head_relevance"]), st.lists(hostile.values | hostile.arrays, max_size=2)
)
def test_heads(function, arguments):
    if function == "of_heads":
        hostile.outcome(lambda: heads.of_heads(*arguments[:1] or [None]))
    elif function == "head_relevance":
        hostile.outcome(lambda: heads.head_relevance(_clip(), *(arguments or [None]) * 2))


@given(hostile.arrays | hostile.pil_images(), hostile.values | st.tuples(hostile.numbers, hostile.numbers))
def test_value_ranges(image, value_range):
    read = hostile.outcome(lambda: image_files.read(image, value_range=depth.checked(value_range)))
    assert read is None or read.mode == "RGB"


# -- files ----------------------------------------------------------------------


@given(st.sampled_from(sorted(hostile.GOOD_IMAGES)).flatmap(lambda kind: hostile.damaged(hostile.GOOD_IMAGES[kind])))
def test_damaged_images(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "image.png"
    path.write_bytes(content)
    hostile.outcome(lambda: image_files.read(path))


@given(hostile.damaged(hostile.GOOD_SOUND))
def test_damaged_sounds(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "sound.wav"
    path.write_bytes(content)
    hostile.outcome(lambda: sounds.opened(str(path), 16000))


@given(hostile.json_texts)
def test_json_of_names(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "names.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    hostile.outcome(lambda: names.read(path))


@settings(max_examples=8)  # each of them draws figures
@given(hostile.json_texts)
def test_a_foreign_manifest(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    if hostile.outcome(lambda: _result().save(folder / "new")) is not None:
        assert json.loads((folder / "new" / "manifest.json").read_bytes())
    before = (folder / "manifest.json").read_bytes()
    if hostile.outcome(lambda: _result().save(folder)) is None:
        assert (folder / "manifest.json").read_bytes() == before


@given(hostile.json_texts, st.sampled_from(["config.json", "preprocessor_config.json", "open_clip_config.json"]))
def test_a_folder_that_is_no_model(tmp_path_factory, text, file):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    hostile.outcome(lambda: legrad.load(f"hf:{folder}"))
    hostile.outcome(lambda: legrad.load(f"open_clip:local-dir:{folder}"))


@pytest.fixture(scope="module")
def server():
    with hostile.raw_server() as running:
        yield running


@given(hostile.http_answers())
def test_answers_of_servers(server, answer):
    server.answer = answer
    hostile.outcome(lambda: image_files.read(server.url))


@given(
    st.text(max_size=20)
    | st.sampled_from(["http://", "http://[", "http://a:b@127.0.0.1:1/", "http://127.0.0.1:99999/"])
)
def test_urls(text):
    hostile.outcome(lambda: image_files.read(text if "://" in text else f"http://127.0.0.1:1/{text}"))


# -- the command line ----------------------------------------------------------------------

WORDS = ("explain", "models", "methods", "doctor", "bench", "--help", "--out", "-t", "--layers", "--zeroshot", "--size")


@given(
    st.lists(
        st.sampled_from(WORDS) | st.text(max_size=8) | st.sampled_from(["[/x]", "\x1b[31m", "-1", "nan"]), max_size=4
    )
)
def test_command_line(tmp_path_factory, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        if words[:1] == ["models"] or words[:1] == ["bench"]:
            words = [*words, "--help"]  # all of these run long or are tested elsewhere
        answer = CliRunner().invoke(app, words)
    assert answer.exception is None or isinstance(answer.exception, SystemExit | legrad.LeGradError), answer.exception
