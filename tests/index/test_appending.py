"""New rows go where they can be read: parts on a node's own disk stay on that node."""

import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.errors import InputError, MismatchError
from clipray.index import Index, appending
from clipray.index.appending import append_parts
from clipray.index.manifest import IndexFolder
from clipray.index.workers import Here
from clipray.manifest import ModelIdentity, ModelSource
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings

HALVES = random_halves(90)


class Nodes(Here):
    """This process, said to be several nodes that hold a part each."""

    def __init__(self, root, names):
        super().__init__(root)
        self.names, self.built = names, []

    def everywhere(self, function, arguments):
        if function.__name__ != "seen_parts":
            return super().everywhere(function, arguments)
        parts = Parts.open(*arguments)
        return {name: parts.only([number]) for number, name in enumerate(self.names)}

    def run(self, function, calls, on=None):
        if function.__name__ == "build_segment":
            self.built = [(node, *plan.feed.parts) for (plan,), node in zip(calls, on, strict=True)]
        return super().run(function, calls, on)


@pytest.fixture
def grown(tmp_path):
    """Append two parts to an index whose shards lie on the nodes that are given."""
    base = write_embeddings(tmp_path / "base", cut_parts(HALVES[:60], 2))
    keys = [[f"new/{row}" for row in rows] for rows in (range(10), range(10, 30))]
    added = write_embeddings(tmp_path / "added", [(keys[0], HALVES[60:70]), (keys[1], HALVES[70:])])

    def grow(shards, names):
        folder = IndexFolder(tmp_path / "i")
        build_index(folder.root, base, shards=len(shards))
        manifest = folder.read()
        placed = zip(manifest.shards, shards, strict=True)
        given = tuple(shard.model_copy(update={"node": node}) for shard, node in placed)
        assert folder.commit(manifest.next("append", shards=given))
        nodes = Nodes(folder.root, names)
        append_parts(folder, Parts.open(added), nodes)
        return nodes.built, folder

    return grow


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(("shards", "names"), [("ab", "ba"), ("aab", "ab"), ([None, None], "ab")])
def test_parts_on_own_disks_stay_where_they_are(grown, monkeypatch, shards, names, few):
    monkeypatch.setattr(appending, "EXACT_UP_TO", 1000 if few else 0)
    built, folder = grown(list(shards), names)
    assert {(node, part) for node, *parts in built for part in parts} == {
        (names[0], 0),
        (names[1], 1),
    }
    for shard in folder.read().shards:
        assert shard.node in (None, *names)
    assert len(Index.open(folder.root)) == 90
    found = Index.open(folder.root).search(HALVES[60:].astype(np.float32), 1)
    assert [match.key for each in found for match in each] == [f"new/{row}" for row in range(30)]


def test_a_node_without_a_shard_is_named(grown):
    with pytest.raises(InputError, match="on the disk of node 'c', which holds no shard"):
        grown(["a", "b"], "ac")


def test_embeddings_of_another_model_are_told_from_the_index(tmp_path):
    parts = cut_parts(HALVES[:4], 1)
    build_index(tmp_path / "i", write_embeddings(tmp_path / "base", parts))
    other = ModelIdentity(name="b", dim=HALVES.shape[1], weights="v", preprocess="p", tokenizer="t")
    model = (other, ModelSource(name="b"))
    added = Parts.open(write_embeddings(tmp_path / "added", parts, model=model))
    folder = IndexFolder(tmp_path / "i")
    with pytest.raises(MismatchError, match=r"i: the model of .+/added is b .+ with none"):
        append_parts(folder, added, Here(folder.root))
