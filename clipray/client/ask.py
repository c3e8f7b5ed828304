"""What a client asks for, and how it is written as JSON.

The fields are those of `clipray.query.Query`, which the service validates them with; the client
does not import it, for it would have to load pydantic first.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from clipray.errors import InputError, QueryError

MAX_QUERIES = 256  # in one request, as the service has it
MAX_BODY_BYTES = 16 << 20  # of a request with several queries


class Thing(TypedDict, total=False):
    """One thing to look for.

    Attributes:
        text: words.
        image: an image file, or its bytes.
        image_url: where an image is; a service may refuse to fetch it.
        key: of a row of the index.
        embedding: (dim,) vector of the model's space.
    """

    text: str | None
    image: bytes | Path | None
    image_url: str | None
    key: str | None
    embedding: ArrayLike | None


class WeightedTerm(Thing, total=False):
    """One of several things to look for; a negative weight means less like this."""

    weight: float


class Ask(Thing, total=False):
    """One query: a thing to look for or a list of them in `query`, where, and how much.

    Attributes:
        index: name of the index; may be left out where only one is served.
        modality: whether images or texts are looked for; images by default.
        k: at most this many matches, 10 by default.
        threshold: keep matches with at least this cosine.
        filter: which rows count, by their metadata, such as `{"width": {"$gte": 256}}`.
        columns: metadata to return, by default the caption.
        embeddings: whether each match comes with its vector.
        deduplicate: leave out what has this cosine or more with a better match.
        allow_partial: whether to answer when a part of the index is down; by default yes.
    """

    query: Sequence[WeightedTerm]
    index: str | None
    modality: Literal["image", "text"]
    k: int
    threshold: float | None
    filter: Mapping[str, Any] | None
    columns: Sequence[str]
    embeddings: bool
    deduplicate: float | None
    allow_partial: bool


def encode(ask: Mapping[str, Any]) -> bytes:
    """One query as JSON; fields that are None are left out.

    Raises:
        InputError: an image file cannot be read.
        QueryError: what JSON cannot say, such as a NaN.
    """
    try:
        return json.dumps(_plain(ask), allow_nan=False, default=_scalar).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QueryError(f"the query cannot be written as JSON ({error})") from None


def batches(asks: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Bodies of requests with as many queries each as a service takes, and how many these are.

    Images are read when the turn of their batch comes.
    """
    held: list[bytes] = []
    size = 0
    for encoded in map(encode, asks):
        if held and (size + len(encoded) > MAX_BODY_BYTES or len(held) == MAX_QUERIES):
            yield len(held), _list(held)
            held, size = [], 0
        held.append(encoded)
        size += len(encoded)
    if held:
        yield len(held), _list(held)


def _list(encoded: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(encoded) + b"]"


def _plain(ask: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in ask.items() if value is not None}
    if "image" in given:
        given["image"] = _base64(given["image"])
    if "embedding" in given:
        given["embedding"] = _numbers(given["embedding"])
    if "query" in given:
        given["query"] = [_plain(term) for term in given["query"]]
    return given


def _base64(image: bytes | Path) -> str:
    if isinstance(image, str):
        raise QueryError("image: found a str; give bytes, a Path, or an address as image_url")
    try:
        data = image.read_bytes() if isinstance(image, Path) else image
    except OSError as error:
        raise InputError(f"{image!s}: cannot be read ({error})") from None
    return base64.b64encode(data).decode()


def _numbers(embedding: ArrayLike) -> list[float]:
    vector = np.asarray(embedding, dtype=np.float64)
    if vector.ndim != 1:
        raise QueryError(f"embedding: found shape {vector.shape}, expected (dim,)")
    return [float(value) for value in vector]


def _scalar(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of JSON")
