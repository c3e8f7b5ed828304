"""What all services of the benchmark serve: rows with captions, a model, indices, and the truth.

The rows are those of the search benchmark. Both indices are brought to the same recall: ours by
`clipray index tune`, on queries of its own, the one graph of the others by the smallest effort that
reaches it on these very queries; so are the databases'. Made once in a folder, and found there
again.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipray import clip
from clipray.embeddings import EmbeddingsFolder
from clipray.manifest import ModelFolder, ModelIdentity, ModelSource, write_json
from tests.benchmarks.search import DIM, EFFORTS, K, draw
from tests.handmade import write_embeddings

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
MODEL = "ViT-B-32"
RECALL = 0.95
SHARDS = 4
PART = 10_000
KIND = "text"  # of the queries: as far from all rows as texts are
WHAT = ("dog", "boat", "bridge", "market", "tower", "garden", "bicycle", "window", "river", "chair")
HOW = ("red", "old", "small", "bright", "wet", "wooden", "empty", "broken", "quiet", "golden")
WHERE = ("in the snow", "at dusk", "by the sea", "in a city", "on a hill", "under the trees")


@dataclass(frozen=True)
class Served:
    """Files in a folder, and what is true of them.

    Attributes:
        queries: unit vectors, (m, DIM) float32.
        truth: best row numbers, (m, K).
        effort: of the others' graph.
    """

    root: Path
    rows: int
    queries: np.ndarray
    truth: np.ndarray
    effort: int

    @property
    def index(self) -> Path:
        """clipray's."""
        return self.root / "index"

    @property
    def model(self) -> Path:
        """Model folder with random weights."""
        return self.root / "model"

    @property
    def weights(self) -> Path:
        """Its weights file."""
        return ModelFolder(self.model).weights

    @property
    def graph(self) -> Path:
        """Faiss index of all rows."""
        return self.root / "others" / "image.index"

    @property
    def metadata(self) -> Path:
        """Keys and captions of all rows."""
        return self.root / "others" / "metadata" / "metadata_0.parquet"

    @property
    def arrow(self) -> Path:
        """The same, and the graph again, for clip-retrieval's `use_arrow`."""
        return self.root / "arrow" / "metadata" / "0.arrow"

    @property
    def listed(self) -> Path:
        """`indices_paths` of clip-retrieval; it calls the index `rows`."""
        return self.root / "others" / "indices.json"

    @property
    def listed_arrow(self) -> Path:
        """The same for `use_arrow`."""
        return self.root / "arrow" / "indices.json"

    @property
    def index_mb(self) -> float:
        """All segments of clipray's index."""
        files = (path for path in (self.index / "segments").rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files) / 1e6

    def effort_of(self, database: str) -> int | None:
        """What a database chose, once it has stored the rows."""
        told = self.root / f"{database}.json"
        return json.loads(told.read_text(encoding="utf-8"))["effort"] if told.is_file() else None

    def recall(self, found: list[list[str]]) -> float:
        """Mean recall@K of keys by query."""
        best = [{f"s/{row}" for row in rows} for rows in self.truth.tolist()]
        return float(np.mean([len(b & set(keys)) / K for b, keys in zip(best, found, strict=True)]))


def served(work: Path, rows: int, queries: int) -> Served:
    """Make it, or open what an earlier run made."""
    root = work / f"served-{rows}-{queries}"
    made = root / "made.json"
    if not made.is_file():
        _make(root, rows, queries)
    effort = json.loads(made.read_text(encoding="utf-8"))["effort"]
    truth = np.load(root / "truth.npy")
    return Served(root, rows, np.load(root / "queries.npy"), truth, effort)


def texts(count: int) -> list[str]:
    """Captions, no two alike, of 8 to 11 words."""
    picked = np.random.default_rng(0).integers((len(HOW), len(WHAT), len(WHERE)), size=(count, 3))
    return [
        f"a photo of a {HOW[a]} {WHAT[b]} {WHERE[c]}, {n}" for n, (a, b, c) in enumerate(picked)
    ]


def _make(root: Path, rows: int, count: int) -> None:
    log.info("making %d rows and their indices in %s", rows, root)
    shutil.rmtree(root, ignore_errors=True)  # what an interrupted run left
    vectors, kinds = draw(rows, count)
    queries = kinds[KIND]
    wide = vectors.astype(np.float32)
    truth = np.argsort(-(queries @ wide.T), axis=1, kind="stable")[:, :K]
    shown = Served(root, rows, queries, truth, 0)
    shown.model.mkdir(parents=True)
    identity = clip.save(clip.create(ModelSource(name=MODEL), seed=0), shown.model, {})
    _index(shown, vectors, identity)
    effort = _others(shown, wide)
    for name, array in {"rows": vectors, "queries": queries, "truth": truth}.items():
        np.save(root / f"{name}.npy", array)
    wanted = {"efforts": EFFORTS, "recall": RECALL}
    (root / "efforts.json").write_text(json.dumps(wanted), encoding="utf-8")
    (root / "made.json").write_text(json.dumps({"effort": effort}), encoding="utf-8")


def _index(shown: Served, vectors: np.ndarray, identity: ModelIdentity) -> None:
    """As a user builds it, from embeddings that say which model made them."""
    folder = EmbeddingsFolder(shown.root / "embeddings")
    cuts = range(0, len(vectors), PART)
    keys = [[f"s/{row}" for row in range(a, min(a + PART, len(vectors)))] for a in cuts]
    columns = {n: {"caption": pa.array(_captions(part))} for n, part in enumerate(keys)}
    parts = [(part, vectors[a : a + PART]) for a, part in zip(cuts, keys, strict=True)]
    write_embeddings(folder.root, parts, columns)
    source = ModelSource(name=str(shown.model.resolve()))
    told = folder.read().model_copy(update={"model": identity, "source": source})
    write_json(folder.manifest, told)
    place = ["--index", str(shown.index)]
    build = ["--embeddings", str(folder.root), "--method", "HNSW32", "--shards", str(SHARDS)]
    _clipray("index", "build", *place, *build)
    _clipray("index", "tune", *place, "--recall", str(RECALL))


def _others(shown: Served, wide: np.ndarray) -> int:
    """One Faiss graph over all rows; its effort."""
    shown.metadata.parent.mkdir(parents=True)
    _metadata(shown, [f"s/{row}" for row in range(len(wide))])
    index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.add(wide)
    for effort in EFFORTS:
        index.hnsw.efSearch = effort
        found = [[f"s/{row}" for row in rows] for rows in index.search(shown.queries, K)[1]]
        if shown.recall(found) >= RECALL:
            break
    faiss.write_index(index, str(shown.graph))  # with its efSearch
    return int(effort)


def _metadata(shown: Served, keys: list[str]) -> None:
    """Keys and captions in clip-retrieval's names, as parquet and as arrow."""
    table = pa.table({"image_path": keys, "caption": _captions(keys)})
    pq.write_table(table, shown.metadata)
    shown.arrow.parent.mkdir(parents=True)
    with pa.OSFile(str(shown.arrow), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (shown.listed_arrow.parent / shown.graph.name).symlink_to(shown.graph.resolve())
    for listed in (shown.listed, shown.listed_arrow):
        listed.write_text(json.dumps({"rows": str(listed.parent)}), encoding="utf-8")


def _captions(keys: list[str]) -> list[str]:
    return [f"a picture that has the number {key.partition('/')[2]}" for key in keys]


def _clipray(*arguments: str) -> None:
    line = [sys.executable, "-m", "clipray.cli", *arguments]
    subprocess.run(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
