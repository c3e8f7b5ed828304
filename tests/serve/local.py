"""The ingress without Ray: indices in this process, behind the routes of the service."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipray import images
from clipray.encoder import Encoder
from clipray.errors import NotFoundError
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.query import Query, Term
from clipray.samples import Location
from clipray.search import find, query_vector
from clipray.serve.catalog import Catalog, Reply, ServedFolder
from clipray.serve.meter import Meter


class LocalSearcher:
    """A `Searcher` over index folders: by name, one of images or texts or both."""

    def __init__(self, roots: Mapping[str, Sequence[Path]], encoder: Encoder) -> None:
        opened = [(name, root, Index.open(root)) for name, all_ in roots.items() for root in all_]
        folders = tuple(_served(*one) for one in opened)
        self.index, self.encoder = opened[0][2], encoder
        self.indices = {
            folder.slot: index for folder, (*_, index) in zip(folders, opened, strict=True)
        }
        self.catalog = Catalog(
            model=encoder.identity, source=ModelSource(name="x"), folders=folders
        )
        self.asked: list[Query] = []
        self.meter = Meter()

    async def search(self, query: Query) -> Reply:
        self.asked.append(query)
        folder = self.catalog.find(query.index, query.modality)
        index = self.indices[folder.slot]
        return Reply(
            matches=find(index, self.encoder, query),
            coverage=index.coverage,
            version=index.manifest.version,
            took_ms={"total": 1.0},
        )

    async def embed(self, term: Term) -> np.ndarray:
        return query_vector([term], self.encoder, self.index.find)

    async def rows(self, index: str | None, ids: Sequence[int]) -> list[dict[str, Any] | None]:
        slots = [folder.slot for folder in self.catalog.named(index)]
        return [self._row(slots, row_id) for row_id in ids]

    async def image(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        (row,) = await self.rows(index, [row_id])
        if row is None or not row.get("source_path"):
            raise NotFoundError(f"id {row_id}: no row with a picture has it")
        place = Location(Path(row["source_path"]), row["source_offset"], row["source_size"])
        data = place.read(images.MAX_BYTES)
        if size is None:
            return data, images.media_type(data)
        return images.thumbnail(data, size), "image/jpeg"

    async def refresh(self) -> dict[str, Any]:
        return {folder.slot: folder.version for folder in self.catalog.folders}

    def ready(self) -> dict[str, bool]:
        return {"here": True}

    def _row(self, slots: Sequence[str], row_id: int) -> dict[str, Any] | None:
        found = (shard.row(row_id) for slot in slots for shard in self.indices[slot].shards)
        return next((row for row in found if row is not None), None)


def _served(name: str, root: Path, index: Index) -> ServedFolder:
    folder = ServedFolder.of(name, root, index.manifest)
    return folder.model_copy(update={"columns": tuple(sorted(index.columns))})
