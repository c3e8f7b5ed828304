"""One input shard to one part of an embeddings folder.

A pure function of its shard: it takes paths and numbers, so it runs the same in an actor, in a
test and in a loop. Every sample of the shard ends in the part, in `rejected` with its reason, or
among those that the filter did not select; the done-marker says so and is written last.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipray import storage
from clipray.decode_pool import DecodePool
from clipray.embeddings import EmbeddingsFolder, PartManifest
from clipray.encoder import Encoder
from clipray.errors import ClipRayError
from clipray.manifest import FileRecord, Modality, write_json
from clipray.prepare import PartSettings, Prepared, prepare
from clipray.rows import category, metadata_table, rejected_lines
from clipray.samples import Entry
from clipray.shards import Shard

ROW_GROUP = 10_000  # rows of a metadata file that are read at once

Halves = NDArray[np.float16]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PartPlan:
    """Which shard becomes which part."""

    part: int
    shard: Shard


@dataclass(frozen=True, slots=True)
class Workshop:
    """What parts are made with and where; shared by the shards that an actor has in hand.

    Attributes:
        settings: how.
        folder: where the parts go.
        encoder: gives the vectors.
        actor: whose it is, in the reports.
        pool: processes that decode; threads do where there is none.
        turn: held while the encoder runs.
        tick: is told how many more samples are through.
    """

    settings: PartSettings
    folder: EmbeddingsFolder
    encoder: Encoder
    actor: str = ""
    pool: DecodePool | None = None
    turn: AbstractContextManager[Any] = field(default_factory=threading.Lock)
    tick: Callable[[int], object] = lambda count: None


@dataclass(frozen=True, slots=True)
class PartReport:
    """What became of one shard.

    Attributes:
        part: number of the part.
        path: of the shard.
        actor: who embedded it.
        samples: samples in it, all of them: rows, rejected and not selected.
        rows: samples embedded.
        rejected: samples left out, by reason.
        damage: why the whole shard was left out, if it was.
        kept: whether the part was already there.
        began: time of day in seconds.
        ended: likewise.
        seconds: where the time went, by stage; `decode` is that of all threads.
    """

    part: int
    path: str
    actor: str = ""
    samples: int = 0
    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    damage: str | None = None
    kept: bool = False
    began: float = 0.0
    ended: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Draft:
    """A part while it grows."""

    rows: list[Prepared] = field(default_factory=list)
    chunks: dict[Modality, list[Halves]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    filtered: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


def embed_shard(plan: PartPlan, shop: Workshop) -> PartReport:
    """Embed one shard and publish its part; a damaged shard is reported and writes nothing.

    A part that is there already, made from the same shard, is left as it is.

    Raises:
        ClipRayError: the part cannot be written, as on a full disk.
    """
    report = PartReport(plan.part, str(plan.shard.path), shop.actor, began=time.time())
    done = shop.folder.part(plan.part)
    if not done:
        with _writing(shop.folder.root):
            shop.folder.clear(plan.part)
    with ExitStack() as stack:
        try:
            signature = plan.shard.signature()
            if done:
                return _kept(report, done, signature)
            shard = stack.enter_context(plan.shard.at_hand())
        except OSError as error:
            return replace(report, damage=f"cannot be read ({error.strerror or error})")
        return _embed_listed(replace(plan, shard=shard), signature, report, shop)


def _kept(report: PartReport, done: PartManifest, signature: str) -> PartReport:
    if done.signature != signature:
        changed = f"was {done.signature} when it was embedded, is now {signature}"
        return replace(report, damage=changed)
    return replace(_counted(report, done), kept=True)


def _embed_listed(plan: PartPlan, signature: str, report: PartReport, shop: Workshop) -> PartReport:
    listing = shop.pool.list(plan.shard) if shop.pool else plan.shard.list()
    if listing.damage:
        return replace(report, damage=listing.damage, ended=time.time())
    draft = _Draft(chunks={name: [] for name in shop.settings.modalities})
    draft.seconds["list"] = time.time() - report.began
    clock = _Clock()
    prepared = _prepared(listing.entries, shop)
    for batch in _batches(prepared, shop, draft, clock):
        _encode_rows(batch, draft, shop)
        clock.lap()
    with _writing(shop.folder.root):
        files = _write_files(plan.part, draft, shop)
        done = PartManifest(
            shard=plan.shard.name,
            signature=signature,
            model=shop.encoder.identity.fingerprint,
            samples=len(listing.entries),
            rows=len(draft.rows),
            rejected=Counter(category(reason) for _, reason in draft.rejected),
            filtered=draft.filtered,
            members=plan.shard.members,
            files=files,
        )
        write_json(shop.folder.done(plan.part), done)
    draft.seconds["write"] = clock.lap()
    return replace(_counted(report, done), ended=time.time(), seconds=dict(draft.seconds))


def _prepared(entries: Iterable[Entry], shop: Workshop) -> Iterator[Prepared]:
    if shop.pool:
        return shop.pool.prepare(entries, shop.encoder.pixels)
    return prepare(entries, shop.settings, shop.encoder.pixels)


class _Clock:
    """Time since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def _counted(report: PartReport, done: PartManifest) -> PartReport:
    return replace(report, samples=done.samples, rows=done.rows, rejected=done.rejected)


