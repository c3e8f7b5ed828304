"""A server written by hand: one process, uvicorn and Starlette, a Faiss graph: INDEX METADATA PORT.

It answers as clipray does to a vector: keys, scores and captions of the best rows. It checks
little, knows no filters, versions or shards, and blocks its loop while it searches, which is what
makes it cheap.
"""

import json
import sys

import faiss
import numpy as np
import pyarrow.parquet as pq
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Server:
    def __init__(self, index, metadata):
        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(index)
        table = pq.read_table(metadata)
        self.keys, self.captions = (table[name].to_pylist() for name in ("image_path", "caption"))

    async def search(self, request: Request) -> JSONResponse:
        asked = json.loads(await request.body())
        query = np.array([asked["embedding"]], np.float32)
        if query.shape[1] != self.index.d:
            return JSONResponse({"error": f"expected {self.index.d} numbers"}, 400)
        scores, rows = self.index.search(query, int(asked["k"]))
        return JSONResponse(
            {"matches": list(map(self.match, rows[0].tolist(), scores[0].tolist()))}
        )

    def match(self, row, score):
        return {"key": self.keys[row], "score": score, "caption": self.captions[row]}


def main() -> None:
    index, metadata, port = sys.argv[1:]
    server = Server(index, metadata)
    app = Starlette(routes=[Route("/search", server.search, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
