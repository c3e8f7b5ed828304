"""What rows cost: `python -m tests.benchmarks.capacity`, the constants of `clipray plan`.

Each index is built, tuned and searched in a process of its own with one thread, over the same
kind of vectors as `tests.benchmarks.search` draws. CPU is that of the process; the bytes are those
of the files, the rows of which carry a key and nothing else.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from clipray import __version__
from clipray.embeddings import Parts
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder
from clipray.index.tuning import tune
from clipray.index.workers import Here
from tests.handmade import write_embeddings

DIM = 512
PART = 10_000
GAP = 1.5
QUERIES = 320
BATCH = 32
CENTROIDS = 16_384
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
RECALLS = (0.95, 0.99)
CASES = (
    *(("Flat", rows, 1) for rows in (10_000, 20_000, 50_000)),
    *(("HNSW32", rows, 1) for rows in (25_000, 50_000, 100_000, 200_000)),
    *(("IVF", rows, 1) for rows in (50_000, 100_000, 200_000)),
    *(("auto", rows, 1) for rows in (50_000, 100_000, 200_000, 400_000)),
    ("auto", 200_000, 4),
)
COLUMNS = (
    *("method", "rows", "shards", "chosen", "build_s", "peak_mb", "vectors", "index", "ids"),
    *("rows_arrow", "codec", "append_s", "tune_s"),
    *(f"{what}_{mark}" for mark in ("95", "99") for what in ("ms", "batch_ms", "recall")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "ROWS", "SHARDS"))
    parser.add_argument("--quick", action="store_true", help="small ones alone, no table kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.one:
        method, rows, shards = args.one
        print(json.dumps(case(method, int(rows), int(shards))))  # noqa: T201
        return
    lines = list(table([c for c in CASES if c[1] <= 25_000] if args.quick else CASES))
    if not args.quick:
        name = f"capacity_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.md"
        (args.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(cases: Any) -> Iterator[str]:
    """A line each, printed as it comes."""
    for line in _lines(cases):
        print(line, flush=True)  # noqa: T201
        yield line


def _lines(cases: Any) -> Iterator[str]:
    yield f"# What rows cost, {DIM} dimensions, {datetime.now(UTC):%Y-%m-%d}"
    yield ""
    yield (
        f"clipray {__version__}, Python {platform.python_version()}, {platform.machine()}, AMD "
        "EPYC (avx512_bf16), one thread, no GPU, shared with other work. CPU seconds of building, "
        "of appending 1,000 rows and of tuning to recall@10 0.95; peak memory of that process; "
        f"bytes a row of each file; CPU ms of one of {QUERIES} text-like queries, k = 10, at the "
        f"two recalls, one at a time and {BATCH} at once; recall as measured."
    )
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    for method, rows, shards in cases:
        line = [sys.executable, "-m", "tests.benchmarks.capacity"]
        line += ["--one", method, str(rows), str(shards)]
        done = subprocess.run(
            line, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | QUIET
        )
        found = json.loads(done.stdout.splitlines()[-1])
        yield f"| {' | '.join(str(found[name]) for name in COLUMNS)} |"
    yield ""
    yield (
        f"Finding the nearest of {CENTROIDS:,} centroids through a graph (HNSW32, efSearch 16), as "
        f"an index of more than 268 million rows does for each row: {assign_us()} CPU µs, mean of "
        "4,000 rows, one thread."
    )


def assign_us() -> float:
    """CPU microseconds of finding the list of one row among `CENTROIDS` through a graph."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    centroids = unit(rng.standard_normal((CENTROIDS, DIM), dtype=np.float32))
    noise = unit(rng.standard_normal((4000, DIM), dtype=np.float32))
    graph = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(centroids)
    began = time.process_time()
    graph.search(centroids[rng.integers(CENTROIDS, size=len(noise))] + noise, 1)
    return round(_since(began) / len(noise) * 1e6, 1)


def case(method: str, rows: int, shards: int) -> dict[str, Any]:
    """Build, append, tune and search one index."""
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        queries = draw(root / "embeddings", rows)
        folder, workers = IndexFolder(root / "index"), Here(root / "index")
        parts = Parts.open(root / "embeddings")
        began = time.process_time()
        made = construct(parts, folder, IndexOptions(method=method, shards=shards), workers)
        assert folder.commit(made.manifest)
        found: dict[str, Any] = {"method": method, "rows": rows, "shards": shards}
        found |= {"chosen": made.manifest.method, "build_s": _since(began)}
        found |= {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}
        found |= bytes_a_row(folder.root, rows)
        for recall in RECALLS:
            found |= searched(folder, workers, made.manifest, recall, queries)
        draw(root / "more", 1000, seed=1)
        began = time.process_time()
        append_parts(folder, Parts.open(root / "more"), workers)
        return found | {"append_s": _since(began)}


def draw(root: Path, rows: int, seed: int = 0) -> np.ndarray:
    """Embeddings of clustered rows; returns text-like queries, (QUERIES, DIM) float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(8, rows // 100), DIM)).astype(np.float32)
    gap = GAP * rng.normal(size=DIM).astype(np.float32)

    def near(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, DIM), dtype=np.float32)
        return centres[rng.integers(len(centres), size=count)] + noise

    cuts = [(start, min(PART, rows - start)) for start in range(0, rows, PART)]
    parts = [([f"{seed}/{start + n}" for n in range(count)], unit(near(count)).astype(np.float16))
             for start, count in cuts]  # fmt: skip
    write_embeddings(root, parts)
    return unit(near(QUERIES) + gap)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bytes_a_row(root: Path, rows: int) -> dict[str, float]:
    """Of each kind of file."""
    names = {"vectors": "vectors.npy", "index": "index.faiss", "ids": "ids.npy",
             "rows_arrow": "rows.arrow"}  # fmt: skip
    found = {
        kind: sum(path.stat().st_size for path in (root / "segments").rglob(name))
        for kind, name in names.items()
    }
    found["codec"] = sum(path.stat().st_size for path in (root / "codec").glob("*"))
    return {kind: round(count / rows, 1) for kind, count in found.items()}


def searched(
    folder: IndexFolder, workers: Here, manifest: Any, recall: float, queries: np.ndarray
) -> dict[str, Any]:
    """CPU ms a query when tuned to a recall."""
    index, mark = Index.open(folder.root), f"{recall:.2f}"[2:]
    truth = index.search(queries, k=10, exact=True) if manifest.method != "Flat" else None
    began = time.process_time()
    index.tuned(tune(manifest, recall, workers).settings)
    found: dict[str, Any] = {"tune_s": _since(began)} if recall == RECALLS[0] else {}
    began = time.process_time()
    results = [index.search(query[None], k=10)[0] for query in queries]
    found[f"ms_{mark}"] = round(1000 * _since(began) / len(queries), 3)
    began = time.process_time()
    for start in range(0, len(queries), BATCH):
        index.search(queries[start : start + BATCH], k=10)
    found[f"batch_ms_{mark}"] = round(1000 * _since(began) / len(queries), 3)
    hits = [len(set(a.ids) & set(b.ids)) for a, b in zip(results, truth or results, strict=True)]
    return found | {f"recall_{mark}": round(sum(hits) / 10 / len(hits), 3)}


def _since(began: float) -> float:
    return round(time.process_time() - began, 3)


if __name__ == "__main__":
    main()
