"""A new index: what is planned, trained and built before its first version is committed."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ByteSize, Field
from tqdm import tqdm

from clipray.config import Config
from clipray.embeddings import Parts
from clipray.errors import InputError, UnavailableError
from clipray.index import codec as codecs
from clipray.index.builder import PartSlice, SegmentPlan
from clipray.index.feed import PartFeed, PartPiece
from clipray.index.ledger import Ledger, build_shard
from clipray.index.manifest import (
    Codec,
    IndexFolder,
    IndexManifest,
    Placement,
    SearchSettings,
    ShardRecord,
)
from clipray.index.method import FLAT, Choice, choose, default_settings, new_index
from clipray.index.placing import Placed, place
from clipray.index.survey import Mask, PartSurvey, Selection, select, survey_part
from clipray.index.upkeep import missing_of
from clipray.index.workers import Arguments, Workers, in_order

TRIES = 3

log = logging.getLogger(__name__)


class IndexOptions(Config):
    """How an index is built."""

    method: str = Field(
        "auto", description="auto, Flat, HNSW32, IVF, or a string of Faiss's index_factory"
    )
    shards: int = Field(1, ge=1, description="how many shards")
    recall: float = Field(
        0.95, gt=0, le=1, description="recall@10 of text queries that auto chooses and tunes for"
    )
    memory: ByteSize | None = Field(
        None, description="most memory that auto lets the index of one shard take, such as 4GB"
    )
    placement: Placement = Field(
        "shared",
        description="shared: all nodes see the index folder; node: each shard stays on the disk "
        "of the node that built it",
    )


@dataclass(frozen=True)
class Made:
    """An index that is built and not yet committed."""

    manifest: IndexManifest
    ledger: Ledger
    rejected: dict[str, int]


def construct(parts: Parts, folder: IndexFolder, options: IndexOptions, workers: Workers) -> Made:
    """Build all shards of a new index.

    Raises:
        ConfigError: an unusable method, or a number of shards that cannot be had.
        InputError: no row can be used.
        DamagedError: a file of the embeddings is missing or changed.
    """
    placed = place(parts, workers)
    parts = placed.parts
    shards = placed.shards(options.shards)
    choice = _choose(parts, options)
    log.info("%s over %d rows in %d shards: %s", choice.method, parts.rows, len(shards), choice.why)
    ledger = Ledger.of(folder.root, parts, choice.method, options.shards)
    surveys, selection = survey(placed, choice.method, workers)
    if not selection.rows:
        raise InputError(f"{parts.root}: no usable row; left out: {selection.reasons()}")
    codec = _codec(ledger, parts, choice.method, surveys)
    plans = [
        SegmentPlan(
            feed=feed(parts, selection, mine),
            dim=parts.dim,
            method=choice.method,
            codec=codec,
            total_rows=parts.rows,
        )
        for _, mine in shards
    ]
    calls = [(ledger.fingerprint, *planned) for planned in enumerate(plans)]
    built = _build(calls, [node for node, _ in shards], workers, held=options.placement == "node")
    manifest = IndexManifest(
        version=1,
        model=parts.manifest.model,
        source=parts.manifest.source,
        modality=parts.modality,
        method=choice.method,
        why=choice.why,
        codec=codec,
        settings=_settings(parts, choice.method),
        placement=options.placement,
        parts=tuple(parts.fingerprints().values()),
        shards=built,
    )
    return Made(manifest, ledger, selection.reasons())


def _build(
    calls: Sequence[Arguments], homes: Sequence[str | None], workers: Workers, *, held: bool
) -> tuple[ShardRecord, ...]:
    """Build every shard; one whose node was lost, and its disk with it, is built once more.

    Raises:
        UnavailableError: nodes were lost again and again.
    """
    built: dict[int, ShardRecord] = {}
    with tqdm(total=len(calls), unit="shard", desc="index") as bar:
        for _ in range(TRIES):
            missing = [number for number in range(len(calls)) if number not in built]
            again, where = [calls[n] for n in missing], [homes[n] for n in missing]
            for done in workers.run(build_shard, again, where):
                node = done.node if held else None
                built[missing[done.call]] = done.result.model_copy(update={"node": node})
                bar.update()
            lost = [number for number in built if held and not _is_there(built[number], workers)]
            if not lost:
                return tuple(built[number] for number in range(len(calls)))
            for number in lost:
                log.warning("shard %d: node %s is gone, again", number, built.pop(number).node)
                bar.update(-1)
    raise UnavailableError(
        f"nodes were lost {TRIES} times while their shards were built; try again"
    )


def _is_there(shard: ShardRecord, workers: Workers) -> bool:
    try:
        return not any(done.result for done in workers.run(missing_of, [(shard,)], [shard.node]))
    except UnavailableError:
        return False


def survey(placed: Placed, method: str, workers: Workers) -> tuple[list[PartSurvey], Selection]:
    """Look at all parts: what can enter, and vectors to train on."""
    parts = placed.parts
    share = min(1.0, codecs.training_rows(method, parts.dim, parts.rows) / parts.rows)
    calls = [(parts.only([number]), number, share) for number in parts]
    done = workers.run(survey_part, calls, [placed.home[number] for number in parts])
    surveys = [each.result for each in in_order(done)]
    return surveys, select(surveys)


def feed(parts: Parts, selection: Selection, slices: Iterable[PartSlice]) -> PartFeed:
    """The selected rows of some slices."""
    pieces = [PartPiece(piece.part, _within(selection.keep[piece.part], piece)) for piece in slices]
    return PartFeed(parts.only(piece.part for piece in pieces), tuple(pieces), selection.columns)


def _within(keep: Mask, piece: PartSlice) -> Mask:
    mine = np.zeros(len(keep), bool)
    mine[piece.start : piece.stop] = keep[piece.start : piece.stop]
    return mine


def _choose(parts: Parts, options: IndexOptions) -> Choice:
    if options.method != "auto":
        return Choice(options.method, "asked for")
    return choose(parts.dim, parts.rows, options.shards, options.memory, options.recall)


def _codec(
    ledger: Ledger, parts: Parts, method: str, surveys: Iterable[PartSurvey]
) -> Codec | None:
    if not codecs.training_rows(method, parts.dim, parts.rows):
        return None
    codec = ledger.codec()
    if codec is None:
        ordered = sorted(surveys, key=lambda survey: survey.part)
        sample = np.concatenate([survey.sample for survey in ordered]).astype(np.float32)
        codec = codecs.train(ledger.folder, method, parts.rows, sample)
        ledger.keep_codec(codec)
    return codec


def _settings(parts: Parts, method: str) -> SearchSettings:
    if method == FLAT:
        return SearchSettings()
    return default_settings(new_index(method, parts.dim, parts.rows))
