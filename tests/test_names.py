"""Names of files, and texts on a terminal."""

import unicodedata

import pytest

from legrad.names import fold, printable, slug


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A photo of a cow", "a-photo-of-a-cow"),
        ("../b", "b"),
        ("", "x"),
        ("!?", "x"),
        ("\u732b", "\u732b"),
        ("cafe\u0301", "caf\u00e9"),  # composed
        ("Hund & Katze", "hund-katze"),
        ("\u0915\u093f\u0924\u093e\u092c", "\u0915\u093f\u0924\u093e\u092c"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f408 cat", "\U0001f408-cat"),
        ("a\u202egnp.exe", "agnp-exe"),
        ("a\x00b\x1b[31m", "a-b-31m"),
        ("\udcff", "x"),
        ("CON", "x-con"),
        ("com1", "x-com1"),
        ("console", "console"),
    ],
)
def test_slug(text, name):
    assert slug(text) == name
    assert unicodedata.is_normalized("NFC", slug(text))


@pytest.mark.parametrize("letter", ["a", "\u732b", "e\u0301", "\u0939\u093f", "\U0001f408", "\u0301"])
def test_slugs_are_short_in_bytes_and_whole_letters(letter):
    name = slug(letter * 100_000)
    assert len(name.encode()) <= 60
    assert (unicodedata.normalize("NFC", letter) * 60).startswith(name) or name == "x"
    if letter == "\u0939\u093f":
        assert name.endswith(letter)


def test_fold():
    assert fold("A-stra\u00dfe") == fold("a-STRASSE")
    assert fold("caf\u00e9") == fold("cafe\u0301")
    assert fold("a") != fold("b")


def test_printable():
    assert printable("plain \u732b") == "plain \u732b"
    assert printable("\x1b[31mred\n\x9b\u202e\udcff") == r"\x1b[31mred\n\x9b\u202e\udcff"
