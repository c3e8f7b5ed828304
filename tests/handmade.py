"""Embeddings folders of vectors that a test chose, written without a model."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipray.embeddings import (
    EmbeddingSettings,
    EmbeddingsFolder,
    EmbeddingsManifest,
    PartManifest,
)
from clipray.manifest import FileRecord, ModelIdentity, ModelSource, write_json
from clipray.storage import stream_file


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_halves(rows, dim=16, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, dim))).astype(np.float16)


def write_embeddings(root, parts, columns=None):
    """Parts as (keys, float16 vectors); `columns` by part are metadata beside the keys."""
    folder = EmbeddingsFolder(root)
    dim = parts[0][1].shape[1]
    identity = ModelIdentity(name="none", dim=dim, weights="w", preprocess="p", tokenizer="t")
    source = ModelSource(name="none")
    settings = EmbeddingSettings(modality="image")
    write_json(
        folder.manifest, EmbeddingsManifest(model=identity, source=source, settings=settings)
    )
    for number, (keys, vectors) in enumerate(parts):
        more = (columns or {}).get(number, {})
        write_part(folder, number, pa.table({"image_path": keys, **more}), vectors)
    return root


def write_part(folder, number, table, vectors):
    fills = {
        folder.metadata(number): lambda sink: pq.write_table(table, pa.PythonFile(sink, "w")),
        folder.vectors(number, "image"): lambda sink: np.save(sink, vectors),
    }
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
