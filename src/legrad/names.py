"""Texts that become names: of files on any disk, and of what a terminal or a figure shows."""

import re
import unicodedata

_LONGEST = 60  # bytes: two of them, a number and an ending fit into the shortest limits of file systems (143)
# Windows opens devices under these names, whatever their ending
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin", "conout"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"]
)
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def slug(text: str, longest: int = _LONGEST) -> str:
    """A part of a file name that is safe on every disk and readable in every script.

    Args:
        text: anything.
        longest: in bytes of UTF-8.

    Returns:
        Letters, digits and emoji in lower case, composed (NFC), with dashes for everything else; never empty, and no
        name that Windows keeps for itself. Different texts may give one slug, see ``fold``.
    """
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    name = re.sub("-+", "-", "".join(map(_safe, composed))).strip("-")
    name = _cut(name, longest).strip("-") or "x"
    return f"x-{name}" if name in _DEVICES else name


def _safe(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind == "Cf":  # joiners and marks of direction: nobody sees them
        return ""
    return letter if kind[0] in "LMN" or (kind in ("So", "Sk") and not letter.isascii()) else "-"


def _cut(name: str, longest: int) -> str:
    """At most so many bytes; no letter loses its accents."""
    name = name[: longest + 1]
    end = len(name)
    while end and (
        len(name[:end].encode()) > longest or (end < len(name) and unicodedata.category(name[end])[0] == "M")
    ):
        end -= 1
    return name[:end]


def fold(name: str) -> str:
    """Equal for names that are one file on a disk that ignores case or the way letters are composed."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def printable(text: str) -> str:
    r"""A text in one line that cannot steer a terminal: control characters become escapes such as ``\x1b``."""
    return "".join(letter.encode("unicode_escape").decode() if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
