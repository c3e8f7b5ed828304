"""Embeddings, segments and indices of vectors that a test chose, written without model and Ray."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipray.embeddings import (
    EmbeddingSettings,
    EmbeddingsFolder,
    EmbeddingsManifest,
    PartManifest,
    Parts,
)
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder, SegmentRecord, ShardRecord
from clipray.index.method import FLAT, new_index
from clipray.index.segment import Segment
from clipray.index.table import row_ids
from clipray.index.workers import Here
from clipray.index.writer import SegmentWriter
from clipray.manifest import FileRecord, ModelIdentity, ModelSource, write_json
from clipray.storage import stream_file


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_halves(rows, dim=16, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, dim))).astype(np.float16)


def clustered_halves(clusters, each, dim=16, seed=0):
    """Unit vectors around `clusters` centres, and the centre of each row."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(clusters), each))
    centres = unit(rng.normal(size=(clusters, dim)))
    noise = unit(rng.normal(size=(len(labels), dim)))
    return unit(centres[labels] + 0.7 * noise).astype(np.float16), labels


def brute_force(vectors, ids, query, k, allowed=None):
    """Ids and scores of the best rows: by float64 products, ties by id."""
    rows = np.arange(len(ids)) if allowed is None else np.flatnonzero(allowed)
    scores = (vectors[rows].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((ids[rows], -scores))[:k]
    return ids[rows][order].tolist(), scores[order].tolist()


def found(matches):
    """Ids and scores, as `brute_force` gives them."""
    return matches.ids, [match.score for match in matches]


def row_table(keys, ids=None, **columns):
    """Rows of a segment."""
    ids = row_ids(keys) if ids is None else ids
    return pa.table(
        {"id": pa.array(ids, pa.int64()), "key": pa.array(keys, pa.string()), **columns}
    )


def write_segment(folder, vectors, rows, method=FLAT, index=None):
    """Files of a segment by name; `index` is an empty one, else `method` is trained on the rows."""
    folder.mkdir(parents=True)
    if method != FLAT and index is None:
        index = new_index(method, vectors.shape[1], len(vectors))
        index.train(vectors.astype(np.float32))
    with SegmentWriter(folder, *vectors.shape, rows.schema, index) as writer:
        for start in range(0, len(rows), 1000):
            writer.add(vectors[start : start + 1000], rows.slice(start, 1000))
    return writer.files


def make_segment(folder, vectors, rows=None, method=FLAT, dead=None, settings=None):
    """An open segment; its keys are `s/0`, `s/1` … unless `rows` are given."""
    rows = row_table([f"s/{row}" for row in range(len(vectors))]) if rows is None else rows
    write_segment(folder, vectors, rows, method)
    return Segment(folder, dead, settings)


def write_shard(root, pieces, method=FLAT):
    """An index folder with one shard of several segments, (vectors, rows) each; no version yet."""
    folder = IndexFolder(root)
    records = []
    for number, (vectors, rows) in enumerate(pieces):
        files = write_segment(folder.segment(str(number)), vectors, rows, method)
        records.append(SegmentRecord(id=str(number), rows=len(rows), files=files))
    return folder, ShardRecord(segments=tuple(records))


def build_index(root, embeddings, method=FLAT, shards=1, modality=None, **options):
    """Build an index in this process and commit it; returns what `construct` made."""
    folder = IndexFolder(root)
    chosen = IndexOptions(method=method, shards=shards, **options)
    made = construct(Parts.open(embeddings, modality), folder, chosen, Here(folder.root))
    assert folder.commit(made.manifest)
    made.ledger.clear()
    return made


def write_embeddings(root, parts, columns=None, texts=None, model=None):
    """Parts as (keys, float16 vectors).

    Args:
        root: where.
        parts: images, or texts where `texts` are there as well.
        columns: by part, metadata beside the keys.
        texts: float16 vectors of the other tower, for each part.
        model: identity and source of the one they are said to be of.
    """
    folder = EmbeddingsFolder(root)
    dim = parts[0][1].shape[1]
    none = ModelIdentity(name="none", dim=dim, weights="w", preprocess="p", tokenizer="t")
    identity, source = model or (none, ModelSource(name="none"))
    settings = EmbeddingSettings(modality="image" if texts is None else "both")
    write_json(
        folder.manifest, EmbeddingsManifest(model=identity, source=source, settings=settings)
    )
    for number, (keys, vectors) in enumerate(parts):
        more = (columns or {}).get(number, {})
        table = pa.table({"image_path": pa.array(keys, pa.string()), **more})
        write_part(folder, number, table, vectors, None if texts is None else texts[number])
    return root


def write_part(folder, number, table, vectors, texts=None):
    fills = {
        folder.metadata(number): lambda sink: pq.write_table(table, pa.PythonFile(sink, "w")),
        folder.vectors(number, "image"): lambda sink: np.save(sink, vectors),
    }
    if texts is not None:
        fills[folder.vectors(number, "text")] = lambda sink: np.save(sink, texts)
    files = {
        str(path.relative_to(folder.root)): FileRecord.of(stream_file(path, fill))
        for path, fill in fills.items()
    }
    done = PartManifest(
        shard=f"s/{number}",
        signature="",
        model="m",
        samples=len(vectors),
        rows=len(vectors),
        files=files,
    )
    write_json(folder.done(number), done)


def cut_parts(vectors, parts):
    """(keys, vectors) of several parts; the keys are `s/0`, `s/1` …"""
    places = np.array_split(np.arange(len(vectors)), parts)
    return [([f"s/{row}" for row in rows], vectors[rows]) for rows in places]


def keys_ids(count):
    """Ids of the keys `s/0`, `s/1` …"""
    return row_ids(f"s/{row}" for row in range(count))
