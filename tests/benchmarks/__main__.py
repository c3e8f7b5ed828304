"""`make bench`: what a search costs by method, measured interleaved, written as a dated table.

Vectors are drawn in clusters on the sphere, as CLIP's are; text-like queries are shifted by a
constant direction, as the modality gap does. Figures are of one thread.
"""

import argparse
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np

from clipray import __version__
from clipray.index.method import FLAT, new_index
from clipray.index.segment import Segment
from tests.handmade import row_table, write_segment

METHODS = ("Flat", "HNSW32", "IVF", "IVF256,PQ64x4fs")
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    vectors, queries = draw(args.rows, args.queries)
    with tempfile.TemporaryDirectory() as scratch:
        built = {method: build(Path(scratch), method, vectors) for method in METHODS}
        lines = [*header(args), *measure({m: s for m, (s, _) in built.items()},
                                         {m: t for m, (_, t) in built.items()},
                                         queries, args.rounds)]  # fmt: skip
    name = f"search_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.md"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))  # noqa: T201


def draw(rows: int, count: int, dim: int = 512) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows as float16, and image-like and text-like queries, all of unit length."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(8, rows // 100), dim))
    spread = lambda n: centres[rng.integers(len(centres), size=n)] + rng.normal(size=(n, dim))  # noqa: E731
    gap = 1.5 * rng.normal(size=dim)
    queries = {"image-like": spread(count), "text-like": spread(count) + gap}
    return unit(spread(rows)).astype(np.float16), {n: unit(q) for n, q in queries.items()}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def build(scratch: Path, method: str, vectors: np.ndarray) -> tuple[Segment, float]:
    """An open segment, and the seconds that training and filling took."""
    folder = scratch / method.replace(",", "_")
    began = time.perf_counter()
    index = None
    if method != FLAT:
        index = new_index(method, vectors.shape[1], len(vectors))
        index.train(vectors[:20_000].astype(np.float32))
    rows = row_table([str(row) for row in range(len(vectors))])
    write_segment(folder, vectors, rows, method, index)
    return Segment(folder), time.perf_counter() - began


def measure(segments, seconds, queries, rounds):
    """One line a method and kind of query."""
    yield "| method | build s | queries | recall@10 | ms a query, median | min | max |"
    yield "|---|---|---|---|---|---|---|"
    for kind, vectors in queries.items():
        truth = segments["Flat"].search(vectors, K)
        taken = {method: [] for method in segments}
        for _ in range(rounds):
            for method, segment in segments.items():
                began = time.perf_counter()
                for query in vectors:
                    segment.search(query[None], K)
                taken[method].append(1e3 * (time.perf_counter() - began) / len(vectors))
        for method, segment in segments.items():
            found = segment.search(vectors, K)
            recall = statistics.mean(f.recall(t) for f, t in zip(found, truth, strict=True))
            ms = taken[method]
            yield (
                f"| {method} | {seconds[method]:.1f} | {kind} | {recall:.3f} | "
                f"{statistics.median(ms):.2f} | {min(ms):.2f} | {max(ms):.2f} |"
            )


def header(args: argparse.Namespace) -> list[str]:
    return [
        f"# Search of one segment, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}, faiss {faiss.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, one thread; {args.rows} × 512 float16 rows in clusters, k = {K}, "
        f"{args.queries} queries one at a time, {args.rounds} interleaved rounds.",
        "",
    ]


if __name__ == "__main__":
    main()
