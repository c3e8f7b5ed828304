"""An index and, if there is one, the service over it: queries are drawn, asked and compared."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from clipray.evaluate.captions import caption_recall
from clipray.evaluate.pairs import Pairs, encode_texts, pairs_of_rows
from clipray.evaluate.recall import Queries, measure_index
from clipray.evaluate.sample import Row, draw
from clipray.evaluate.service import embedded, measure_service
from clipray.evaluate.subject import Subject
from clipray.evaluate.verdict import EvaluateReport, IndexRecall, ServiceRecall
from clipray.index import Index


@dataclass(frozen=True, slots=True)
class Searched:
    """What searching has shown.

    Attributes:
        own: how often captions find their own rows.
        pairs: the drawn rows that have captions, where the rows are pictures.
        notes: what could not be measured.
    """

    recall: IndexRecall | None = None
    service: ServiceRecall | None = None
    own: EvaluateReport | None = None
    pairs: Pairs | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, subject: Subject, index: Index) -> Self:
        """Measure an open index and its service.

        Raises:
            ModelError: the model of the index cannot be used; `--no-texts` goes without it.
            ClipRayError: the service fails.
        """
        config = subject.config
        rows = draw(index, config.queries, config.seed) if len(index) else []
        named = [row for row in rows if row.caption] if config.texts else []
        kinds: dict[str, Queries] = {}
        if rows:
            kinds[index.manifest.modality] = _as_queries(rows)
        own, pairs = None, None
        if named:
            own = caption_recall(index, subject.encoder, config.captions)
        if named and index.manifest.modality == "image":
            texts = tuple(row.caption for row in named)
            vectors = encode_texts(subject.encoder, texts)
            kinds["text"] = Queries(vectors, (None,) * len(texts), texts)
            pairs = pairs_of_rows(named, vectors)
        notes = _notes(subject, rows, named)
        if len(index) < 2:
            return cls(None, None, own, pairs, notes)
        recall = measure_index(index, str(config.index), kinds, curve=config.curve)
        service = _ask(subject, index, kinds)
        return cls(recall, service, own, pairs, notes + _doubts(service))


def _as_queries(rows: list[Row]) -> Queries:
    vectors = np.stack([row.vector for row in rows])
    return Queries(vectors, tuple(row.id for row in rows))


def _ask(subject: Subject, index: Index, kinds: dict[str, Queries]) -> ServiceRecall | None:
    if subject.client is None:
        return None
    asked = {
        kind: embedded(subject.client, queries.texts) if queries.texts else queries
        for kind, queries in kinds.items()
    }
    return measure_service(subject.client, subject.served, index, asked)


def _notes(subject: Subject, rows: list[Row], named: list[Row]) -> tuple[str, ...]:
    if len(rows) < 2:
        return (f"the index has {len(rows)} rows: nothing to compare",)
    if not named and subject.config.texts:
        return (f"none of {len(rows)} drawn rows has a caption: there are no text-like queries",)
    return ()


def _doubts(service: ServiceRecall | None) -> tuple[str, ...]:
    if service is None:
        return ()
    doubts = {
        "from a part of the index": service.degraded,
        f"from another version than {service.version}": service.strayed,
    }
    told = ((count, how) for how, count in doubts.items() if count)
    return tuple(f"{count} replies of the service were {how}" for count, how in told)
