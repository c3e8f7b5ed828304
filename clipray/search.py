"""Search in process: a query's terms are encoded, combined and looked up in one index.

The service answers the same queries through replicas; both build the query vector with
`query_vector`.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clipray import cluster, uri
from clipray.config import parse
from clipray.duplicates import asks, without_duplicates
from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import DamagedError, ImageError, InputError, QueryError
from clipray.filters import FilterTree
from clipray.images import MAX_BYTES
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from clipray.index.scattered import ScatteredIndex
from clipray.index.tasks import workers_for
from clipray.manifest import ModelSource
from clipray.matches import Matches
from clipray.query import Query, Term, combine
from clipray.report import Report

log = logging.getLogger(__name__)

Vector = NDArray[np.float32]
AnyIndex = Index | ScatteredIndex

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # with these a caption could command a terminal


class SearchConfig(EncoderOptions):
    """Search an index in this process, without a server."""

    index: Path | str = Field(description="index folder, or the URI of a published one")
    text: str | None = Field(None, description="words to look for")
    image: Path | None = Field(None, description="image file to look for")
    key: str | None = Field(None, description="key of a row of the index to look for")
    k: int = Field(10, ge=1, description="at most this many matches")
    threshold: float | None = Field(None, description="keep matches with at least this cosine")
    filter: FilterTree | None = Field(
        None, description='which rows count, by their metadata, as JSON: {"width": {"$gte": 256}}'
    )
    columns: tuple[str, ...] = Field(("caption",), description="metadata to show; may be repeated")
    deduplicate: float | None = Field(
        None, gt=0, le=1, description="leave out what has this cosine or more with a better match"
    )
    verify: bool = Field(True, description="compare all files of the index with their checksums")
    model: str | None = Field(
        None, description="model name or folder; by default where the index says it is"
    )
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")

    @model_validator(mode="after")
    def _one_kind(self) -> "SearchConfig":
        if sum(term is not None for term in (self.text, self.image, self.key)) != 1:
            raise ValueError("give exactly one of --text, --image, --key")
        return self


class SearchReport(Report):
    """The matches, best first."""

    version: int
    matches: tuple[dict[str, Any], ...]

    def summary(self) -> str:
        """A table: score, key, metadata."""
        if not self.matches:
            return "no match"
        width = max(len(row["key"]) for row in self.matches)
        return "\n".join(_line(row, width) for row in self.matches)


def search(config: SearchConfig) -> SearchReport:
    """Open the index and, where the query needs it, the model, and search once.

    Raises:
        ConfigError: more matches or a longer text than any query may ask for.
        ImageError: an image file that cannot be decoded.
        InputError: no such index or image file, or a store that cannot be read.
        MismatchError: the model is not the one the index was built with.
        QueryError: an unknown key or column.
        UnavailableError: a node of the running cluster that has shards is not alive.
    """
    query = _asked(config)
    with opened(config) as index:
        encoder = None if config.key else open_for(index, config)
        try:
            matches = find(index, encoder, query)
        except ImageError as error:
            raise ImageError(f"{config.image}: {error}") from None
    rows = tuple(match.to_json() for match in matches)
    return SearchReport(version=index.manifest.version, matches=rows)


def _asked(config: SearchConfig) -> Query:
    """The query that the options stand for; the limits are those of the service."""
    names = ("text", "key", "k", "threshold", "filter", "columns", "deduplicate")
    tree = {name: getattr(config, name) for name in names}
    tree["image"] = _read_image(config.image) if config.image else None
    return parse(Query, tree, where="options")


@contextmanager
def opened(config: SearchConfig) -> Iterator[AnyIndex]:
    """The index in this process, or on the nodes of the running cluster that have its shards.

    Raises:
        DamagedError: files are missing that no node of a cluster is asked for.
    """
    try:
        index = Index.open(config.index, verify=config.verify)
    except DamagedError:
        if not (cluster.is_remote() and uri.is_local(place := uri.at(str(config.index)))):
            raise
        manifest = IndexFolder(place).read()
        if manifest.placement == "shared":
            raise
        with workers_for(IndexFolder(place), "node", manifest.rows) as workers:
            yield ScatteredIndex(manifest, workers, verify=config.verify)
        return
    yield index


def open_for(index: AnyIndex, config: SearchConfig) -> Encoder:
    """Open the model that belongs to an index."""
    source = index.manifest.source
    if config.model:
        source = ModelSource(name=config.model, pretrained=config.pretrained)
    encoder = open_encoder(source, config)
    index.manifest.model.require(encoder.identity, f"{config.index}: the model")
    return encoder


def find(index: AnyIndex, encoder: Encoder | None, query: Query) -> Matches:
    """Answer one query from one index."""
    vector = query_vector(query.terms, encoder, index.find)
    if query.deduplicate is None:
        return _search(index, vector, query, query.k, vectors=query.embeddings)
    left = Matches()
    for asked in asks(query.k):
        found = _search(index, vector, query, asked, vectors=True)
        left = without_duplicates(found, query.deduplicate, query.k)
        if len(left) == query.k or len(found) < asked:
            break
    return left if query.embeddings else left.without_vectors()


def _search(index: AnyIndex, vector: Vector, query: Query, k: int, *, vectors: bool) -> Matches:
    (matches,) = index.search(
        vector[None], k, query.threshold, query.filter, query.columns, vectors=vectors
    )
    return matches


def query_vector(
    terms: Sequence[Term], encoder: Encoder | None, find_key: Callable[[str], Vector]
) -> Vector:
    """Encode the terms and combine them to one (dim,) float32 unit vector.

    Raises:
        QueryError: an unknown key, or terms that cancel out.
        ImageError: an image that cannot be decoded.
    """
    vectors = [_term_vector(term, encoder, find_key) for term in terms]
    return combine(vectors, [term.weight for term in terms])


def _term_vector(term: Term, encoder: Encoder | None, find_key: Callable[[str], Vector]) -> Vector:
    if term.key is not None:
        return find_key(term.key)
    if term.embedding is not None:
        return np.array(term.embedding, dtype=np.float32)
    if term.image_url is not None:
        raise QueryError("image_url: only a service fetches images; give the image itself")
    if encoder is None:
        raise QueryError("texts and images need a model, and none is open")
    vector: Vector
    if term.text is not None:
        (vector,) = encoder.encode_texts([term.text])
    else:
        (vector,) = encoder.encode_images([encoder.pixels(term.image or b"")])
    return vector


def _line(row: dict[str, Any], width: int) -> str:
    shown = [row[name] for name in row if name not in ("id", "key", "score")]
    told = "  ".join(str(value) for value in shown if value is not None)
    line = f"{row['score']:.4f}  {row['key']:<{width}}  {told}".rstrip()
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def _read_image(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such image file")
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)
