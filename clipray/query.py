"""A search request, and how its terms become one vector.

A query is a weighted sum of terms: text, image, address of an image, key or embedding. Encoding the
terms is the caller's work; this module knows neither models nor indices.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from clipray.config import Config
from clipray.errors import QueryError
from clipray.filters import FilterTree
from clipray.manifest import Modality

MAX_K = 10_000
MAX_TERMS = 32
MAX_DIM = 65_536  # far more than any model has
MAX_COLUMNS = 1_000
MAX_NAME_CHARACTERS = 4_096  # of a key, an index or a column
MAX_TEXT_CHARACTERS = 2_000  # more than any context holds
MAX_URL_CHARACTERS = 2_000
MAX_ID = (1 << 63) - 1  # of a row

Vector = NDArray[np.float32]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
Weight = Annotated[Finite, Field(ge=-1e6, le=1e6)]  # beyond, a term drowns all others
Component = Annotated[Finite, Field(ge=-3.4e38, le=3.4e38)]  # what float32 holds
# The first wrong item is told, not all: a million of them cost seconds and a gigabyte.
Components = Annotated[tuple[Component, ...], Field(max_length=MAX_DIM, fail_fast=True)]


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected an image in base64") from None


ImageBytes = Annotated[bytes, BeforeValidator(_from_base64)]


class Term(Config):
    """One thing to look for; exactly one of the five kinds."""

    text: str | None = Field(None, max_length=MAX_TEXT_CHARACTERS, description="words")
    image: ImageBytes | None = Field(None, description="an image file, in base64 in JSON")
    key: Name | None = Field(None, description="key of a row of the index")
    embedding: Components | None = Field(None, description="a vector of the model's space")
    image_url: str | None = Field(
        None, max_length=MAX_URL_CHARACTERS, description="where an image is; a service may refuse"
    )
    weight: Weight = Field(1.0, description="negative: less like this")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = (self.text, self.image, self.key, self.embedding, self.image_url)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("a term needs exactly one of text, image, key, embedding, image_url")
        return self


class Query(Config):
    """What to look for, where, and how much of it is wanted.

    Either one of `text`, `image`, `key`, `embedding`, `image_url`, or a list of weighted terms in
    `query`.
    """

    text: str | None = Field(None, max_length=MAX_TEXT_CHARACTERS)
    image: ImageBytes | None = None
    key: Name | None = None
    embedding: Components | None = None
    image_url: str | None = Field(None, max_length=MAX_URL_CHARACTERS)
    query: tuple[Term, ...] = Field((), max_length=MAX_TERMS, fail_fast=True)
    index: Name | None = Field(None, description="name of the index; the only one by default")
    modality: Modality = Field("image", description="what to find: images or texts")
    k: int = Field(10, ge=1, le=MAX_K, strict=True, description="at most this many matches")
    threshold: Finite | None = Field(None, description="keep matches with at least this cosine")
    filter: FilterTree | None = Field(None, description="which rows count, by their metadata")
    columns: tuple[Name, ...] = Field(
        ("caption",), max_length=MAX_COLUMNS, fail_fast=True, description="metadata to return"
    )
    embeddings: bool = Field(False, description="return the vector of each match")
    deduplicate: Finite | None = Field(
        None,
        gt=0,
        le=1,
        description="leave out what has this cosine or more with a better match, before k is cut",
    )
    allow_partial: bool = Field(True, description="answer when a part of the index is down")

    @model_validator(mode="after")
    def _something(self) -> Self:
        single = (self.text, self.image, self.key, self.embedding, self.image_url)
        given = sum(kind is not None for kind in single)
        if given + bool(self.query) != 1:
            raise ValueError("give exactly one of text, image, key, embedding, image_url, query")
        return self

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms, however they were given."""
        if self.query:
            return self.query
        return (
            Term(
                text=self.text,
                image=self.image,
                key=self.key,
                embedding=self.embedding,
                image_url=self.image_url,
            ),
        )


def combine(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Weighted sum of vectors, each (dim,), to one float32 unit vector.

    Raises:
        QueryError: when the terms cancel out, a vector has no direction, or their lengths differ.
    """
    units = [_unit(vector) for vector in vectors]
    lengths = {len(unit) for unit in units}
    if len(lengths) > 1:
        raise QueryError(f"the terms have vectors of {sorted(lengths)} dimensions; give all alike")
    if len(units) == 1 and weights[0] > 0:
        return units[0]
    total = np.sum([unit * np.float32(w) for unit, w in zip(units, weights, strict=True)], axis=0)
    return _unit(total)


def _unit(vector: Vector) -> Vector:
    wide = np.asarray(vector, dtype=np.float64)
    norm = float(np.linalg.norm(wide))
    if not np.isfinite(norm) or norm < 1e-6:
        raise QueryError("the query vector is zero or not finite; it points nowhere")
    return (wide / norm).astype(np.float32)
