"""Which installed fonts can draw a text; matplotlib's own has no Chinese, no Devanagari and few emoji."""

import functools
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# fonts that have a box for every letter, and those of TeX, which have other glyphs where letters should be
_NO_FONTS = (
    *("last resort", "lastresort", "adobe blank", "fallback", "stixnonunicode", "stixsize"),
    *("cmb10", "cmex", "cmmi", "cmr10", "cmss", "cmsy", "cmtt"),
)


def without_joiners(text: str) -> str:
    """A text without characters that no font draws: joiners, marks of direction, variants of emoji."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")


def families(text: str) -> list[str] | None:
    """The font families that draw a text, matplotlib's own first; None if some letter is in no installed font."""
    import matplotlib

    families = list(matplotlib.rcParams["font.family"])
    if text.isascii():
        return families
    missing = _letters(text).difference(*map(_coverage, families))
    others = _other_families() if missing else {}
    while missing:
        best = max(others, key=lambda family: len(missing & _charmap(others[family])), default=None)
        if best is None or not missing & _charmap(others[best]):
            return None
        families.append(best)
        missing -= _charmap(others[best])
    return families


def fit(figure: "Figure") -> None:
    """Give every text of a figure fonts that have its letters; letters that are in no font become question marks."""
    from matplotlib.text import Text

    for artist in figure.findobj(Text):
        assert isinstance(artist, Text)
        text = artist.get_text()
        if text.isascii() or not _letters(text).difference(*map(_coverage, artist.get_fontfamily())):
            continue
        fonts = families(text)
        if fonts is None:
            text = "".join("?" if families(letter) is None else letter for letter in text)
            artist.set_text(text)
            fonts = families(text)
        if fonts is not None:
            artist.set_fontfamily(fonts)


def _letters(text: str) -> set[int]:
    return {ord(letter) for letter in text if not letter.isspace()}


def _other_families() -> dict[str, str]:
    """Installed families that have a regular font -> its file, in the order of matplotlib's list."""
    from matplotlib.font_manager import fontManager

    return {
        font.name: font.fname
        for font in reversed(fontManager.ttflist)
        if font.style == "normal"
        and font.weight in (400, "normal", "regular")
        and not any(word in font.name.lower() for word in _NO_FONTS)
    }


def _coverage(family: str) -> frozenset[int]:
    """The letters of the font that matplotlib takes for a family."""
    from matplotlib.font_manager import FontProperties, fontManager

    path = _other_families().get(family)
    try:
        return _charmap(path or str(fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False)))
    except ValueError:  # not installed
        return frozenset()


@functools.cache
def _charmap(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fonts that are damaged
            font: Any = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, UnicodeError):  # not a font that can be drawn with
        return frozenset()
