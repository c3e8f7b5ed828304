"""The queries of the demo, asked over HTTP: text→image, image→image and image→text."""

import statistics
import time
from collections.abc import Iterator, Sequence
from io import BytesIO

from PIL import ImageOps

from clipray import images
from clipray.client import Client, Found
from clipray.demo.sheet import Row, Tile
from clipray.matches import Match

INDEX = "emoji"
HITS = 6
TEXTS = (
    "red heart",
    "snowman",
    "slice of pizza",
    "smiling face with sunglasses",
    "black cat",
    "rocket",
    "soccer ball",
    "green apple",
)
PICTURES = ("octopus", "bicycle", "crying face", "house with garden")
TIMED = 200


def tour(client: Client) -> list[Row]:
    """Ask all queries; the rows of a table and of a contact sheet."""
    return [*_by_text(client), *_by_image(client)]


def table(rows: Sequence[Row]) -> str:
    """The queries with the captions and scores of their best hits."""
    lines = []
    for row in rows:
        hits = (hit.label.replace("\n", " ") for hit in row.hits[:4])
        lines.append(f"{row.kind:<14}  {row.query.label:<30}  {' | '.join(hits)}")
    return "\n".join(lines)


def search_p50_ms(client: Client, texts: Sequence[str]) -> float:
    """Median of the time that a text query takes over HTTP, one at a time, in milliseconds."""
    taken = []
    for text in texts[:TIMED]:
        began = time.perf_counter()
        client.search(text, k=10)
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def _by_text(client: Client) -> Iterator[Row]:
    for text in TEXTS:
        found = client.search(text, k=HITS)
        yield Row("text to image", Tile(text), _picture_tiles(client, found))


def _by_image(client: Client) -> Iterator[Row]:
    for name in PICTURES:
        (first, *_) = client.search(name, k=1).matches
        # Mirrored, so that it is not simply a row of the index.
        picture = _mirrored(client.picture(INDEX, first.id))
        query = Tile(f"{first.columns['caption']}, mirrored", picture)
        alike = client.search(image=picture, k=HITS)
        yield Row("image to image", query, _picture_tiles(client, alike))
        words = client.search(image=picture, k=HITS, modality="text")
        yield Row("image to text", query, tuple(Tile(_label(m)) for m in words.matches))


def _picture_tiles(client: Client, found: Found) -> tuple[Tile, ...]:
    return tuple(Tile(_label(match), client.picture(INDEX, match.id)) for match in found.matches)


def _label(match: Match) -> str:
    return f"{match.score:.2f}\n{match.columns['caption']}"


def _mirrored(data: bytes) -> bytes:
    written = BytesIO()
    ImageOps.mirror(images.decode(data)).save(written, "PNG")
    return written.getvalue()
