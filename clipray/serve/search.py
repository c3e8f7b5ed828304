"""The ingress deployment: query → vector → fan-out to the groups → reply.

It answers over HTTP and through its handle, in the same way.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray import serve
from starlette.types import ASGIApp

from clipray.duplicates import asks, without_duplicates
from clipray.errors import NotFoundError, QueryError, StaleError, UnavailableError
from clipray.index.reader import check_filter, require_columns
from clipray.index.shard import Wanted
from clipray.matches import Coverage
from clipray.query import MAX_K, Query, Term
from clipray.serve.access import to_stderr
from clipray.serve.args import ServeArgs
from clipray.serve.calls import Handle, Opener, line_to
from clipray.serve.catalog import Catalog, Reply, ServedFolder
from clipray.serve.fanout import Answer, Ask, Fanout
from clipray.serve.fetch import fetch_image
from clipray.serve.front import Front
from clipray.serve.groups import GroupSpec
from clipray.serve.guard import guarded
from clipray.serve.http import http_app
from clipray.serve.keys import Keys
from clipray.serve.line import LineOptions
from clipray.serve.meter import Meter, Stage
from clipray.serve.pictures import Pictures
from clipray.serve.raters import Raters
from clipray.serve.relay import Relay
from clipray.serve.switch import Switch
from clipray.serve.terms import Terms

log = logging.getLogger(__name__)

TRIES = 3  # of a query whose version is gone over meanwhile
FETCHES = 8  # of image addresses at once
ENCODE_S = 30.0  # a batch on a CPU takes seconds

Vector = NDArray[np.float32]
Result = TypeVar("Result")


@serve.ingress()
class Search:
    """A replica of the ingress.

    Args:
        catalog: what was served when the service was made.
        encoder: handle of the encoder deployment.
        groups: handles of the groups.
        specs: what each of them holds.
        raters: for clip-retrieval's API.
        keys: of those who may ask.
        args: of the application.
    """

    def __init__(
        self,
        catalog: Catalog,
        encoder: Handle,
        groups: Sequence[Handle],
        specs: Sequence[GroupSpec],
        *,
        raters: Raters,
        keys: Keys,
        args: ServeArgs,
    ) -> None:
        self.meter = Meter()
        self._fetching = asyncio.Semaphore(FETCHES)
        self._fetch_options = args
        self._deadline_s = args.line.deadline_s
        Relay(self.meter).start()
        if args.access_log:
            to_stderr()
        self._lines = [
            line_to(group, spec.name, args.line, scaled=args.shards.is_scaled)
            for spec, group in zip(specs, groups, strict=True)
        ]
        self._fanout = Fanout(self._lines, specs, lambda count: self.meter.batch("queries", count))
        patient = LineOptions(deadline_s=ENCODE_S, patience_s=args.line.deadline_s)
        self._terms = Terms(
            line_to(encoder, "Encoder", patient, scaled=args.encoder.is_scaled, vital=True),
            catalog.model.dim,
            self._fetch,
            args.text_cache,
            self.meter,
        )
        self._pictures = Pictures(self._rows)
        openers = [Opener(group) for group in groups]
        self._switch = Switch(catalog, list(zip(specs, openers, strict=True)), self.meter)
        local = args.listen is not None and args.listen.is_local
        self._app = guarded(http_app(self, raters), args, keys, self.meter, local=local)
        self._front = Front(self._app, args.listen) if args.listen else None
        self._watching = asyncio.ensure_future(self._watch(args.watch_s))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The HTTP API over this replica; Ray calls it once."""
        return self._app

    async def __del__(self) -> None:
        """Ray calls and awaits this before it ends the process."""
        self._watching.cancel()
        if self._front:
            await self._front.close()

    @property
    def catalog(self) -> Catalog:
        """What is served now."""
        return self._switch.catalog

    async def search(self, query: Query) -> Reply:
        """Answer one query.

        Raises:
            QueryError: an unknown column; NotFoundError for an index or a key.
            UnavailableError: no group answers, or not all and `allow_partial` is false.
        """
        return await self._fresh(lambda: self._search(query))

    def ready(self) -> dict[str, bool]:
        """Which groups answered when they were last asked.

        Raises:
            UnavailableError: none did.
        """
        groups = {line.name: line.up for line in self._lines}
        if not any(groups.values()):
            raise UnavailableError(f"none of {len(groups)} groups of shards answers")
        return groups

    async def search_many(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer several queries."""
        return list(await asyncio.gather(*[self.search(query) for query in queries]))

    async def embed(self, term: Term) -> Vector:
        """(dim,) float32 unit vector of a term that is no key.

        Raises:
            QueryError: a key.
        """
        if term.key is not None:
            raise QueryError("a key is not embedded; give a text or an image")
        return await self._terms.vector([term], _no_keys)

    async def rows(self, index: str | None, ids: Sequence[int]) -> list[dict[str, Any] | None]:
        """Id, key and all columns of rows; None for an id that no row of the index has."""
        began = time.perf_counter()
        found = await self._fresh(lambda: self._rows(index, ids))
        self.meter.stage("rows", time.perf_counter() - began)
        return [found.get(row_id) for row_id in ids]

    async def image(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        """The picture of a row and its media type; a JPEG thumbnail when `size` is given.

        Raises:
            NotFoundError: when there is no such row or it has no picture.
        """
        return await self._fresh(lambda: self._pictures.read(index, row_id, size))

    async def refresh(self) -> dict[str, Any]:
        """Have all ingress replicas go over to the newest versions; says what is served then."""
        context = serve.get_replica_context()
        ingress = serve.get_deployment_handle(context.deployment, context.app_name)
        await ingress.broadcast("look").results_async(return_exceptions=True)  # one may be dying
        return await self.look()

    async def look(self) -> dict[str, Any]:
        """Go over to the newest versions in this replica."""
        await self._switch.look(again=True)
        return {
            "versions": {folder.slot: folder.version for folder in self.catalog.folders},
            "failures": dict(self._switch.failures),
        }

    async def _watch(self, every_s: float) -> None:
        await self._switch.begin()  # replicas tell the columns
        if every_s:
            await self._switch.watch(every_s)

    async def _search(self, query: Query) -> Reply:
        began = time.perf_counter()
        folder = self.catalog.find(query.index, query.modality)
        wanted = _wanted(query, folder)
        vector = await self._terms.vector(query.terms, lambda key: self._find(folder.name, key))
        seconds: dict[Stage, float] = {"encode": time.perf_counter() - began}
        ask = Ask(folder, wanted, vector)
        if query.deduplicate is None:
            answer = await self._fanout.search(ask)
        else:
            answer = await self._unlike(ask, query.deduplicate)
        _require_enough(answer.coverage, query)
        seconds |= answer.seconds
        seconds["total"] = time.perf_counter() - began
        self._count(folder, answer, seconds)
        return Reply(
            matches=answer.matches.above(query.threshold),
            coverage=answer.coverage,
            version=folder.version,
            took_ms={name: 1e3 * value for name, value in seconds.items()},
        )

    async def _unlike(self, ask: Ask, similarity: float) -> Answer:
        """As many as wanted of which no two are alike, or what there is of those."""
        k = ask.wanted.k
        for more in asks(k):
            wider = replace(ask, wanted=replace(ask.wanted, k=min(more, MAX_K), vectors=True))
            answer = await self._fanout.search(wider)
            left = await asyncio.to_thread(without_duplicates, answer.matches, similarity, k)
            if len(left) == k or len(answer.matches) < more:
                break
        return replace(answer, matches=left if ask.wanted.vectors else left.without_vectors())

    def _count(self, folder: ServedFolder, answer: Answer, seconds: Mapping[Stage, float]) -> None:
        for stage, value in seconds.items():
            self.meter.stage(stage, value)
        self.meter.reply(folder.slot, answer.coverage)

    async def _fetch(self, url: str) -> bytes:
        async with self._fetching:
            return await fetch_image(url, self._fetch_options)

    async def _find(self, index: str, key: str) -> Vector:
        answers, lost = await self._each(index, "find", key)
        found = next((vector for vector in answers if vector is not None), None)
        if found is None:
            raise lost or NotFoundError(f"key '{key}': no row of index '{index}' has it")
        return np.asarray(found)

    async def _rows(self, index: str | None, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        answers, lost = await self._each(index, "rows", ids)
        found = {row_id: row for answer in answers for row_id, row in answer.items()}
        if lost and not found.keys() >= set(ids):
            raise lost
        return found

    async def _each(
        self, index: str | None, method: str, *arguments: Any
    ) -> tuple[list[Any], UnavailableError | None]:
        """As `Fanout.each`, of all folders of an index."""
        folders = self.catalog.named(index)
        parts = await asyncio.gather(*[self._fanout.each(f, method, *arguments) for f in folders])
        answers = [answer for part, _ in parts for answer in part]
        return answers, next((lost for _, lost in parts if lost), None)

    async def _fresh(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Do something again when the version that it began with is open no more."""
        for _ in range(TRIES):
            try:
                return await work()
            except StaleError as error:
                log.info("%s", error)
                await self._catch_up()
        raise UnavailableError("the index changes faster than it can be searched; try again later")

    async def _catch_up(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._switch.look(again=True)
        except TimeoutError:
            told = "a version of the index is being opened; try again later"
            raise UnavailableError(told) from None


def _wanted(query: Query, folder: ServedFolder) -> Wanted:
    known = set(folder.columns)
    if known:
        require_columns(query.columns, known)
    tree = query.filter and check_filter(query.filter, known)
    return Wanted(query.k, filter=tree, columns=query.columns, vectors=query.embeddings)


def _require_enough(coverage: Coverage, query: Query) -> None:
    nothing = coverage.degraded and coverage.rows_searched == 0
    if nothing or (coverage.degraded and not query.allow_partial):
        answered = f"{coverage.shards_ok} of {coverage.shards_total} shards answered"
        raise UnavailableError(f"{answered}; try again later")


async def _no_keys(key: str) -> Vector:
    raise QueryError(f"key '{key}': a key is not embedded")
