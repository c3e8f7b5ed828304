"""What the HTTP routes need behind them; a test puts an in-process index there."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipray.query import Query, Term
from clipray.serve.catalog import Catalog, Reply
from clipray.serve.meter import Meter

Vector = NDArray[np.float32]


class Searcher(Protocol):
    """Answers queries.

    Attributes:
        meter: counts them.
    """

    meter: Meter

    @property
    def catalog(self) -> Catalog:
        """What is served now."""
        ...

    async def search(self, query: Query) -> Reply:
        """Answer one query."""
        ...

    async def embed(self, term: Term) -> Vector:
        """(dim,) float32 unit vector of a term that is no key."""
        ...

    async def rows(self, index: str | None, ids: Sequence[int]) -> list[dict[str, Any] | None]:
        """Id, key and all columns of rows; None for an id that no row of the index has."""
        ...

    async def image(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        """A picture and its media type; a JPEG thumbnail when `size` is given."""
        ...

    async def refresh(self) -> dict[str, Any]:
        """Go over to the newest version of every index; says which version of each is served."""
        ...

    def ready(self) -> dict[str, bool]:
        """Which parts of the service answer."""
        ...
