"""Two ways from a file to pixels: the same rules, nearly the same picture."""

import pickle

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from clipray.errors import ImageError
from clipray.pixels import pixel_reader
from tests.test_images import encoded, halves

SMALL = {
    "size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def photo(width, height, seed=0):
    """Clouds of all sizes and a few hard edges."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48, 96):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.7
    image = Image.fromarray((255 * total / total.max()).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, r = rng.integers(0, width), rng.integers(0, height), rng.integers(3, height // 3)
        draw.ellipse((x, y, x + r, y + r), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image.filter(ImageFilter.GaussianBlur(0.5))


def difference(data, preprocess=SMALL):
    """Mean absolute difference of the two ways, in steps of 1/255."""
    exact, fast = (pixel_reader(preprocess, way)(data) for way in ("exact", "fast"))
    assert (fast.shape, fast.dtype) == (exact.shape, np.uint8)
    assert fast.flags.c_contiguous
    return abs(exact.astype(int) - fast.astype(int)).mean()


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (90, 41), (256, 256), (31, 17), (1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_without_scaling_both_ways_agree_to_rounding(size, kind, mode):
    image = photo(*size) if min(size) > 9 else Image.new("RGB", size, (9, 90, 200))
    preprocess = SMALL | {"resize_mode": mode, "size": [48, 48]}
    if kind == "PNG" or min(size) < 2 * 3 * 48:
        assert difference(encoded(image, kind), preprocess) < 0.5


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (800, 600), (1001, 801)])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(size):
    for seed in range(3):
        data = encoded(photo(*size, seed), "JPEG", quality=88)
        assert difference(data) < 1.5
        assert difference(data, SMALL | {"size": [32, 48], "resize_mode": "squash"}) < 1.5


def test_orientation_counts_when_decoded_small():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = halves().resize((640, 320)).transpose(Image.Transpose.ROTATE_90)
    assert difference(encoded(stored, "JPEG", exif=exif, quality=95)) < 1


def test_embeddings_of_photos_hardly_move(encoder):
    files = [encoded(photo(640, 480, seed), "JPEG", quality=88) for seed in range(8)]
    read = pixel_reader(SMALL, "fast"), pixel_reader(SMALL)
    fast, exact = (encoder.encode_images([one(data) for data in files]) for one in read)
    assert (fast * exact).sum(axis=1).min() > 0.999


def test_geometry_is_that_of_the_model():
    read = pixel_reader(SMALL)
    for size in ((32, 32), (48, 31), (7, 90)):
        found = read(encoded(Image.new("RGB", size, (1, 2, 3)), "PNG"))
        assert (found.shape, found[:, 0, 0].tolist()) == ((3, 32, 32), [1, 2, 3])


@pytest.mark.parametrize("way", ["exact", "fast"])
def test_a_cut_large_jpeg_is_refused(way):
    data = encoded(photo(640, 480), "JPEG")
    with pytest.raises(ImageError, match="not a readable image"):
        pixel_reader(SMALL, way)(data[: len(data) // 2])


@pytest.mark.parametrize("way", ["exact", "fast"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_a_reader_does_the_same_in_another_process(way, mode):
    read = pixel_reader(SMALL | {"resize_mode": mode}, way)
    data = encoded(photo(300, 200), "JPEG")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read))(data), read(data))
