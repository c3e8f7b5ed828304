"""Every shard has exactly one group, whatever becomes of the index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipray.errors import MismatchError
from clipray.index.manifest import SearchSettings, ShardRecord
from clipray.serve.catalog import ServedFolder
from clipray.serve.groups import plan_groups, require_homes


def folder(*homes, name="a", version=1):
    return ServedFolder(
        name=name,
        modality="image",
        root="x",
        version=version,
        method="Flat",
        placement="node" if any(homes) else "shared",
        settings=SearchSettings(),
        shards=tuple(ShardRecord(segments=(), node=home) for home in homes),
    )


homes = st.lists(st.sampled_from([None, "one", "two"]), min_size=1, max_size=9)


@given(st.lists(homes, min_size=1, max_size=3), st.integers(1, 5))
def test_every_shard_belongs_to_one_group_and_no_group_is_idle(layouts, groups):
    folders = [folder(*layout) for layout in layouts]
    specs = plan_groups(folders, groups)
    assert len({spec.name for spec in specs}) == len(specs)
    for one in folders:
        held = sorted(shard for spec in specs for shard in spec.shards(one))
        assert held == list(range(len(one.shards)))
        require_homes(one, specs)
    assert all(any(spec.shards(one) for one in folders) for spec in specs)


def test_more_groups_than_shards_are_not_made():
    assert len(plan_groups([folder(None, None)], 8)) == 2


def test_a_version_with_more_shards_is_dealt_out_to_the_same_groups():
    specs = plan_groups([folder(None, None)], 2)
    grown = folder(*[None] * 5)
    assert [spec.shards(grown) for spec in specs] == [(0, 2, 4), (1, 3)]


def test_shards_on_a_node_without_a_group_are_refused_by_name():
    specs = plan_groups([folder("one")], 1)
    with pytest.raises(MismatchError, match="shard 1 lies on the disk of node 'two'"):
        require_homes(folder("one", "two", version=2), specs)
