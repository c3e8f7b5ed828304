"""Our index, driven over a pipe like the graphs: EMBEDDINGS QUERIES.npz SCRATCH METHOD.

The effort of a search is the recall that the index was tuned for, on queries of its own.
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np

from clipray.embeddings import Parts
from clipray.index import Index
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder
from clipray.index.tuning import tune
from clipray.index.workers import Here


def main() -> None:
    embeddings, queries, scratch, method = sys.argv[1:]
    faiss.omp_set_num_threads(1)
    told, sys.stdout = sys.stdout, sys.stderr
    contestant = Contestant(Path(embeddings), Path(scratch), method)
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
    def __init__(self, embeddings, scratch, method):
        self.embeddings, self.method = embeddings, method
        self.folder = IndexFolder(scratch)
        self.settings = {}

    def answer(self, ask, kinds):
        if ask["do"] == "build":
            return self.build()
        found = self.search(kinds[ask["kind"]], ask)
        return {"rows": [[int(match.key[2:]) for match in matches] for matches in found]}

    def build(self):
        options = IndexOptions(method=self.method)
        made = construct(Parts.open(self.embeddings), self.folder, options, Here(self.folder.root))
        self.manifest = made.manifest
        assert self.folder.commit(made.manifest)
        self.index = Index.open(self.folder.root)
        return {"method": made.manifest.method}

    def tune(self, recall):
        if recall not in self.settings:
            manifest = tune(self.manifest, recall, Here(self.folder.root))
            self.settings[recall] = manifest.settings
            sys.stderr.write(f"{manifest.method}, recall {recall}: {manifest.settings}\n")
        self.index.tuned(self.settings[recall])

    def search(self, queries, ask):
        if ask["batch"]:
            return self.index.search(queries, ask["k"])
        return [self.index.search(query[None], ask["k"])[0] for query in queries]


if __name__ == "__main__":
    main()
