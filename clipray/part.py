"""One input shard to one part of an embeddings folder.

A pure function of its shard: it takes paths and numbers, so it runs the same in an actor, in a
test and in a loop. Decoding runs in threads ahead of the encoder. Every sample ends in the part
or in `rejected`, with its reason.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipray import storage
from clipray.dataset import Shard
from clipray.embeddings import KEY_COLUMN
from clipray.encoder import Encoder
from clipray.errors import ImageError
from clipray.manifest import EmbeddingsFolder, FileRecord, Modality, PartManifest, write_json
from clipray.pixels import Pixels
from clipray.samples import Entry, as_unicode

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class PartPlan:
    """Which shard becomes which part."""

    part: int
    shard: Shard


@dataclass(frozen=True, slots=True)
class PartSettings:
    """How parts are made; the same for all of a folder."""

    modalities: tuple[Modality, ...]
    batch_size: int = 64
    decode_threads: int = 2


@dataclass(frozen=True, slots=True)
class PartReport:
    """What became of one shard.

    Attributes:
        rows: samples embedded.
        rejected: samples left out, by reason.
        damage: why the whole shard was left out, if it was.
        seconds: wall time.
    """

    plan: PartPlan
    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    damage: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    entry: Entry
    columns: dict[str, Any]
    pixels: Pixels | None = None
    rejection: str | None = None


def embed_shard(
    plan: PartPlan, settings: PartSettings, folder: EmbeddingsFolder, encoder: Encoder
) -> PartReport:
    """Embed one shard and publish its part; a damaged shard is reported and writes nothing."""
    began = time.monotonic()
    listing = plan.shard.list()
    if listing.damage:
        return PartReport(plan, damage=listing.damage)
    rows, vectors, rejected = _embed(listing.entries, settings, encoder)
    files = _write_files(plan, folder, rows, vectors, rejected)
    reasons = Counter(_category(reason) for _, reason in rejected)
    done = PartManifest(
        shard=plan.shard.name,
        signature=plan.shard.signature(),
        model=encoder.identity.fingerprint,
        rows=len(rows),
        rejected=reasons,
        files=files,
    )
    write_json(folder.done(plan.part), done)
    return PartReport(plan, len(rows), dict(reasons), None, time.monotonic() - began)


def _embed(
    entries: Sequence[Entry], settings: PartSettings, encoder: Encoder
) -> tuple[list[_Prepared], dict[Modality, NDArray[np.float16]], list[tuple[str, str]]]:
    kept: list[_Prepared] = []
    rejected: list[tuple[str, str]] = []
    chunks: dict[Modality, list[NDArray[np.float32]]] = {name: [] for name in settings.modalities}

    def prepare(entry: Entry) -> _Prepared:
        return _prepare(entry, settings, encoder)

    with ThreadPoolExecutor(settings.decode_threads) as pool:
        prepared = _ahead(pool, prepare, entries, 2 * settings.batch_size)
        for batch in _batches(prepared, settings.batch_size):
            rejected += [(p.entry.key, p.rejection) for p in batch if p.rejection]
            good = [p for p in batch if not p.rejection]
            if good:
                kept += _encode_rows(good, chunks, encoder, rejected)
    return kept, {name: _stack(c, encoder.identity.dim) for name, c in chunks.items()}, rejected


def _encode_rows(
    batch: Sequence[_Prepared],
    chunks: dict[Modality, list[NDArray[np.float32]]],
    encoder: Encoder,
    rejected: list[tuple[str, str]],
) -> list[_Prepared]:
    """Encode a batch, append its vectors to `chunks`, and return the rows that are finite."""
    encoded = {name: _encode(name, batch, encoder) for name in chunks}
    finite = np.all([np.isfinite(v).all(axis=1) for v in encoded.values()], axis=0)
    for name, vectors in encoded.items():
        chunks[name].append(vectors[finite])
    pairs = list(zip(batch, finite, strict=True))
    rejected += [(p.entry.key, "embedding not finite") for p, fine in pairs if not fine]
    return [_Prepared(p.entry, p.columns) for p, fine in pairs if fine]  # lets the pixels go


def _encode(name: Modality, batch: Sequence[_Prepared], encoder: Encoder) -> NDArray[np.float32]:
    if name == "text":
        return encoder.encode_texts([p.columns["caption"] for p in batch])
    return encoder.encode_images([p.pixels for p in batch if p.pixels is not None])


def _prepare(entry: Entry, settings: PartSettings, encoder: Encoder) -> _Prepared:
    if entry.duplicate:
        return _Prepared(entry, {}, rejection="duplicate key: it comes again in its shard")
    try:
        return _read(entry, settings, encoder)
    except ImageError as error:
        return _Prepared(entry, {}, rejection=str(error))
    except OSError as error:
        return _Prepared(entry, {}, rejection=f"cannot be read: {error.strerror}")


def _read(entry: Entry, settings: PartSettings, encoder: Encoder) -> _Prepared:
    columns = entry.read_columns()
    if "text" in settings.modalities and not columns["caption"]:
        return _Prepared(entry, columns, rejection="no caption")
    if "image" not in settings.modalities:
        return _Prepared(entry, columns)
    if entry.image is None:
        return _Prepared(entry, columns, rejection="no image")
    return _Prepared(entry, columns, encoder.pixels(entry.read_image()))


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    window: int,
) -> Iterator[ResultT]:
    pending: deque[Future[ResultT]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(items: Iterator[ItemT], size: int) -> Iterator[list[ItemT]]:
    while batch := list(islice(items, size)):
        yield batch


def _stack(chunks: Sequence[NDArray[np.float32]], dim: int) -> NDArray[np.float16]:
    empty = np.empty((0, dim), np.float32)
    return np.concatenate([empty, *chunks]).astype(np.float16)


def _write_files(
    plan: PartPlan,
    folder: EmbeddingsFolder,
    rows: Sequence[_Prepared],
    vectors: dict[Modality, NDArray[np.float16]],
    rejected: Sequence[tuple[str, str]],
) -> dict[str, FileRecord]:
    table = _table(rows)
    fills: dict[Any, Callable[[storage.Sink], object]] = {
        folder.metadata(plan.part): lambda sink: pq.write_table(table, pa.PythonFile(sink, "w")),
    }
    for name, array in vectors.items():
        fills[folder.vectors(plan.part, name)] = partial(_save, array)
    if rejected:
        fills[folder.rejected(plan.part)] = lambda sink: sink.write(_json_lines(rejected))
    return {
        str(path.relative_to(folder.root)): FileRecord.of(storage.stream_file(path, fill))
        for path, fill in fills.items()
    }


def _save(array: NDArray[np.float16], sink: storage.Sink) -> None:
    np.save(sink, array)


def _json_lines(rejected: Sequence[tuple[str, str]]) -> bytes:
    lines = ({"key": key, "reason": _category(why), "detail": why} for key, why in rejected)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(
        "utf-8", errors="replace"
    )


def _table(rows: Sequence[_Prepared]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row.columns if name != "caption")
    own: dict[str, Any] = {
        KEY_COLUMN: pa.array([row.entry.key for row in rows], pa.string()),
        "caption": pa.array([row.columns["caption"] for row in rows], pa.string()),
    }
    given = {name: _column([row.columns.get(name) for row in rows]) for name in names}
    located = [row.entry.image for row in rows]
    return pa.table(
        {name: values for name, values in given.items() if name not in own}
        | own
        | {
            "source_path": pa.array(
                [at and as_unicode(str(at.path)) for at in located], pa.string()
            ),
            "source_offset": pa.array([at and at.offset for at in located], pa.int64()),
            "source_size": pa.array([at and at.size for at in located], pa.int64()),
        }
    )


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):  # mixed types
        clean = [None if value is None else str(value) for value in values]
        return pa.array([c and c.encode("utf-8", "replace").decode() for c in clean], pa.string())


def _category(reason: str) -> str:
    return reason.partition(":")[0]
