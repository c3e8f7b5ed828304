"""The trained quantizer that all shards of an index share.

With one codec an answer does not depend on how the rows are cut into shards. Training and filling
use a GPU where Faiss sees one.
"""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clipray import storage
from clipray.errors import ConfigError
from clipray.index.manifest import Codec, IndexFolder
from clipray.index.method import FLAT, inverted_of, new_index
from clipray.index.segment import read_faiss
from clipray.index.writer import write_faiss
from clipray.manifest import FileRecord

log = logging.getLogger(__name__)

LEAST_ROWS = 65_536  # to train on, where there are so many
ROWS_PER_LIST = 64

Vectors = NDArray[np.float32]


def training_rows(method: str, dim: int, rows: int) -> int:
    """How many of `rows` to train on: 0 for a method that needs no training."""
    if method == FLAT:
        return 0
    index = new_index(method, dim, rows)
    if index.is_trained:
        return 0
    inverted = inverted_of(index)
    lists = inverted.nlist if inverted is not None else 0
    return min(rows, max(LEAST_ROWS, ROWS_PER_LIST * lists))


def train(folder: IndexFolder, method: str, rows: int, sample: Vectors) -> Codec:
    """Train one quantizer and publish it.

    Args:
        folder: of the index.
        method: as for `method.new_index`.
        rows: of all shards together.
        sample: (n, dim) unit vectors of all parts.

    Raises:
        ConfigError: when they are too few for the method.
    """
    index = new_index(method, sample.shape[1], rows)
    log.info("training %s on %d rows", method, len(sample))
    inverted = inverted_of(index)
    _be_content_with_few(index)
    if inverted is not None and faiss.get_num_gpus():
        inverted.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(index.d))
    try:
        index.train(np.ascontiguousarray(sample))
    except RuntimeError as error:
        told = str(error).splitlines()[-1][-200:]
        raise ConfigError(
            f"method '{method}': cannot be trained on {len(sample)} rows ({told})"
        ) from None
    return _publish(folder, index)


def empty_index(folder: IndexFolder, codec: Codec | None, method: str, dim: int, rows: int) -> Any:
    """An index to fill; None for an exact scan.

    Raises:
        DamagedError: when the codec is missing or changed.
    """
    if method == FLAT:
        return None
    if codec is None:
        return new_index(method, dim, rows)
    path = folder.codecs / codec.name
    codec.file.verify(path)
    return read_faiss(path)


@contextmanager
def filling(index: Any) -> Iterator[None]:
    """Let a GPU find the lists of the rows that are added inside the block.

    A graph over the lists stays where it is: Faiss has none for GPUs.
    """
    inverted = inverted_of(index) if index is not None else None
    if inverted is None or not faiss.get_num_gpus() or not _scans_lists(inverted):
        yield
        return
    quantizer = inverted.quantizer
    inverted.quantizer = faiss.index_cpu_to_all_gpus(quantizer)
    try:
        yield
    finally:
        inverted.quantizer = quantizer


def _scans_lists(inverted: Any) -> bool:
    return isinstance(faiss.downcast_index(inverted.quantizer), faiss.IndexFlat)


def _be_content_with_few(index: Any) -> None:
    """Keep Faiss from printing that there could be more rows to train on."""
    inner: Any = faiss.downcast_index(index)
    trained_ones: list[Any] = [inner, getattr(inner, "pq", None)]
    for trained in trained_ones:
        if hasattr(trained, "cp"):
            trained.cp.min_points_per_centroid = 1


def _publish(folder: IndexFolder, index: Any) -> Codec:
    scratch = folder.codecs / f"{uuid.uuid4().hex}.faiss"
    record = FileRecord.of(storage.stream_file(scratch, lambda sink: write_faiss(index, sink)))
    name = f"{record.sha256[:16]}.faiss"
    scratch.replace(folder.codecs / name)
    storage.sync_folder(folder.codecs)
    return Codec(name=name, file=record)
