"""Our index, driven over a pipe like the graphs: EMBEDDINGS QUERIES.npz SCRATCH METHOD [SHARDS].

The effort of a search is the recall that the index was tuned for, on queries of its own. Shards
are built one after the other in this process, which uses one thread and no Ray.
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np

from clipray.embeddings import Parts
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder
from clipray.index.tuning import tune
from clipray.index.workers import Here


def main() -> None:
    embeddings, queries, scratch, method, *shards = sys.argv[1:]
    faiss.omp_set_num_threads(1)
    told, sys.stdout = sys.stdout, sys.stderr
    options = IndexOptions(method=method, shards=int(*shards or [1]))
    contestant = Contestant(Path(embeddings), Path(scratch), options)
    kinds = dict(np.load(queries))
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["do"] == "search":
            contestant.tune(ask["effort"])  # not counted: it is done once
        began = time.process_time()
        answer = contestant.answer(ask, kinds)
        answer["cpu_s"] = time.process_time() - began
        told.write(json.dumps(answer) + "\n")
        told.flush()


class Contestant:
    def __init__(self, embeddings, scratch, options):
        self.embeddings, self.options = embeddings, options
        self.folder = IndexFolder(scratch)
        self.workers = Here(self.folder.root)
        self.settings = {}

    def answer(self, ask, kinds):
        if ask["do"] == "build":
            return self.build()
        if ask["do"] == "append":
            return self.append(ask["embeddings"])
        found = self.search(kinds[ask["kind"]], ask)
        return {"rows": [[int(match.key[2:]) for match in matches] for matches in found]}

    def build(self):
        made = construct(Parts.open(self.embeddings), self.folder, self.options, self.workers)
        self.manifest = made.manifest
        assert self.folder.commit(made.manifest)
        self.index = Index.open(self.folder.root)
        files = (path for path in self.folder.root.rglob("*") if path.is_file())
        disk = sum(path.stat().st_size for path in files)
        return {"method": made.manifest.method, "disk_mb": disk / 1e6}

    def append(self, embeddings):
        """The open index stays at its version."""
        return {"rows": append_parts(self.folder, Parts.open(Path(embeddings)), self.workers).rows}

    def tune(self, recall):
        if recall not in self.settings:
            manifest = tune(self.manifest, recall, self.workers)
            self.settings[recall] = manifest.settings
            sys.stderr.write(f"{manifest.method}, recall {recall}: {manifest.settings}\n")
        self.index.tuned(self.settings[recall])

    def search(self, queries, ask):
        if ask["batch"]:
            return self.index.search(queries, ask["k"])
        return [self.index.search(query[None], ask["k"])[0] for query in queries]


if __name__ == "__main__":
    main()
