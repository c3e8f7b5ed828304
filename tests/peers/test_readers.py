"""Embeddings folders are read as they are by autofaiss, embedding-reader and clip-retrieval."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from clipray.embeddings import EmbeddingsFolder
from tests.peers.environment import command, run

pytestmark = pytest.mark.soak

READ_BACK = Path(__file__).parent / "read_back.py"
NAMES = {"image": "img_emb", "text": "text_emb"}


def test_autofaiss_builds_an_index_that_finds_every_row(folder, tmp_path):
    index = tmp_path / "knn.index"
    options = {
        "embeddings": folder / "img_emb",
        "index_path": index,
        "index_infos_path": tmp_path / "infos.json",
        "metric_type": "ip",
    }
    run(command("autofaiss", "build_index", *flags(options)), tmp_path)
    assert_finds(index, written(folder, "image")[0])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_embedding_reader_pairs_every_vector_with_its_row(folder, modality, tmp_path):
    told = run(command("python", READ_BACK, folder, NAMES[modality]), tmp_path)
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    vectors, keys, captions = written(folder, modality)
    assert [row["key"] for row in rows] == keys
    assert [row["caption"] for row in rows] == captions
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), vectors)


def test_clip_retrieval_indexes_the_folder(folder, tmp_path):
    made = tmp_path / "index"
    made.mkdir()
    options = {"embeddings_folder": folder, "index_folder": made}
    run(command("clip-retrieval", "index", *flags(options)), tmp_path)
    for modality in NAMES:
        vectors, keys, captions = written(folder, modality)
        assert_finds(made / f"{modality}.index", vectors)
        table = pq.read_table(made / "metadata").to_pydict()
        assert (table["image_path"], table["caption"]) == (keys, captions)


def flags(options):
    return [f"--{name}={value}" for name, value in options.items()]


def written(root, modality):
    """Vectors, keys and captions of the finished parts in their order."""
    folder = EmbeddingsFolder(root)
    parts = [number for number, part in folder.parts().items() if part.rows]
    tables = [pq.read_table(folder.metadata(number)).to_pydict() for number in parts]
    vectors = [np.load(folder.vectors(number, modality)) for number in parts]
    keys = [key for table in tables for key in table["image_path"]]
    captions = [caption for table in tables for caption in table["caption"]]
    return np.concatenate(vectors).astype(np.float32), keys, captions


def assert_finds(path, vectors):
    index = faiss.read_index(str(path))
    assert index.ntotal == len(vectors)
    _, found = index.search(vectors, 1)
    assert (found[:, 0] == np.arange(len(vectors))).mean() >= 0.95  # the index may be approximate
