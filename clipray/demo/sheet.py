"""The contact sheet: queries on the left, their hits beside them, as one picture.

Numbers do not show a person whether a search is good; this does. Where queries and hits come
from is not known here.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipray import images

TILE = 112  # pixels a side
LABEL = 42  # pixels of height under a tile
GAP = 10
QUERY_WIDTH = 190
INK, GREY, PAPER, FRAME = (24, 24, 27), (113, 113, 122), (255, 255, 255), (212, 212, 216)


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture, or words where there is none, with a line below."""

    label: str
    image: bytes | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A query and its hits, best first."""

    kind: str
    query: Tile
    hits: tuple[Tile, ...]


def write_sheet(path: Path, title: str, rows: Sequence[Row], note: str) -> None:
    """Draw the rows to a PNG; `note` stands at the bottom, such as a licence."""
    height = TILE + LABEL + GAP
    most = max(len(row.hits) for row in rows)
    width = GAP + QUERY_WIDTH + most * (TILE + GAP) + GAP
    canvas = Image.new("RGB", (width, 60 + len(rows) * height + 40), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, 18), title, INK, _font(22))
    for number, row in enumerate(rows):
        _draw_row(canvas, draw, row, 60 + number * height)
    draw.text((GAP, canvas.height - 28), note, GREY, _font(13))
    written = BytesIO()
    canvas.save(written, "PNG")
    path.write_bytes(written.getvalue())


def _draw_row(canvas: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    draw.line((GAP, top - GAP // 2, canvas.width - GAP, top - GAP // 2), FRAME)
    draw.text((GAP, top + 2), row.kind, GREY, _font(13))
    if row.query.image:
        side = TILE - 24
        canvas.paste(_picture(row.query.image, side), (GAP, top + 24))
        _draw_words(draw, row.query.label, (GAP, top + TILE + 2), QUERY_WIDTH, _font(13))
    else:
        _draw_words(draw, f"“{row.query.label}”", (GAP, top + 28), QUERY_WIDTH - GAP, _font(18))
    for place, hit in enumerate(row.hits):
        _draw_hit(canvas, draw, hit, (GAP + QUERY_WIDTH + place * (TILE + GAP), top))


def _draw_hit(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, hit: Tile, corner: tuple[int, int]
) -> None:
    left, top = corner
    score, _, words = hit.label.partition("\n")
    if hit.image:
        canvas.paste(_picture(hit.image, TILE), corner)
        draw.text((left, top + TILE + 1), score, GREY, _font(12))
        draw.text((left, top + TILE + 16), _fit(words, TILE, _font(12)), INK, _font(12))
        return
    draw.rectangle((left, top, left + TILE, top + TILE), outline=FRAME)
    draw.text((left + 8, top + 6), score, GREY, _font(12))
    _draw_words(draw, words, (left + 8, top + 26), TILE - 12, _font(15))


def _picture(data: bytes, side: int) -> Image.Image:
    picture = images.decode(data)
    picture.thumbnail((side, side))
    tile = Image.new("RGB", (side, side), PAPER)
    tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return tile


def _draw_words(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[int, int],
    width: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    columns = max(4, int(width / font.getlength("n")))
    draw.multiline_text(corner, "\n".join(textwrap.wrap(text, columns)[:4]), INK, font, spacing=3)


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101  Pillow ships one for any size
    return font
