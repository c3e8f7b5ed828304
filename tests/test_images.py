"""Whatever the bytes: an upright RGB picture or an ImageError, in bounded time and memory."""

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipray import images
from clipray.errors import ImageError
from clipray.images import MAX_BYTES, media_type, thumbnail

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def decode(data):
    """`images.decode`, after a look that a decode at a fraction of the size judges the same."""
    try:
        small = images.decode(data, enough=8)
    except ImageError as error:
        with pytest.raises(ImageError, match=re.escape(str(error))):
            images.decode(data)
        raise
    whole = images.decode(data)
    assert small.mode == whole.mode
    assert min(small.size) >= min(8, *whole.size)
    return whole


def encoded(image, kind, **options):
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def halves(mode="RGB", left=RED, right=BLUE):
    image = Image.new(mode, (32, 16), left)
    image.paste(right, (16, 0, 32, 16))
    return image


def noise(kind, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", extra=b""):
    """A PNG of one bit a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data)
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def near(image, place, colour, tolerance=3):
    return all(abs(a - b) <= tolerance for a, b in zip(image.getpixel(place), colour, strict=True))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
    ],
)
def test_every_allowed_format_is_read_by_content(kind, options):
    data = encoded(halves(), kind, **options)
    image = decode(data)
    assert (image.mode, image.size) == ("RGB", (32, 16))
    assert near(image, (4, 8), RED)
    assert near(image, (28, 8), BLUE)
    assert media_type(data) == f"image/{kind.lower()}"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = halves()
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG"):
        found = decode(encoded(image, kind, exif=exif, quality=95))
        assert found.size == (32, 16)
        assert near(found, (4, 8), RED, 8)
        assert near(found, (28, 8), BLUE, 8)


def test_transparency_goes_on_white():
    rgba = halves("RGBA", (255, 0, 0, 0), (0, 0, 255, 128))
    grey = halves("LA", (0, 0), (0, 255))
    palette = halves("P", 1, 2)
    palette.putpalette([9, 9, 9, *RED, *BLUE])
    for data, left, right in [
        (encoded(rgba, "PNG"), WHITE, (127, 127, 255)),
        (encoded(rgba, "WEBP", lossless=True, exact=True), WHITE, (127, 127, 255)),
        (encoded(grey, "PNG"), WHITE, (0, 0, 0)),
        (encoded(palette, "PNG", transparency=1), WHITE, BLUE),
        (encoded(palette, "GIF", transparency=1), WHITE, BLUE),
        (encoded(halves(), "PNG", transparency=RED), WHITE, BLUE),
        (encoded(halves("L", 7, 9), "PNG", transparency=7), WHITE, (9, 9, 9)),
        (encoded(halves("1", 0, 1), "PNG", transparency=0), WHITE, WHITE),
    ]:
        image = decode(data)
        assert image.mode == "RGB"
        assert near(image, (4, 8), left)
        assert near(image, (28, 8), right)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(kind):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    found = np.asarray(decode(encoded(Image.fromarray(ramp), kind)))
    assert (found[0, :, 0] == ramp[0] >> 8).all()
    assert (found[..., 0] == found[..., 2]).all()


def test_cmyk_becomes_rgb():
    image = decode(encoded(halves().convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert near(image, (4, 8), RED, 8)
    assert near(image, (28, 8), BLUE, 8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_taken(kind):
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert near(decode(data), (8, 8), RED, 4)
    assert media_type(data) in ("image/jpeg", f"image/{kind.lower()}")


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100)])
def test_small_and_narrow_pictures_are_read(size):
    assert decode(encoded(Image.new("RGB", size, RED), "PNG")).size == size


def test_pictures_too_narrow_to_resize_are_refused():
    with pytest.raises(ImageError, match="too narrow: 20000 x 1"):
        decode(encoded(Image.new("RGB", (20_000, 1)), "PNG"))


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"<!doctype html><html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
        b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        encoded(halves(), "EPS"),
        encoded(halves(), "PPM"),
        encoded(halves(), "ICO"),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
    ],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ImageError, match="not a readable image"):
        decode(data)
    with pytest.raises(ImageError, match="not a readable image"):
        media_type(data)


def test_the_words_before_the_colon_name_the_reason():
    reasons = []
    floating = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    for data in (b"", bytes(MAX_BYTES + 1), png(9000, 9000), floating, b"?"):
        with pytest.raises(ImageError) as caught:
            decode(data)
        reasons.append(str(caught.value).partition(":")[0])
    assert reasons == [
        "empty",
        "too large",
        "too many pixels",
        "floating point",
        "not a readable image",
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of the damage
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(kind, share):
    data = noise(kind)
    with pytest.raises(ImageError):
        decode(data[: max(1, int(len(data) * share))])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of the damage
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=5),
)
def test_changed_bytes_give_a_picture_or_an_image_error(kind, changes):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    data = bytearray(noise(kind, exif=exif) if kind != "BMP" else noise(kind))
    for place, new in changes:
        start = int(place**2 * (len(data) - 1))  # more often in the header
        data[start : start + len(new)] = new
    with suppress(ImageError):
        assert decode(bytes(data)).mode == "RGB"


SCAN = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"  # of one colour, without data


def scans(before: bytes = b"", between: bytes = b"") -> bytes:
    """A JPEG whose pixels are gone over 100,000 times."""
    whole = encoded(Image.new("RGB", (3000, 3000)), "JPEG", subsampling=0)
    head = whole.partition(b"\xff\xda")[0]
    return head + before + (SCAN * 1000 + between) * 100 + b"\xff\xd9"


BOMBS = {
    "177 million pixels": png(13_300, 13_300, data=zlib.compress(bytes(13_300 * 1664))),
    "900 million pixels": png(30_000, 30_000, data=zlib.compress(bytes(1000))),
    "zTXt": png(4, 4, extra=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))),
    "iCCP": png(4, 4, extra=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))),
    "scans": scans(),
    "scans behind a restart": scans(b"\xff\xdd\0\x04\0\1", SCAN + bytes(99) + b"\xff\x02\xff\xff"),
    "GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_neither_time_nor_memory(name, tmp_path):
    bomb = tmp_path / "bomb"
    bomb.write_bytes(BOMBS[name])
    program = (
        "import sys, resource; from clipray.images import decode; from clipray.errors import *\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(data); sys.exit('decoded')\n"
        "except ImageError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", program, str(bomb)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 64 << 20
    assert time.monotonic() - began < 5


def test_what_only_looks_like_scans_does_no_harm():
    """Phones append films, and cameras put notes in front, which hold all pairs of bytes."""
    whole, looks = noise("JPEG"), b"\xff\xda" * 300
    note = b"\xff\xe5" + struct.pack(">H", len(looks) + 2) + looks
    assert decode(whole[:2] + note + whole[2:] + looks).tobytes() == decode(whole).tobytes()


def test_a_thumbnail_is_a_jpeg_that_fits():
    data = thumbnail(encoded(Image.new("RGBA", (300, 100), (0, 0, 255, 255)), "PNG"), 60)
    image = decode(data)
    assert media_type(data) == "image/jpeg"
    assert image.size == (60, 20)
    assert near(image, (30, 10), BLUE, 8)
