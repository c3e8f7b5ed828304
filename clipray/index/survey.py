"""What the parts of an embeddings folder hold that can enter an index.

A row enters when its vector is finite and of unit length and its key is new; every other is
counted with its reason. A part is looked at alone, so parts can be surveyed anywhere.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipray.embeddings import Parts
from clipray.index.columns import columns_of
from clipray.index.table import row_ids

NORM_TOLERANCE = 0.01  # float16 moves a unit vector's norm by less than 0.001

NOT_UNIT = "not a unit vector"
REPEATED = "repeated key"

Halves = NDArray[np.float16]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PartSurvey:
    """What one part holds.

    Attributes:
        part: its number.
        ids: (rows,) int64.
        usable: (rows,) bool, finite and of unit length.
        sample: some of the usable vectors, to train on.
        schema: of its metadata.
    """

    part: int
    ids: Rows
    usable: Mask
    sample: Halves
    schema: pa.Schema


@dataclass(frozen=True)
class Selection:
    """The rows that enter, over all parts.

    Attributes:
        keep: (rows,) bool by part.
        columns: of the rows of all parts.
        rejected: rows left out, by part and reason.
    """

    keep: Mapping[int, Mask]
    columns: pa.Schema
    rejected: Mapping[int, Mapping[str, int]]

    @property
    def rows(self) -> int:
        """How many enter."""
        return sum(int(mask.sum()) for mask in self.keep.values())

    def reasons(self) -> dict[str, int]:
        """Rows left out of all parts, by reason."""
        total: dict[str, int] = {}
        for reasons in self.rejected.values():
            for reason, count in reasons.items():
                total[reason] = total.get(reason, 0) + count
        return total


def survey_part(root: Path, parts: Parts, number: int, share: float) -> PartSurvey:
    """Look at all rows of a part, and take a share of its vectors along.

    `root`, of the index, is not read: calls to workers begin with it.

    Raises:
        DamagedError: when a file of the part is missing or changed.
    """
    del root
    vectors = parts.vectors(number)
    norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
    usable = np.asarray(np.abs(norms - 1) <= NORM_TOLERANCE)  # False for NaN
    return PartSurvey(
        part=number,
        ids=row_ids(parts.keys(number)),
        usable=usable,
        sample=_spread(vectors[usable], share),
        schema=parts.schema(number),
    )


def select(surveys: Iterable[PartSurvey]) -> Selection:
    """Of several rows with one key, the first that can be used enters."""
    ordered = sorted(surveys, key=lambda survey: survey.part)
    usable = np.concatenate([survey.usable for survey in ordered])
    ids = np.concatenate([survey.ids for survey in ordered])
    places = np.flatnonzero(usable)
    _, first = np.unique(ids[places], return_index=True)
    entering = np.zeros(len(ids), bool)
    entering[places[first]] = True
    ends = np.cumsum([len(survey.ids) for survey in ordered])
    keep = dict(zip((s.part for s in ordered), np.split(entering, ends[:-1]), strict=True))
    return Selection(
        keep,
        columns_of(survey.schema for survey in ordered),
        {survey.part: _reasons(survey, keep[survey.part]) for survey in ordered},
    )


def _reasons(survey: PartSurvey, keep: Mask) -> dict[str, int]:
    found = {
        NOT_UNIT: int((~survey.usable).sum()),
        REPEATED: int((survey.usable & ~keep).sum()),
    }
    return {reason: count for reason, count in found.items() if count}


def _spread(vectors: Halves, share: float) -> Halves:
    count = ceil(len(vectors) * share)  # of many small parts each gives one
    places = np.linspace(0, len(vectors) - 1, count)
    return vectors[places.astype(np.int64)]
