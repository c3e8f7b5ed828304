"""The encoder deployment: texts and images that arrive together are encoded together."""

import asyncio
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from ray import serve

from clipray import probe
from clipray.encoder import EncoderOptions, open_encoder
from clipray.errors import ModelError
from clipray.manifest import ModelIdentity, ModelSource
from clipray.pixels import Pixels

Vector = NDArray[np.float32]


class EncoderReplica:
    """A replica that holds one model.

    Raises:
        MismatchError: when the model is not the one the indices were built with.
    """

    def __init__(
        self, source: ModelSource, expected: ModelIdentity, options: EncoderOptions
    ) -> None:
        self._encoder = open_encoder(source, options)
        expected.require(self._encoder.identity, "the model of the service")
        # The first call of a tower is slow; an exported model may have one of the two alone.
        with suppress(ModelError):
            self._encoder.encode_texts(["a"])
        with suppress(ModelError):
            self._encoder.encode_images(probe.drawn_pictures(1, self._encoder.pixels))

    async def encode_text(self, text: str) -> Vector:
        """(dim,) float32 unit vector."""
        vector: Vector = await self._texts(text)
        return vector

    async def encode_image(self, data: bytes) -> Vector:
        """(dim,) float32 unit vector of an image file.

        Raises:
            ImageError: when it cannot be decoded; other requests of the batch are not touched.
        """
        pixels = await asyncio.to_thread(self._encoder.pixels, data)
        vector: Vector = await self._images(pixels)
        return vector

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def _texts(self, texts: list[str]) -> list[Vector]:
        return list(await asyncio.to_thread(self._encoder.encode_texts, texts))

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)
    async def _images(self, pixels: list[Pixels]) -> list[Vector]:
        return list(await asyncio.to_thread(self._encoder.encode_images, pixels))
