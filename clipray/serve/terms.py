"""The terms of a query → its vector: through the encoder, the groups, or as it was given."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray.errors import ClipRayError
from clipray.index.reader import unit_queries
from clipray.query import Term, combine
from clipray.serve.coalescer import Coalescer
from clipray.serve.line import Line
from clipray.serve.meter import Batch, Meter

MOST_TEXTS = 64  # in one call
MOST_IMAGES = 16

Vector = NDArray[np.float32]
FindKey = Callable[[str], Awaitable[Vector]]
Encoded = Sequence[Vector | ClipRayError]
Fetch = Callable[[str], Awaitable[bytes]]


class Terms:
    """Makes vectors of terms.

    Args:
        encoder: line to the encoder.
        dim: of the vectors.
        fetch: the image at an address.
        cached: how many texts' vectors are kept, those that were used last.
        meter: counts the calls, and the texts that were cached.
    """

    def __init__(self, encoder: Line, dim: int, fetch: Fetch, cached: int, meter: Meter) -> None:
        self._encoder = encoder
        self._dim = dim
        self._fetch = fetch
        self._meter = meter
        self._cached = cached
        self._known: OrderedDict[str, asyncio.Future[Vector]] = OrderedDict()
        self._texts = Coalescer[str, Vector](self._encode_texts, MOST_TEXTS)
        self._images = Coalescer[bytes, Vector](self._encode_images, MOST_IMAGES)

    async def vector(self, terms: Sequence[Term], find_key: FindKey) -> Vector:
        """(dim,) float32 unit vector of the weighted sum.

        Raises:
            QueryError: a wrong dimension, or terms that cancel out.
            ImageError: an image that cannot be decoded.
            UnavailableError: the encoder does not answer.
        """
        vectors = await asyncio.gather(*[self._term(term, find_key) for term in terms])
        mixed = combine(vectors, [term.weight for term in terms])
        (vector,) = unit_queries(mixed[None], self._dim)  # as in process
        return np.asarray(vector)

    async def _term(self, term: Term, find_key: FindKey) -> Vector:
        if term.text is not None:
            return await self._text(term.text)
        if term.image is not None:
            return await self._images.ask(term.image)
        if term.image_url is not None:
            return await self._images.ask(await self._fetch(term.image_url))
        if term.embedding is not None:
            return np.array(term.embedding, np.float32)
        return await find_key(term.key or "")

    async def _text(self, text: str) -> Vector:
        """From the cache, or with those who ask for the same text at this time."""
        known = self._known.get(text)
        if known is None:
            known = asyncio.ensure_future(self._texts.ask(text))
            self._known[text] = known
            known.add_done_callback(lambda done: self._settle(text, done))
            self._meter.text_cache(0, 1)
        else:
            self._meter.text_cache(1, 0)
        self._known.move_to_end(text)
        return await asyncio.shield(known)

    def _settle(self, text: str, done: "asyncio.Future[Vector]") -> None:
        if done.cancelled() or done.exception():
            self._known.pop(text, None)
        while len(self._known) > self._cached:
            self._known.popitem(last=False)

    async def _encode_texts(self, texts: Sequence[str]) -> Encoded:
        return await self._call("encode_texts", "texts", texts)

    async def _encode_images(self, files: Sequence[bytes]) -> Encoded:
        return await self._call("encode_images", "images", files)

    async def _call(self, method: str, kind: Batch, items: Sequence[Any]) -> Encoded:
        self._meter.batch(kind, len(items))
        vectors: Encoded = await self._encoder.call(method, items)
        return vectors
