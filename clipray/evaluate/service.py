"""Recall of a running service, against exact search in a local copy of what it serves.

Texts go to the service as texts, and it says itself what vector they have: so the figures are of
the whole way, as its users meet it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipray.client import Client, Found
from clipray.client.ask import Ask
from clipray.errors import MismatchError, NotFoundError
from clipray.evaluate.recall import Judge, Queries, latency, stopwatch
from clipray.evaluate.verdict import ServiceRecall
from clipray.index import Index
from clipray.index.manifest import IndexManifest


def served_version(client: Client, manifest: IndexManifest, name: str | None) -> tuple[str, int]:
    """Name and version of the index that a service has of this model and modality.

    Args:
        client: of the service.
        manifest: of the local copy.
        name: of the index; may be left out where only one is served.

    Raises:
        NotFoundError: no such index.
        MismatchError: an index of another model.
    """
    told = client.indices()
    found = {str(one["name"]): one["modalities"] for one in told["indices"]}
    chosen = name or (next(iter(found)) if len(found) == 1 else None)
    if chosen not in found or manifest.modality not in found[chosen]:
        raise NotFoundError(
            f"{client.url}: serves {_names(found)}; expected one of {manifest.modality}s, "
            "named with --served"
        )
    if told["model"].rpartition(" ")[2] != f"({manifest.model.fingerprint})":
        raise MismatchError(
            f"{client.url}: serves an index of {told['model']}, the local one is of "
            f"{manifest.model}; give the folder that is served"
        )
    return chosen, int(found[chosen][manifest.modality]["version"])


def embedded(client: Client, texts: tuple[str, ...]) -> Queries:
    """Texts as queries, with the vectors that the service gives them."""
    vectors = np.stack([client.embed(text) for text in texts])
    return Queries(vectors, (None,) * len(texts), texts)


def measure_service(
    client: Client, name: str, index: Index, kinds: Mapping[str, Queries]
) -> ServiceRecall:
    """Ask a service and compare.

    Args:
        client: of the service.
        name: of the index there.
        index: the local copy, in the version that is served.
        kinds: queries by kind; those with texts are asked as texts.
    """
    replies: list[Found] = []
    recall, latencies = {}, {}
    for kind, queries in kinds.items():
        judge = Judge(index, queries)

        def answer(k: int, queries: Queries = queries) -> list[Any]:
            found = client.search_many(_asks(queries, k, name, index))
            replies.extend(found)
            return [one.matches for one in found]

        recall[kind] = judge.recall(answer)
        asked = _asks(queries, judge.shown_k, name, index)
        took = stopwatch(lambda ask: replies.append(client.search(**ask)), asked)
        latencies[kind] = latency(took)
    version = index.manifest.version
    return ServiceRecall(
        url=client.url,
        name=name,
        version=version,
        queries={kind: len(queries.own) for kind, queries in kinds.items()},
        recall=recall,
        latency=latencies,
        searched=min(_searched(reply) for reply in replies),
        degraded=sum(reply.degraded for reply in replies),
        strayed=sum(reply.version != version for reply in replies),
    )


def _asks(queries: Queries, k: int, name: str, index: Index) -> list[Ask]:
    common = Ask(index=name, modality=index.manifest.modality, k=k, columns=())
    if queries.texts:
        return [Ask(text=text, **common) for text in queries.texts]
    return [Ask(embedding=vector, **common) for vector in queries.vectors]


def _searched(reply: Found) -> float:
    total = reply.coverage.rows_total
    return reply.coverage.rows_searched / total if total else 1.0


def _names(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in found.items()) or "nothing"
