"""What judges vectors: which rows are unsafe or violent, and which direction is beautiful.

Both detectors are linear over unit vectors: a vector v is flagged where weight · v + bias > 0. They
are read from one of

- `.safetensors` with `weight` (dim,) or (1, dim) and `bias`, as a layer of one output saves it;
- `.npy` (2, dim): a harmless and a harmful prompt, as clip-retrieval's violence detector is; a
  vector is flagged where the second is nearer.

The aesthetic vectors, one a score from 0 on, are a `.npy` (scores, dim), or a folder of
`rating0.npy`, `rating1.npy` and so on, as clip-retrieval fetches them. Nothing is unpickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.numpy import load_file

from clipray.config import Config
from clipray.errors import InputError, MismatchError
from clipray.index.table import UNREADABLE
from clipray.matches import Matches

MAX_BYTES = 64 << 20
MAX_SCORES = 1_000

Vectors = NDArray[np.float32]


class RaterOptions(Config):
    """Files of the raters, each made for the model that is served."""

    safety: Path | None = Field(
        None, description="detector of unsafe rows for /knn-service: .safetensors or .npy"
    )
    violence: Path | None = Field(
        None, description="detector of violence for /knn-service: .safetensors or .npy"
    )
    aesthetic: Path | None = Field(
        None, description="vectors by aesthetic score for /knn-service: .npy or a folder of them"
    )


@dataclass(frozen=True, slots=True)
class Detector:
    """Flags vectors on one side of a plane.

    Attributes:
        weight: (dim,) float32.
    """

    weight: Vectors
    bias: float = 0.0

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        """Read a detector for vectors of `dim` numbers.

        Raises:
            InputError: the file is missing, too large or holds something else.
            MismatchError: it is for vectors of another length.
        """
        if path.suffix == ".safetensors":
            tensors = _tensors(path)
            if tensors.keys() != {"weight", "bias"} or tensors["bias"].size != 1:
                told = {name: tensor.shape for name, tensor in tensors.items()}
                raise InputError(f"{path}: holds {told}; expected weight (1, {dim}) and bias (1,)")
            (weight,) = _rows(path, tensors["weight"], dim, 1)
            return cls(weight, float(tensors["bias"].reshape(())))
        harmless, harmful = _rows(path, _array(path), dim, 2)
        return cls(harmful - harmless)

    def flags(self, units: Vectors) -> NDArray[np.bool_]:
        """(n,) True for those of the (n, dim) unit vectors that are flagged."""
        return np.asarray(units @ self.weight + self.bias > 0)


@dataclass(frozen=True, slots=True)
class Raters:
    """The raters that are configured.

    Attributes:
        aesthetic: (scores, dim) float32.
    """

    safety: Detector | None = None
    violence: Detector | None = None
    aesthetic: Vectors | None = None

    @classmethod
    def open(cls, options: RaterOptions, dim: int) -> Self:
        """Read what is configured, for a model of `dim` numbers a vector.

        Raises:
            InputError: a file is missing, too large or holds something else.
            MismatchError: it is for another model.
        """
        return cls(
            Detector.open(options.safety, dim) if options.safety else None,
            Detector.open(options.violence, dim) if options.violence else None,
            _read_scores(options.aesthetic, dim) if options.aesthetic else None,
        )


NO_RATERS = Raters()


def unflagged(matches: Matches, detectors: Sequence[Detector]) -> Matches:
    """The matches, each with its vector, that no detector flags."""
    if not matches:
        return matches
    vectors = np.stack([match.vector for match in matches])  # (n, dim)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    flagged = np.any([detector.flags(units) for detector in detectors], axis=0)
    return Matches(tuple(m for m, bad in zip(matches, flagged, strict=True) if not bad))


def _read_scores(path: Path, dim: int) -> Vectors:
    if not path.is_dir():
        return _rows(path, _array(path), dim)
    files = list(takewhile(Path.is_file, (path / f"rating{n}.npy" for n in count())))
    if not files:
        raise InputError(f"{path}: holds no rating0.npy; expected one file a score, from 0 on")
    return np.concatenate([_rows(file, _array(file), dim, 1) for file in files[:MAX_SCORES]])


def _rows(path: Path, array: NDArray[Any], dim: int, rows: int | None = None) -> Vectors:
    """(rows, dim) float32, any number of rows by default; one row may come as (dim,)."""
    found = array[None] if array.ndim == 1 and rows == 1 else array
    if found.ndim == 2 and found.shape[1] != dim:
        told = f"holds vectors of {found.shape[1]} dimensions, the model gives {dim}"
        raise MismatchError(f"{path}: {told}; it was made for another model")
    if found.ndim != 2 or len(found) not in (range(1, MAX_SCORES + 1) if rows is None else (rows,)):
        raise InputError(f"{path}: has shape {array.shape}; expected ({rows or 'scores'}, {dim})")
    if found.dtype.kind != "f" or not np.isfinite(found).all():
        raise InputError(f"{path}: holds {found.dtype}; expected finite floating-point numbers")
    return np.array(found, np.float32)


def _array(path: Path) -> NDArray[Any]:
    _require_small(path)
    try:  # mapped, so that a header that lies about its size costs no memory
        return np.lib.format.open_memmap(path, mode="r")
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as .npy ({error})") from None


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    _require_small(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None


def _require_small(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path}: {size} bytes; a rater has at most {MAX_BYTES}")
