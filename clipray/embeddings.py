"""The finished parts of an embeddings folder, read with their checksums verified.

What reads embeddings needs this alone: which parts there are, their vectors and their rows.
Who wrote them, and what is built from them, is not known here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipray.errors import DamagedError, InputError
from clipray.manifest import EmbeddingsFolder, EmbeddingsManifest, Modality, PartManifest

KEY_COLUMN = "image_path"  # clip-retrieval's name for it

Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Parts:
    """Parts of one modality, by number."""

    root: Path
    manifest: EmbeddingsManifest
    modality: Modality
    parts: Mapping[int, PartManifest]

    @classmethod
    def open(cls, root: Path, modality: Modality | None = None) -> Self:
        """Find the finished parts; images where `modality` is not given and there are any.

        Raises:
            InputError: no embeddings folder, no finished row, or none of that modality.
        """
        folder = EmbeddingsFolder(root)
        manifest, parts = folder.read(), folder.parts()
        chosen = modality or manifest.modalities[0]
        if chosen not in manifest.modalities:
            raise InputError(f"{root}: holds {manifest.modality} embeddings, none of {chosen}")
        if not any(part.rows for part in parts.values()):
            raise InputError(f"{root}: no finished part with rows; run `clipray embed` first")
        return cls(root, manifest, chosen, parts)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.parts))

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.manifest.model.dim

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts.values())

    def only(self, numbers: Iterable[int]) -> Self:
        """Some of the parts."""
        return replace(self, parts={number: self.parts[number] for number in numbers})

    def vectors(self, number: int) -> Halves:
        """(rows, dim) float16 unit vectors of one part.

        Raises:
            DamagedError: when the file is missing or changed.
        """
        path = EmbeddingsFolder(self.root).vectors(number, self.modality)
        self._verify(number, path)
        vectors: Halves = np.load(path, allow_pickle=False)
        return vectors

    def table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Rows of one part; row i belongs to vector i.

        Raises:
            DamagedError: when the file is missing or changed.
        """
        path = EmbeddingsFolder(self.root).metadata(number)
        self._verify(number, path)
        return pq.read_table(path, columns=columns)

    def keys(self, number: int) -> list[str]:
        """Keys of one part."""
        keys: list[str] = self.table(number, [KEY_COLUMN]).column(0).to_pylist()
        return keys

    def _verify(self, number: int, path: Path) -> None:
        record = self.parts[number].files.get(str(path.relative_to(self.root)))
        if record is None:
            raise DamagedError(f"{path}: its done-marker does not name it; embed the shard again")
        record.verify(path)
