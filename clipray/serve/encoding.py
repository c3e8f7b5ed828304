"""The encoder deployment: the model, for texts and images that come many at once."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray import nodes, probe
from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import ClipRayError, ModelError
from clipray.manifest import ModelIdentity, ModelSource
from clipray.pixels import Pixels
from clipray.serve.wire import Address, CallServer

Vector = NDArray[np.float32]
Encoded = list[Vector | ClipRayError]


class EncoderReplica:
    """A replica that holds one model.

    Raises:
        MismatchError: when the model is not the one the indices were built with.
        ModelError: it cannot be loaded on this node.
    """

    def __init__(
        self,
        source: ModelSource,
        expected: ModelIdentity,
        options: EncoderOptions,
        inside: str | None = None,
    ) -> None:
        host = inside or nodes.own_address()
        self._server = CallServer(self, ("encode_texts", "encode_images"), host)
        self._encoder = _opened(source, options)
        expected.require(self._encoder.identity, "the model of the service")
        self._running = asyncio.Lock()  # two batches at once would only take turns
        # The first call of a tower is slow; an exported model may have one of the two alone.
        with suppress(ModelError):
            self._encoder.encode_texts(["a"])
        with suppress(ModelError):
            self._encoder.encode_images(probe.drawn_pictures(1, self._encoder.pixels))

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Ray calls and awaits this before it ends the process."""
        return self._server.leave()

    async def address(self) -> Address:
        """Where it listens for the ingress."""
        return await self._server.address()

    async def encode_texts(self, texts: Sequence[str]) -> Encoded:
        """A (dim,) float32 unit vector for each text.

        Raises:
            ModelError: the model has no text tower.
        """
        async with self._running:
            return list(await asyncio.to_thread(self._encoder.encode_texts, list(texts)))

    async def encode_images(self, files: Sequence[bytes]) -> Encoded:
        """A (dim,) float32 unit vector for each image file, or why it cannot be decoded.

        Raises:
            ModelError: the model has no image tower.
        """
        found = await asyncio.gather(*[asyncio.to_thread(self._pixels, data) for data in files])
        readable = [pixels for pixels in found if not isinstance(pixels, ClipRayError)]
        async with self._running:
            vectors = iter(
                await asyncio.to_thread(self._encoder.encode_images, readable) if readable else []
            )
        return [one if isinstance(one, ClipRayError) else next(vectors) for one in found]

    def _pixels(self, data: bytes) -> Pixels | ClipRayError:
        try:
            return self._encoder.pixels(data)
        except ClipRayError as error:
            return error


def _opened(source: ModelSource, options: EncoderOptions) -> Encoder:
    try:
        return open_encoder(source, options)
    except ModelError as error:
        if len(list(nodes.present())) == 1:
            raise
        raise ModelError(
            f"{error} [on node '{nodes.here()}'; every node may get the encoder of a service, so "
            "its model must be there on all, at the same path or under open_clip's name]"
        ) from None
