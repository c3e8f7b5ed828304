"""Run by the peers' Python: what embedding-reader sees in an embeddings folder, as JSON lines."""

import json
import sys
from pathlib import Path

from embedding_reader import EmbeddingReader

COLUMNS = ["image_path", "caption"]


def main() -> None:
    root, modality = Path(sys.argv[1]), sys.argv[2]
    plain = EmbeddingReader(str(root / modality), file_format="npy")
    paired = EmbeddingReader(
        str(root / modality),
        file_format="parquet_npy",
        metadata_folder=str(root / "metadata"),
        meta_columns=COLUMNS,
    )
    alone = [row for rows, _ in plain(batch_size=7, show_progress=False) for row in rows.tolist()]
    assert plain.count == paired.count == len(alone)
    place = 0
    for vectors, meta in paired(batch_size=7, show_progress=False):
        for vector, key, caption in zip(vectors.tolist(), *columns(meta), strict=True):
            assert vector == alone[place]
            print(json.dumps({"vector": vector, "key": key, "caption": caption}))  # noqa: T201
            place += 1


def columns(meta):
    return [meta[name].tolist() for name in COLUMNS]


if __name__ == "__main__":
    main()
