"""clip-retrieval's HTTP API over anything that answers queries, for its client and its web front.

The shapes and defaults are its own but for ids, which are strings here: JavaScript rounds numbers
of 63 bits. What a request asks for and the service does not do stands in the reply's header
`X-Clipray-Note`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from clipray.duplicates import asks
from clipray.errors import QueryError
from clipray.matches import Match, Matches
from clipray.query import MAX_K, Query, Term
from clipray.serve.catalog import Reply
from clipray.serve.knn_request import (
    KnnRequest,
    MetadataRequest,
    described,
    read_body,
    row_id,
)
from clipray.serve.raters import Detector, Raters, unflagged
from clipray.serve.searcher import Searcher

log = logging.getLogger(__name__)

SIMILARITY = 0.94  # clip-retrieval's own
COLUMNS = ("caption", "url", "NSFW")
SOURCE_COLUMNS = frozenset({"source_path", "source_offset", "source_size"})
NOTE_HEADER = "X-Clipray-Note"

NOTES = {
    "use_mclip": "no multilingual model is served, the served one encodes the text",
    "use_safety_model": "no detector of unsafe rows is configured, none is left out",
    "use_violence_detector": "no detector of violence is configured, none is left out",
    "aesthetic_score": "no aesthetic vectors are configured, the score does not count",
    "num_result_ids": f"at most {MAX_K} are given",
}

RESULT = {
    "caption": "a small red ring",
    "url": "http://127.0.0.1:8000/images/drawings/6917529027641081856",
    "image_path": "shards/000000012",
    "id": "6917529027641081856",
    "similarity": 0.2718,
}
SEARCH_DOCS = described(
    KnnRequest,
    {"text": "a red ring", "modality": "image", "num_images": 20, "indice_name": "drawings"},
    [RESULT, {"id": "42", "similarity": 0.25}],
)
METADATA_DOCS = described(
    MetadataRequest,
    {"ids": ["42"], "indice_name": "drawings"},
    [{"id": "42", "metadata": {"caption": "a small red ring", "image_path": "shards/000000012"}}],
)


def add_knn_service(app: FastAPI, searcher: Searcher, raters: Raters) -> None:
    """Add `/knn-service`, `/metadata` and `/indices-list` to an app.

    Args:
        app: gives pictures at `/images/{index}/{id}`.
        searcher: answers the queries.
        raters: what is configured of safety, violence and aesthetics.
    """
    service = KnnService(searcher, raters)

    @app.post("/knn-service", **SEARCH_DOCS)
    async def knn_service(request: Request) -> Any:
        """Search as clip-retrieval does; the first `num_images` results have their metadata."""
        body = await read_body(KnnRequest, request)
        results, notes = await service.search(body, str(request.base_url))
        return JSONResponse(results, headers={NOTE_HEADER: "; ".join(notes)} if notes else None)

    @app.post("/metadata", **METADATA_DOCS)
    async def metadata(request: Request) -> Any:
        """Metadata of rows; null for an id that no row has."""
        body = await read_body(MetadataRequest, request)
        return JSONResponse(await service.metadata(body, str(request.base_url)))

    @app.get(
        "/indices-list", responses={200: {"content": {"application/json": {"example": ["a"]}}}}
    )
    async def indices_list() -> Any:
        """Names of the indices."""
        return JSONResponse(service.names)


class KnnService:
    """Answers clip-retrieval's requests."""

    def __init__(self, searcher: Searcher, raters: Raters) -> None:
        self._searcher, self._raters = searcher, raters
        self._logged: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Names of the indices, in their order."""
        return list(dict.fromkeys(folder.name for folder in self._searcher.catalog.folders))

    async def search(self, body: KnnRequest, base: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Results, best first, and what the request asks for and does not get.

        Args:
            body: of the request.
            base: address of the service, with a slash at its end.

        Raises:
            QueryError: an aesthetic score that there is not, or what the searcher refuses.
        """
        notes = self._notes(body)
        if body.wanted == 0:
            return [], notes
        query = await self._query(body, base)
        reply = await self._found(query, self._detectors(body))
        if reply.coverage.degraded:
            covered = f"{reply.coverage.rows_searched} of {reply.coverage.rows_total}"
            notes.append(f"partial: {covered} rows were searched")
        matches, pictures = reply.matches.items, _pictures(base, query.index or "")
        full = [_result(match, pictures) for match in matches[: body.num_images]]
        return full + [_bare(match) for match in matches[body.num_images :]], notes

    async def metadata(self, body: MetadataRequest, base: str) -> list[dict[str, Any]]:
        """Id, as it was given, and metadata of rows."""
        index = body.indice_name or self.names[0]
        rows = await self._searcher.rows(index, [int(one) for one in body.ids])
        pictures = _pictures(base, index)
        shown = [row and _shown(row, row["key"], f"{pictures}/{row['id']}") for row in rows]
        return [{"id": i, "metadata": m} for i, m in zip(body.ids, shown, strict=True)]

    async def _query(self, body: KnnRequest, base: str) -> Query:
        index = body.indice_name or self.names[0]
        folder = self._searcher.catalog.find(index, body.modality)
        terms = [await self._term(body, base), *self._aesthetic(body)]
        return Query(
            query=tuple(terms),
            index=index,
            modality=body.modality,
            k=min(body.wanted, MAX_K),
            columns=tuple(c for c in (*COLUMNS, "source_path") if c in folder.columns),
            deduplicate=SIMILARITY if body.deduplicate else None,
        )

    async def _term(self, body: KnnRequest, base: str) -> Term:
        """What to look for, read where it is a picture of ours.

        The web front sends the address of a result to look for more like it.
        """
        pictures, term = f"{base}images/", body.term
        if term.image_url is None or not term.image_url.startswith(pictures):
            return term
        index, _, row = term.image_url.removeprefix(pictures).partition("?")[0].partition("/")
        number = row_id(row)
        if number is None:
            raise QueryError(f"image_url: {term.image_url} is no picture of this service")
        data, _ = await self._searcher.image(unquote(index), number, None)
        return Term(image=data)

    def _aesthetic(self, body: KnnRequest) -> list[Term]:
        vectors, score = self._raters.aesthetic, body.aesthetic_score
        if vectors is None or score is None:
            return []
        if score >= len(vectors):
            raise QueryError(f"aesthetic_score: {score}; there are 0 to {len(vectors) - 1}")
        # Terms are scaled to unit length, clip-retrieval's aesthetic vectors are not.
        weight = body.aesthetic_weight * float(np.linalg.norm(vectors[score]))
        return [Term(embedding=tuple(vectors[score].tolist()), weight=weight)]

    def _detectors(self, body: KnnRequest) -> list[Detector]:
        safety, violence = self._raters.safety, self._raters.violence
        asked = ((safety, body.use_safety_model), (violence, body.use_violence_detector))
        return [detector for detector, used in asked if detector and used]

    async def _found(self, query: Query, detectors: Sequence[Detector]) -> Reply:
        if not detectors:
            return await self._searcher.search(query)
        for asked in asks(query.k):
            wider = query.model_copy(update={"k": asked, "embeddings": True})
            reply = await self._searcher.search(wider)
            left = unflagged(reply.matches, detectors).items[: query.k]
            if len(left) == query.k or len(reply.matches) < asked:
                break
        return reply.model_copy(update={"matches": Matches(left)})

    def _notes(self, body: KnnRequest) -> list[str]:
        raters = self._raters
        missed = {
            "use_mclip": body.use_mclip and body.text is not None,
            "use_safety_model": body.use_safety_model and raters.safety is None,
            "use_violence_detector": body.use_violence_detector and raters.violence is None,
            "aesthetic_score": body.aesthetic_score is not None and raters.aesthetic is None,
            "num_result_ids": body.wanted > MAX_K,
        }
        names = [name for name, missing in missed.items() if missing]
        for name in names:
            if name not in self._logged:
                log.warning("/knn-service was asked for %s: %s", name, NOTES[name])
                self._logged.add(name)
        return [f"{name}: {NOTES[name]}" for name in names]


def _pictures(base: str, index: str) -> str:
    return f"{base}images/{quote(index, safe='')}"


def _result(match: Match, pictures: str) -> dict[str, Any]:
    return _shown(match.columns, match.key, f"{pictures}/{match.id}") | _bare(match)


def _bare(match: Match) -> dict[str, Any]:
    return {"id": str(match.id), "similarity": match.score}


def _shown(columns: Mapping[str, Any], key: str, picture: str) -> dict[str, Any]:
    """Metadata without what is null, which the web front would show as a word."""
    values = {name: _plain(value) for name, value in columns.items()}
    hidden = SOURCE_COLUMNS | {"id", "key"}
    known = {n: v for n, v in values.items() if v is not None and n not in hidden}
    web = str(known.get("url")).startswith(("http://", "https://"))
    if not web and columns.get("source_path"):
        known["url"] = picture
    return {"image_path": key} | known


def _plain(value: Any) -> Any:
    """The value as JSON can say it; None for a number that is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
