"""What the tests of training share."""

import pytest

from tests.training.two_ranks import TwoRanks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """Two processes that are ranks of one group, started once."""
    made = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()
