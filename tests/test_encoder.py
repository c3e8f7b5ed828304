"""Whatever goes in, unit vectors come out, in bounded time."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import ImageError, ModelError
from clipray.manifest import ModelSource
from tests.drawing import drawings


def is_unit(vectors):
    return vectors.dtype == np.float32 and np.allclose(
        np.linalg.norm(vectors, axis=1), 1, atol=1e-5
    )


def test_pixels_are_small_and_of_the_models_size(encoder):
    wide = io.BytesIO()
    Image.new("RGBA", (90, 31), (255, 0, 0, 0)).save(wide, "PNG")
    found = encoder.pixels(wide.getvalue())
    assert (found.shape, found.dtype) == ((3, 32, 32), np.uint8)
    assert found.flags.c_contiguous
    assert (found == 255).all()
    with pytest.raises(ImageError):
        encoder.pixels(b"no picture")


def test_images_and_texts_become_unit_vectors(encoder):
    pixels = [encoder.pixels(drawing.png) for drawing in drawings(5)]
    images, texts = encoder.encode_images(pixels), encoder.encode_texts(["a", "b c"])
    assert (images.shape, texts.shape) == ((5, 32), (2, 32))
    assert is_unit(images)
    assert is_unit(texts)


def test_the_batch_does_not_matter(encoder):
    pixels = [encoder.pixels(drawing.png) for drawing in drawings(6)]
    alone = np.concatenate([encoder.encode_images([one]) for one in pixels])
    np.testing.assert_allclose(encoder.encode_images(pixels), alone, atol=1e-5)


def test_captions_find_their_drawings(encoder):
    drawn = drawings()
    images = encoder.encode_images([encoder.pixels(drawing.png) for drawing in drawn])
    texts = encoder.encode_texts([drawing.caption for drawing in drawn])
    best = (texts @ images.T).argmax(axis=1)
    assert (best == np.arange(len(drawn))).mean() > 0.6


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\0", "🦜" * 40, "\ud83d", "a\udcffb", "漢" * 100, "<end_of_text> x", "&amp;"],
)
def test_any_text_becomes_a_unit_vector(encoder, text):
    assert is_unit(encoder.encode_texts([text]))


@pytest.mark.parametrize("length", [20_000, 4_000_000])
def test_a_very_long_word_takes_bounded_time(encoder, length):
    letters = np.random.default_rng(0).integers(97, 123, length, dtype=np.uint8)
    began = time.monotonic()
    assert is_unit(encoder.encode_texts([letters.tobytes().decode()]))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_moves_a_vector_only_a_little(model, encoder, precision):
    half = open_encoder(ModelSource(name=str(model)), EncoderOptions(precision=precision))
    assert half.identity.fingerprint == encoder.identity.fingerprint
    pixels = [encoder.pixels(drawing.png) for drawing in drawings(8)]
    vectors = half.encode_images(pixels)
    assert is_unit(vectors)
    assert (vectors * encoder.encode_images(pixels)).sum(axis=1).min() > 0.999


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_that_are_not_there_are_told(model):
    with pytest.raises(ModelError, match="torch sees no GPU here"):
        open_encoder(ModelSource(name=str(model)), EncoderOptions(device="cuda:0"))
