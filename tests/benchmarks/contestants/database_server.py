"""LanceDB or Chroma in process, behind the same hand-written server as the plain graph.

Run by the databases' Python: (lancedb|chroma) (make|serve) ROOT PORT. `make` stores the rows of
ROOT, builds a graph and takes the smallest effort that reaches the recall on these very queries.
"""

import asyncio
import json
import sys
import warnings
from pathlib import Path

import chromadb
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings
from lancedb.index import HnswSq
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

BATCH = 5000  # Chroma takes 5461 at most


class Lance:
    """HNSW over 8-bit codes, one partition; the best are scored again from the vectors."""

    def __init__(self, folder):
        self.folder = folder

    async def make(self, vectors, keys, captions):
        flat = pa.array(vectors.ravel())
        array = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        columns = {"key": keys, "caption": captions, "vector": array}
        database = await lancedb.connect_async(self.folder)
        table = await database.create_table("rows", pa.table(columns))
        graph = HnswSq(distance_type="dot", num_partitions=1)
        await table.create_index("vector", config=graph)

    async def open(self, effort):
        self.effort = effort
        self.table = await (await lancedb.connect_async(self.folder)).open_table("rows")

    async def search(self, vector, k):
        query = self.table.query().nearest_to(vector).distance_type("dot")
        query = query.ef(max(k, self.effort)).refine_factor(1).limit(k)
        found = await query.select(["key", "caption", "_distance"]).to_list()
        return [{"key": row["key"], "score": 1 - row["_distance"], "caption": row["caption"]}
                for row in found]  # fmt: skip


class Chroma:
    """Its HNSW with the defaults: 16 links, 100 candidates when building."""

    def __init__(self, folder):
        self.folder = folder

    async def make(self, vectors, keys, captions):
        rows = self._client().create_collection(
            "rows", configuration={"hnsw": {"space": "ip"}}, embedding_function=None
        )
        for start in range(0, len(keys), BATCH):
            cut = slice(start, start + BATCH)
            rows.add(ids=keys[cut], embeddings=vectors[cut], documents=captions[cut])

    async def open(self, effort):
        """An effort is heard when the collection is opened anew."""
        self._rows().modify(configuration={"hnsw": {"ef_search": effort}})
        self.rows = self._rows()

    async def search(self, vector, k):
        found = self.rows.query(
            query_embeddings=[vector], n_results=k, include=["documents", "distances"]
        )
        columns = (found[name][0] for name in ("ids", "distances", "documents"))
        return [{"key": key, "score": 1 - far, "caption": caption}
                for key, far, caption in zip(*columns, strict=True)]  # fmt: skip

    def _rows(self):
        return self._client().get_collection("rows", embedding_function=None)

    def _client(self):
        SharedSystemClient.clear_system_cache()
        settings = Settings(anonymized_telemetry=False)
        return chromadb.PersistentClient(self.folder, settings=settings)


async def make(store, root, efforts, recall):
    """Store the rows and choose the effort, which is left beside them."""
    rows = pq.read_table(root / "others" / "metadata" / "metadata_0.parquet")
    vectors = np.load(root / "rows.npy").astype(np.float32)
    await store.make(vectors, *(rows[name].to_pylist() for name in ("image_path", "caption")))
    queries, truth = np.load(root / "queries.npy"), np.load(root / "truth.npy")
    for effort in efforts:
        await store.open(effort)
        hits = 0
        for query, best in zip(queries, truth, strict=True):
            found = await store.search(query, len(best))
            hits += len({match["key"] for match in found} & {f"s/{row}" for row in best})
        if hits >= recall * truth.size:
            break
    return {"effort": effort, "recall": hits / truth.size}


async def serve(store, effort, port):
    await store.open(effort)

    async def search(request: Request) -> JSONResponse:
        asked = json.loads(await request.body())
        vector = np.array(asked["embedding"], np.float32)
        return JSONResponse({"matches": await store.search(vector, int(asked["k"]))})

    app = Starlette(routes=[Route("/search", search, methods=["POST"])])
    options = {"host": "127.0.0.1", "port": port, "log_level": "warning", "access_log": False}
    await uvicorn.Server(uvicorn.Config(app, **options)).serve()


def main() -> None:
    name, verb, root, port = sys.argv[1:]
    warnings.simplefilter("ignore")
    root = Path(root)
    store = {"lancedb": Lance, "chroma": Chroma}[name](str(root / name))
    told = root / f"{name}.json"
    if verb == "make":
        wanted = json.loads((root / "efforts.json").read_text())
        told.write_text(json.dumps(asyncio.run(make(store, root, **wanted))))
    else:
        asyncio.run(serve(store, json.loads(told.read_text())["effort"], int(port)))


if __name__ == "__main__":
    main()