def _batches(
    prepared: Iterable[Prepared], shop: Workshop, draft: _Draft, clock: _Clock
) -> Iterator[list[Prepared]]:
    """Full batches of what can be encoded; the others are entered in the draft."""
    batch: list[Prepared] = []
    passed = 0
    for sample in prepared:
        passed += 1
        draft.seconds["decode"] += sample.seconds
        if sample.rejection:
            draft.rejected.append((sample.entry.key, sample.rejection))
        elif not sample.selected:
            draft.filtered += 1
        else:
            batch.append(sample)
        if len(batch) == shop.settings.batch_size:
            draft.seconds["wait"] += clock.lap()
            yield batch
            shop.tick(passed)
            batch, passed = [], 0
    draft.seconds["wait"] += clock.lap()
    if batch:
        yield batch
    shop.tick(passed)


def _encode_rows(batch: Sequence[Prepared], draft: _Draft, shop: Workshop) -> None:
    """Encode a batch, and enter its vectors and the rows that are finite."""
    given = {name: _given(name, batch, shop.encoder) for name in draft.chunks}
    with shop.turn:
        began = time.perf_counter()
        encoded = {name: _encode(name, asked, shop.encoder) for name, asked in given.items()}
        draft.seconds["encode"] += time.perf_counter() - began
    halves = {name: vectors.astype(np.float16) for name, vectors in encoded.items()}
    finite = np.all([np.isfinite(v).all(axis=1) for v in halves.values()], axis=0)
    for name, vectors in halves.items():
        draft.chunks[name].append(vectors[finite])
    for sample, is_finite in zip(batch, finite, strict=True):
        if is_finite:
            draft.rows.append(Prepared(sample.entry, sample.columns))  # lets the pixels go
        else:
            draft.rejected.append((sample.entry.key, "embedding not finite"))


def _given(name: Modality, batch: Sequence[Prepared], encoder: Encoder) -> Any:
    """What a tower is asked; another batch may be encoded meanwhile."""
    if name == "text":
        return [sample.columns["caption"] for sample in batch]
    return encoder.gather([s.pixels for s in batch if s.pixels is not None])


def _encode(name: Modality, given: Any, encoder: Encoder) -> Vectors:
    return encoder.encode_texts(given) if name == "text" else encoder.encode_images(given)


def _write_files(part: int, draft: _Draft, shop: Workshop) -> dict[str, FileRecord]:
    folder = shop.folder
    fills: dict[Path, Callable[[storage.Sink], object]] = {}
    if draft.rows:  # embedding-reader cannot pair files without rows
        fills[folder.metadata(part)] = partial(_save_table, metadata_table(draft.rows))
        for name, chunks in draft.chunks.items():
            fills[folder.vectors(part, name)] = partial(_save, np.concatenate(chunks))
    if draft.rejected:
        fills[folder.rejected(part)] = lambda sink: sink.write(rejected_lines(draft.rejected))
    return {
        str(path.relative_to(folder.root)): FileRecord.of(storage.stream_file(path, fill))
        for path, fill in fills.items()
    }


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Tell what the output cannot take apart from what is wrong with an input."""
    try:
        yield
    except OSError as error:
        raise ClipRayError(
            f"{error.filename or root}: cannot be written ({error.strerror or error}); what is "
            "finished stays, run the job again when that is mended"
        ) from error


def _save_table(table: pa.Table, sink: storage.Sink) -> None:
    pq.write_table(table, pa.PythonFile(sink, "w"), row_group_size=ROW_GROUP)


def _save(array: Halves, sink: storage.Sink) -> None:
    np.save(sink, array)
