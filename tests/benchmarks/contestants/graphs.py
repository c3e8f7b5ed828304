"""Indices of others, driven over a pipe: hnswlib, usearch, plain Faiss HNSW32, autofaiss's choice.

Run by the peers' Python: NAME ROWS.npy QUERIES.npz. Reads one JSON object a line and answers with
one; CPU seconds are those of this process, which uses one thread. Faiss alone needs no peers.
"""

import json
import sys
import time
from importlib import import_module

import faiss
import numpy as np

faiss.omp_set_num_threads(1)


class Hnswlib:
    def __init__(self, links):
        self.links = links
        self.peer = import_module("hnswlib")

    def build(self, rows):
        self.index = self.peer.Index(space="ip", dim=rows.shape[1])
        self.index.init_index(len(rows), M=self.links, ef_construction=200)
        self.index.set_num_threads(1)
        self.index.add_items(rows)

    def search(self, queries, k, effort):
        self.index.set_ef(max(k, effort))
        return self.index.knn_query(queries, k)[0]


class Usearch:
    def __init__(self, kind):
        self.kind = kind
        self.peer = import_module("usearch.index")

    def build(self, rows):
        self.index = self.peer.Index(
            ndim=rows.shape[1], metric="ip", dtype=self.kind, connectivity=16
        )
        self.index.add(np.arange(len(rows)), rows, threads=1)

    def search(self, queries, k, effort):
        self.index.expansion_search = max(k, effort)
        return np.atleast_2d(self.index.search(queries, k, threads=1).keys)


class Faiss:
    def build(self, rows):
        self.index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        self.index.add(rows)

    def search(self, queries, k, effort):
        self.index.hnsw.efSearch = max(k, effort)
        return self.index.search(queries, k)[1]


class Autofaiss:
    """It chooses the index and its effort; the effort that is asked for is not heard."""

    def __init__(self):
        self.peer = import_module("autofaiss")

    def build(self, rows):
        self.index, told = self.peer.build_index(
            rows, save_on_disk=False, metric_type="ip", nb_cores=1, verbose=40
        )
        return {"chosen": f"{told['index_key']} {told['index_param']}"}

    def search(self, queries, k, effort):
        return self.index.search(queries, k)[1]


ALL = {
    "hnswlib M=16": lambda: Hnswlib(16),
    "hnswlib M=32": lambda: Hnswlib(32),
    "usearch f32": lambda: Usearch("f32"),
    "usearch f16": lambda: Usearch("f16"),
    "faiss HNSW32": Faiss,
    "autofaiss": Autofaiss,
}


def main() -> None:
    name, rows, queries = sys.argv[1:]
    told, sys.stdout = sys.stdout, sys.stderr
    contestant = ALL[name]()
    kinds = dict(np.load(queries))
    for line in sys.stdin:
        ask = json.loads(line)
        began = time.process_time()
        if ask["do"] == "build":
            vectors = np.load(rows).astype(np.float32)
            began = time.process_time()
            answer = contestant.build(vectors) or {}
        else:
            answer = {"rows": searched(contestant, kinds[ask["kind"]], ask)}
        answer["cpu_s"] = time.process_time() - began
        told.write(json.dumps(answer) + "\n")
        told.flush()


def searched(contestant, queries, ask):
    """Row numbers; one call a query, or one for all."""
    if ask["batch"]:
        found = contestant.search(queries, ask["k"], ask["effort"])
    else:
        found = [contestant.search(q[None], ask["k"], ask["effort"])[0] for q in queries]
    return np.asarray(found).tolist()


if __name__ == "__main__":
    main()
