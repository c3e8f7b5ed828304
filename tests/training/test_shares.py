"""What ranks share has one outcome on all of them, and so has a failure of one."""

import pytest

from clipray.errors import InputError
from clipray.training.peers import Peers
from clipray.training.shares import from_first, share_out, together
from tests.threads import on_ranks


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(world, items):
    done = []

    def work(mine):
        done.extend(mine)
        return (item**2 for item in mine)

    found = on_ranks(world, lambda peers: share_out(range(items), work, peers))
    assert found == [[item**2 for item in range(items)]] * world
    assert sorted(done) == list(range(items))


def test_a_rank_that_fails_alone_fails_on_all():
    def work(mine):
        for item in mine:
            if item == 3:
                raise InputError("item 3 is odd")
            yield item

    found = on_ranks(2, lambda peers: share_out(range(6), work, peers))
    assert [str(error) for error in found] == ["item 3 is odd"] * 2


def test_only_the_first_rank_makes_it():
    made = []

    def make():
        made.append(1)
        return "it"

    assert on_ranks(3, lambda peers: from_first(make, peers)) == ["it"] * 3
    assert made == [1]
    assert from_first(make, Peers()) == "it"


def test_what_the_first_rank_cannot_make_fails_on_all():
    def make():
        raise InputError("no such file")

    found = on_ranks(2, lambda peers: from_first(make, peers))
    assert [str(error) for error in found] == ["no such file"] * 2


def test_errors_from_another_node_say_where_they_were_met():
    with pytest.raises(InputError, match=r"^no such file \[on node 'b'\]$"):
        together(lambda: fail(InputError("no such file")), Peers(node="b"))


def fail(error):
    raise error
