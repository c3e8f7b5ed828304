"""Writing the live rows of segments anew: fewer segments, no dead rows, other shards.

Readers and other writers go on meanwhile. What they deleted from the old segments is deleted from
the new ones when those are put in their place; where another compaction was first, this one begins
again.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from clipray.errors import ConfigError, OutputError
from clipray.index.builder import SegmentPlan, build_segment
from clipray.index.deletions import Doomed, died_since, mark_shard
from clipray.index.feed import SegmentFeed, SegmentPiece
from clipray.index.manifest import IndexFolder, IndexManifest, SegmentRecord, ShardRecord
from clipray.index.method import EXACT_UP_TO, FLAT
from clipray.index.workers import Workers, in_order

log = logging.getLogger(__name__)

DEAD_SHARE = 0.2  # of a segment's rows; from here on it is written anew
MOST_SEGMENTS = 8  # in a shard; a query looks into each
TRIES = 5


@dataclass(frozen=True)
class Rewrite:
    """Segments that become one.

    Attributes:
        old: whole segments, or ranges of their live rows.
        shard: number of the shard that it belongs to afterwards.
        method: of the new segment.
    """

    old: tuple[SegmentPiece, ...]
    shard: int
    method: str

    @property
    def rows(self) -> int:
        """Rows of the new segment."""
        return sum(piece.rows for piece in self.old)


def needed(manifest: IndexManifest) -> list[Rewrite]:
    """What has too many dead rows, and small segments where there are too many of them."""
    found = []
    for number, shard in enumerate(manifest.shards):
        chosen = _worn(shard.segments)
        rows = sum(segment.live for segment in chosen)
        whole = len(chosen) == len(shard.segments)
        method = FLAT if rows <= EXACT_UP_TO and not whole else manifest.method
        if chosen:
            found.append(Rewrite(_whole(chosen), number, method))
    return found


def everything(manifest: IndexManifest) -> list[Rewrite]:
    """One segment a shard, wherever there is more than that or a dead row."""
    return [
        Rewrite(_whole(shard.segments), number, manifest.method)
        for number, shard in enumerate(manifest.shards)
        if len(shard.segments) > 1 or shard.dead
    ]


def recut(manifest: IndexManifest, shards: int) -> list[Rewrite]:
    """All rows, dealt out anew in their order.

    Raises:
        ConfigError: fewer rows than shards, or shards that stay on their nodes.
    """
    if manifest.placement == "node":
        raise ConfigError("shards: those of this index stay on their nodes; build it again")
    if shards > manifest.rows:
        raise ConfigError(f"shards: {shards} asked for, but there are {manifest.rows} rows")
    total = manifest.rows
    cuts = [(total * n // shards, total * (n + 1) // shards) for n in range(shards)]
    return [
        Rewrite(_between(manifest.segments, first, last), number, manifest.method)
        for number, (first, last) in enumerate(cuts)
    ]


def compact(
    folder: IndexFolder, workers: Workers, *, full: bool = True, shards: int | None = None
) -> IndexManifest:
    """Rewrite segments and commit the result; the newest version where nothing is to be done.

    Args:
        folder: of the index.
        workers: where segments are written.
        full: everything, not only what is needed.
        shards: how many there shall be; None for as many as there are.

    Raises:
        ConfigError: the shards cannot be cut anew.
        DamagedError: a file that is missing or changed.
        OutputError: other compactions were first every time.
    """
    for _ in range(TRIES):
        base = folder.read()
        if shards is not None and shards != len(base.shards):
            plan, count = recut(base, shards), shards
        else:
            plan, count = (everything if full else needed)(base), len(base.shards)
        if not plan:
            return base
        done = _Compaction(folder, base, tuple(plan), count, workers).run()
        if done is not None:
            return done
        log.info("%s: another compaction was first, again on top", folder.root)
    raise OutputError(f"{folder.root}: other compactions were first every time; try later")


@dataclass(frozen=True)
class _Compaction:
    """One try.

    Attributes:
        base: the version that is rewritten.
        count: shards afterwards.
    """

    folder: IndexFolder
    base: IndexManifest
    plan: tuple[Rewrite, ...]
    count: int
    workers: Workers

    def run(self) -> IndexManifest | None:
        """Write and commit; None where the old segments were gone or had changed back by then."""
        built = self._build()
        gone = False

        def on_top(newest: IndexManifest) -> IndexManifest | None:
            nonlocal gone
            here = {segment.id: segment for segment in newest.segments}
            gone = not self.old.keys() <= here.keys()
            gone |= len(newest.shards) != len(self.base.shards)
            fresh = None if gone else self._without_later_deaths(built, here)
            gone = fresh is None
            if fresh is None:
                return None
            return newest.next("compact", shards=self._reassembled(newest, fresh))

        done = self.folder.amend(on_top)
        return None if gone else done

    @property
    def old(self) -> dict[str, SegmentRecord]:
        """Segments that go, as they were in the base, by id."""
        return {piece.segment.id: piece.segment for rewrite in self.plan for piece in rewrite.old}

    @property
    def nodes(self) -> list[str | None]:
        """Where each rewrite has to run."""
        return [self._node(rewrite) for rewrite in self.plan]

    def _node(self, rewrite: Rewrite) -> str | None:
        held = self.base.placement == "node"
        return self.base.shards[rewrite.shard].node if held else None

    def _build(self) -> list[ShardRecord]:
        calls = [(self._planned(rewrite),) for rewrite in self.plan]
        running = self.workers.run(build_segment, calls, self.nodes)
        built = in_order(tqdm(running, total=len(calls), unit="segment", desc="compact"))
        records = (each.result for each in built)
        return [ShardRecord(segments=(record,) if record else ()) for record in records]

    def _planned(self, rewrite: Rewrite) -> SegmentPlan:
        return SegmentPlan(
            feed=SegmentFeed(rewrite.old),
            dim=self.base.model.dim,
            method=rewrite.method,
            codec=None if rewrite.method == FLAT else self.base.codec,
            total_rows=self.base.rows,
        )

    def _without_later_deaths(
        self, built: Sequence[ShardRecord], here: Mapping[str, SegmentRecord]
    ) -> list[ShardRecord] | None:
        """The new segments, with those rows marked that died in the old ones meanwhile.

        None where a row of the old ones lives again, which the new ones do not have.
        """
        old = self.old
        changed = [name for name in old if old[name].deletions != here[name].deletions]
        if not changed:
            return list(built)
        homes = {p.segment.id: self._node(rewrite) for rewrite in self.plan for p in rewrite.old}
        calls = [(old[name], here[name]) for name in changed]
        done = self.workers.run(died_since, calls, [homes[name] for name in changed])
        found = [each.result for each in done]
        if any(ids is None for ids in found):
            return None
        doomed = Doomed(ids=np.concatenate(found))
        marking = [(shard, doomed) for shard in built]
        marked = in_order(self.workers.run(mark_shard, marking, self.nodes))
        return [each.result.shard for each in marked]

    def _reassembled(
        self, newest: IndexManifest, fresh: Sequence[ShardRecord]
    ) -> tuple[ShardRecord, ...]:
        held: list[list[SegmentRecord]] = [[] for _ in range(self.count)]
        for rewrite, shard in zip(self.plan, fresh, strict=True):
            held[rewrite.shard] += shard.segments
        for number, shard in enumerate(newest.shards):
            kept = [segment for segment in shard.segments if segment.id not in self.old]
            held[number % self.count] += kept
        same = self.count == len(newest.shards)
        nodes = [shard.node if same else None for shard in newest.shards]
        nodes += [None] * (self.count - len(nodes))
        records = zip(held, nodes, strict=False)
        return tuple(ShardRecord(segments=tuple(own), node=node) for own, node in records)


def _worn(segments: Sequence[SegmentRecord]) -> list[SegmentRecord]:
    worn = [segment for segment in segments if segment.dead > DEAD_SHARE * segment.rows]
    rest = sorted((s for s in segments if s not in worn), key=lambda segment: segment.live)
    if len(rest) + bool(worn) > MOST_SEGMENTS:
        worn += rest[: len(rest) - MOST_SEGMENTS // 2]
    return worn


def _whole(segments: Sequence[SegmentRecord]) -> tuple[SegmentPiece, ...]:
    return tuple(SegmentPiece(segment, 0, segment.live) for segment in segments)


def _between(segments: Sequence[SegmentRecord], first: int, last: int) -> tuple[SegmentPiece, ...]:
    pieces, before = [], 0
    for segment in segments:
        start, stop = max(first - before, 0), min(last - before, segment.live)
        if start < stop:
            pieces.append(SegmentPiece(segment, start, stop))
        before += segment.live
    return tuple(pieces)
