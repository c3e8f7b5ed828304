"""Adding rows to an index: new segments, and an end to the older rows with the same keys.

The new segments are small next to the index, so adding costs what the new rows cost. A row whose
vector cannot be used leaves the older one with its key alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipray.embeddings import Parts
from clipray.errors import InputError, MismatchError
from clipray.index.builder import PartSlice, SegmentPlan, assign_rows, build_segment
from clipray.index.construct import feed, survey
from clipray.index.deletions import Doomed, mark_shard
from clipray.index.manifest import IndexFolder, IndexManifest, SegmentRecord, ShardRecord
from clipray.index.method import EXACT_UP_TO, FLAT
from clipray.index.placing import Placed, place
from clipray.index.survey import PartSurvey, Selection
from clipray.index.workers import Workers, in_order


@dataclass(frozen=True)
class Appended:
    """What an append did.

    Attributes:
        manifest: the committed version.
        rows: that came.
        replaced: how many of them took the place of an older row.
        rejected: rows left out, by reason.
    """

    manifest: IndexManifest
    rows: int
    replaced: int
    rejected: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Share:
    """Rows of one node for one shard."""

    shard: int
    node: str | None
    slices: Sequence[PartSlice]


def append_parts(folder: IndexFolder, parts: Parts, workers: Workers) -> Appended:
    """Add the rows of all parts, in one version.

    Raises:
        MismatchError: embeddings of another model or modality.
        InputError: no row can be used.
        DamagedError: a file that is missing or changed.
    """
    base = folder.read()
    _require_same(base, parts, folder)
    placed = place(parts, workers)
    parts = placed.parts
    surveys, selection = survey(placed, FLAT, workers)
    if not selection.rows:
        raise InputError(f"{parts.root}: no usable row; left out: {selection.reasons()}")
    built = _build(base, placed, selection, workers)
    ids = _ids(surveys, selection)
    came = parts.fingerprints().values()
    replaced = 0

    def on_top(newest: IndexManifest) -> IndexManifest:
        nonlocal replaced
        marked = mark(newest, Doomed(ids=ids), workers)
        replaced = sum(len(found) for _, found in marked)
        shards = [shard for shard, _ in marked]
        for number, segment in built:
            held = shards[number % len(shards)]
            segments = (*held.segments, segment)
            shards[number % len(shards)] = held.model_copy(update={"segments": segments})
        named = tuple(dict.fromkeys((*newest.parts, *came)))
        return newest.next("append", shards=tuple(shards), parts=named)

    manifest = folder.amend(on_top)
    return Appended(manifest, len(ids), replaced, selection.reasons())


def mark(
    manifest: IndexManifest, doomed: Doomed, workers: Workers
) -> list[tuple[ShardRecord, NDArray[np.int64]]]:
    """Every shard with the doomed rows marked, and the ids of those that were live."""
    calls = [(shard, doomed) for shard in manifest.shards]
    done = workers.run(mark_shard, calls, [shard.node for shard in manifest.shards])
    return [(each.result.shard, each.result.ids) for each in in_order(done)]


def _require_same(base: IndexManifest, parts: Parts, folder: IndexFolder) -> None:
    base.model.require(parts.manifest.model, f"{folder.root}: the model of {parts.root}")
    if parts.modality != base.modality:
        raise MismatchError(
            f"{parts.root}: {parts.modality} vectors, but {folder.root} holds {base.modality} ones"
        )


def _shares(base: IndexManifest, placed: Placed, *, few: bool) -> list[_Share]:
    """Few rows go to the smallest shard, more to all; those of a node's own disk stay there."""
    order = sorted(range(len(base.shards)), key=lambda number: base.shards[number].rows)
    shares = []
    for node, rows in placed.rows().items():
        shards = [n for n in order if node is None or base.shards[n].node in (None, node)]
        if not shards:
            raise InputError(
                f"{placed.parts.root}: parts of it lie on the disk of node '{node}', which holds "
                "no shard of the index; put them where every node sees them, or build anew"
            )
        count = 1 if few else min(len(shards), sum(rows.values()))
        dealt = zip(shards, assign_rows(rows, count), strict=False)
        shares += [_Share(shard, node, slices) for shard, slices in dealt]
    return shares


def _build(
    base: IndexManifest, placed: Placed, selection: Selection, workers: Workers
) -> list[tuple[int, SegmentRecord]]:
    """New segments, each with the number of the shard it goes to."""
    parts, few = placed.parts, selection.rows <= EXACT_UP_TO
    shares = _shares(base, placed, few=few)
    plans = [
        SegmentPlan(
            feed=feed(parts, selection, share.slices),
            dim=parts.dim,
            method=FLAT if few else base.method,
            codec=None if few else base.codec,
            total_rows=max(base.rows, 1),
        )
        for share in shares
    ]
    nodes = [share.node or base.shards[share.shard].node for share in shares]
    running = workers.run(build_segment, [(plan,) for plan in plans], nodes)
    done = list(tqdm(running, total=len(plans), unit="segment", desc="append"))
    built = [(shares[each.call].shard, each.result) for each in in_order(done)]
    return [(shard, segment) for shard, segment in built if segment is not None]


def _ids(surveys: Sequence[PartSurvey], selection: Selection) -> NDArray[np.int64]:
    return np.concatenate([survey.ids[selection.keep[survey.part]] for survey in surveys])
