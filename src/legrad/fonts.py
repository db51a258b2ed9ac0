"""Which installed fonts can draw a text, and how wide it is; matplotlib's own has no Chinese and few emoji."""

import functools
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

# fonts that have a box for every letter, and those of TeX, which have other glyphs where letters should be
_NO_FONTS = (
    *("last resort", "lastresort", "adobe blank", "fallback", "stixnonunicode", "stixsize"),
    *("cmb10", "cmex", "cmmi", "cmr10", "cmss", "cmsy", "cmtt"),
)

_MOST_LINES = 12  # of a title
_NEVER_FIRST = "，。、；：？！）」』】》,.;:?!)]}…"  # of a line


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


def text_height(text: str, font: float) -> float:
    """Inches, with a little room below."""
    return (text.count("\n") + 1) * font * 1.34 / 72 + 0.02 if text else 0.02


@functools.cache
def _renderer() -> "RendererAgg":
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, 720)


@functools.lru_cache(4096)
def width(text: str, font: float, families: tuple[str, ...] | None = None) -> float:
    """Inches of a line in some families, None for matplotlib's own."""
    from matplotlib.font_manager import FontProperties

    properties = FontProperties(family=None if families is None else list(families), size=font)
    pixels, _, _ = _renderer().get_text_width_height_descent(text, properties, False)
    return float(pixels) / 720


def wrapped(lines: Sequence[str], most: float, font: float) -> str:
    """Lines in pieces no wider than ``most`` inches; of a first line without end only its beginning."""
    parts: list[list[str]] = []
    for line in lines:
        names = None if line.isascii() else families(line)
        fits = functools.partial(_fits, most=0.95 * most, font=font, families=None if names is None else tuple(names))
        parts.append(_broken(line, fits))
    if parts and len(parts[0]) > _MOST_LINES:
        parts[0] = [*parts[0][: _MOST_LINES - 1], parts[0][_MOST_LINES - 1][:-1] + "…"]
    return "\n".join(line for part in parts for line in part)


def _fits(text: str, most: float, font: float, families: tuple[str, ...] | None) -> bool:
    return width(text, font, families) <= most


def _broken(line: str, fits: Callable[[str], bool]) -> list[str]:
    """A line in pieces that fit: broken at spaces, between letters of scripts without spaces, or anywhere."""
    if fits(line):
        return [line]
    result, current = [], ""
    for piece in _pieces(line):
        if not current or fits((current + piece).rstrip()):
            current += piece
        else:
            result.append(current.rstrip())
            current = piece.lstrip()
        while len(current) > 1 and not fits(current.rstrip()):
            cut = next((end for end in range(len(current) - 1, 1, -1) if fits(current[:end])), 1)
            result.append(current[:cut])
            current = current[cut:]
    return [*result, current.rstrip()] if current.strip() else result


def _pieces(line: str) -> list[str]:
    """Where a line may be broken: behind spaces and dashes, and around wide letters."""
    pieces: list[str] = []
    for letter in line:
        last = pieces[-1][-1] if pieces else ""
        wide = unicodedata.east_asian_width(letter) in "WF" or (last and unicodedata.east_asian_width(last) in "WF")
        if not last or ((last in " -/_" or wide) and letter != " " and letter not in _NEVER_FIRST):
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces
