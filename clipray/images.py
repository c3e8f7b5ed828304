"""Bytes to pixels, the same way when embedding, training and serving.

The rules: formats by content from an allow-list, bounded sizes, EXIF orientation applied,
transparency on white, 16 bits scaled to 8, first frame. Resizing for a model is not done here.
"""

import re
from io import BytesIO
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from clipray.errors import ImageError

MAX_BYTES = 20 << 20
MAX_PIXELS = 50_000_000
MAX_ASPECT = 100  # 20000 x 1 took 10 s and 5 GB to resize to a short side of 224
MAX_SCANS = 100  # of a JPEG; ten are usual, and each goes over all pixels for a few bytes of file
MAX_STRETCH = 1e-3  # of a JPEG that is decoded at a fraction of its size
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow reads MPO as a JPEG
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
OTHER_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
)  # of phones and cameras; Pillow alone reads none of them

_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_BARE = frozenset({*range(0xC0), *range(0xD0, 0xD9)})  # no segment follows

# What Pillow's decoders raise on hostile bytes; any other exception is a bug to be seen.
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, ZeroDivisionError, RuntimeError, AttributeError, NotImplementedError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def is_picture(name: str) -> bool:
    """Whether a file is called like an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def decode(data: bytes, enough: int | None = None) -> Image.Image:
    """Decode to an upright RGB picture.

    Args:
        data: an image file.
        enough: a JPEG may come out at 1/2, 1/4 or 1/8 of its size as long as no side is shorter
            than this; by default it never does.

    Raises:
        ImageError: empty, too large, of no allowed format, or damaged; the words before the
            colon are the same for all images rejected for that reason.
    """
    if not data:
        raise ImageError("empty: 0 bytes")
    if len(data) > MAX_BYTES:
        raise ImageError(f"too large: {len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            _check_size(opened)
            if opened.format in ("JPEG", "MPO"):
                _check_scans(data)
            if enough:
                _shrink(opened, enough)
            return _to_rgb(ImageOps.exif_transpose(opened))
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise ImageError(f"not a readable image: {type(error).__name__}") from None


def media_type(data: bytes) -> str:
    """Media type of an image file of an allowed format, by content.

    Raises:
        ImageError: when it is none.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            return Image.MIME[opened.format or ""].replace("mpo", "jpeg")
    except _DECODE_ERRORS as error:
        raise ImageError(f"not a readable image: {type(error).__name__}") from None


def thumbnail(data: bytes, size: int) -> bytes:
    """The picture as a JPEG of at most `size` pixels a side."""
    small = decode(data)
    small.thumbnail((size, size))
    written = BytesIO()
    small.save(written, "JPEG", quality=90)
    return written.getvalue()


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"too many pixels: {width} x {height}, at most {MAX_PIXELS} are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"too narrow: {width} x {height}, at most {MAX_ASPECT} : 1 is resized")


def _check_scans(data: bytes) -> None:
    values = np.frombuffer(data, np.uint8)
    behind = values[np.flatnonzero(values[:-1] == 0xFF) + 1]  # a fifth of what `data.count` costs
    if np.count_nonzero(behind == _SCAN) <= MAX_SCANS:  # some of these are there by chance
        return
    found, place = 0, 0
    while (marker := _MARKER.search(data, place)) and marker[1][0] != _END:
        found += marker[1][0] == _SCAN
        if found > MAX_SCANS:
            raise ImageError(f"too many scans: more than {MAX_SCANS} in a JPEG")
        place = marker.end()
        if marker[1][0] not in _BARE:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))


def _shrink(image: Image.Image, enough: int) -> None:
    """Have a JPEG decoded at a fraction of its size; nothing happens to other formats."""
    for scale in (8, 4, 2):
        # A side that the scale does not divide comes out a little too long, and all of it shifts.
        exact = all(-side % scale <= MAX_STRETCH * side for side in image.size)
        if exact and min(image.size) >= scale * enough:
            image.draft("RGB", (image.width // scale, image.height // scale))
            return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _scale_16_bit(image)
    if image.mode == "F":
        raise ImageError("floating point: the range of its values is not known")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)  # (height, width)
    grey = np.clip(values >> 8, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
