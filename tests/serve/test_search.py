"""What the ingress does not give out as an answer."""

import pytest

from clipray.errors import UnavailableError
from clipray.matches import Coverage
from clipray.query import Query
from clipray.serve.search import _require_enough

QUERY = Query(text="a ring")


def test_a_part_of_the_index_is_an_answer_unless_all_is_wanted():
    part = Coverage(4, 3, 75, 100, (2,))
    _require_enough(part, QUERY)
    with pytest.raises(UnavailableError, match="3 of 4 shards answered"):
        _require_enough(part, Query(text="a ring", allow_partial=False))


def test_shards_without_rows_are_no_answer_when_those_with_rows_are_away():
    with pytest.raises(UnavailableError, match="2 of 4 shards answered"):
        _require_enough(Coverage(4, 2, 0, 100, (0, 2)), QUERY)
    _require_enough(Coverage(4, 4, 0, 0, ()), QUERY)
