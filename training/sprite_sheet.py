"""Draw the sprite sheet from the Noto Color Emoji font (once; the font is not needed afterwards).

``python -m training.sprite_sheet /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf`` rewrites the sheet that
``legrad.embedded`` ships.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from legrad.embedded.concepts import CONCEPTS
from legrad.embedded.sprites import COLUMNS, SHEET, SPRITE_SIZE

_FONT_SIZE = 109  # the only size of the font's embedded bitmaps (136 x 128)


def draw_sheet(font_path: str | Path) -> Image.Image:
    """All concepts as one RGBA image, ``COLUMNS`` per row, each trimmed, centred and scaled to its cell.

    Args:
        font_path: ``NotoColorEmoji.ttf`` (bitmap version).

    Returns:
        RGBA image of ``COLUMNS * SPRITE_SIZE`` pixels width.

    Raises:
        ValueError: the font draws nothing for a concept.
    """
    font = ImageFont.truetype(str(font_path), _FONT_SIZE)
    rows = -(-len(CONCEPTS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE_SIZE, rows * SPRITE_SIZE))
    for index, concept in enumerate(CONCEPTS):
        canvas = Image.new("RGBA", (200, 200))
        draw = ImageDraw.Draw(canvas)
        # the variation selector only asks for the colour form, which is the font's sole one
        draw.text((20, 20), concept.emoji.replace("\ufe0f", ""), font=font, embedded_color=True)
        box = canvas.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
        if box is None:
            raise ValueError(f"the font draws nothing for {concept.name!r} ({concept.emoji!r})")
        glyph = canvas.crop(box)
        factor = SPRITE_SIZE / max(glyph.size)
        glyph = glyph.resize(
            (max(1, round(glyph.width * factor)), max(1, round(glyph.height * factor))), Image.Resampling.LANCZOS
        )
        row, column = divmod(index, COLUMNS)
        sheet.paste(
            glyph,
            (
                column * SPRITE_SIZE + (SPRITE_SIZE - glyph.width) // 2,
                row * SPRITE_SIZE + (SPRITE_SIZE - glyph.height) // 2,
            ),
        )
    return sheet


if __name__ == "__main__":
    draw_sheet(sys.argv[1]).save(SHEET, optimize=True)
