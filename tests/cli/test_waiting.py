"""What a terminal shows while a command works."""

import io

import pytest
from rich.console import Console

import legrad
from legrad import stages
from legrad.cli import consoles, waiting


@pytest.fixture
def terminal(monkeypatch):
    """What is written to a terminal."""
    text = io.StringIO()
    monkeypatch.setattr(waiting, "stderr", Console(file=text, force_terminal=True, width=80))
    return text


def places(text, *words):
    """Where each word is for the first time after the one before it."""
    found, start = [], 0
    for word in words:
        start = text.index(word, start)
        found.append(start)
    return found


def test_every_stage_is_shown(run, terminal):
    code, out, err = run("explain", "-t", "a dog")
    assert code == 0
    places(terminal.getvalue(), "loading", "checking", "explaining", "drawing")
    assert "loading" not in out + err


def test_nothing_is_shown_elsewhere(run):
    code, out, err = run("explain", "-t", "a dog")
    assert (code, err) == (0, "")
    for stage in ("loading", "checking", "drawing"):
        assert stage not in out


def test_the_line_is_gone_before_results_are_printed(run, terminal, monkeypatch):
    printed = []
    monkeypatch.setattr(consoles.console, "print", lambda *_, **__: printed.append(waiting.spinner.is_shown))
    run("explain", "-t", "a dog")
    assert printed
    assert not any(printed)


@pytest.mark.parametrize("command", [["explain", "nothing.png", "-t", "x"], ["doctor", "nonsense"]])
def test_it_ends_with_an_error(run, terminal, command):
    code, _, err = run(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert "loading" in terminal.getvalue()
    assert not waiting.spinner.is_shown


def test_it_is_there_before_arguments_are_read(run, terminal):
    assert run("explain", "--nonsense")[0] == 2
    assert "loading" in terminal.getvalue()
    assert not waiting.spinner.is_shown


def test_help_needs_none(run, terminal):
    for command in ("explain", "models", "doctor"):
        assert run(command, "--help")[0] == 0
    assert terminal.getvalue() == ""


def test_it_ends_with_an_interrupt(run, terminal, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(legrad, "load", stop)
    assert run("explain", "-t", "a dog")[0] == 130
    assert not waiting.spinner.is_shown


def test_how_far_of_many_images(terminal):
    spinner = waiting.Spinner()
    spinner.start("loading")
    assert "/" not in terminal.getvalue()
    spinner.expect(3)
    spinner.advance(1)
    spinner.tell("explaining")
    assert "1/3" in terminal.getvalue()
    spinner.stop()
    spinner.stop()  # twice is no error


def test_stages_are_told_to_who_listens():
    heard = []
    stages.tell("before")
    with stages.heard_by(heard.append):
        stages.tell("inside")
    stages.tell("behind")
    assert heard == ["inside"]
