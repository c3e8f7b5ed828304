"""Several processes write to one index: what each was told is kept, and no version is a mixture."""

from contextlib import ExitStack, nullcontext

import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.errors import OutputError
from clipray.index import Index, build, compaction
from clipray.index.appending import append_parts
from clipray.index.builder import build_segment
from clipray.index.compaction import compact
from clipray.index.construct import IndexOptions, construct
from clipray.index.deletions import Doomed
from clipray.index.history import IndexGcConfig, gc
from clipray.index.manifest import IndexFolder
from clipray.index.remove import remove_rows
from clipray.index.shard import Shard
from clipray.index.table import row_ids
from clipray.index.upkeep import roll_back
from clipray.index.workers import Here
from tests.careless import without_fsync
from tests.index.peer import AT_WORK, GO, SHARED, Peer, content, embed

WRITERS = 4
FIRST = [f"first/{n}" for n in range(12)]


@pytest.fixture
def folder(tmp_path):
    """An index of three shards."""
    embed(tmp_path / "first", [*FIRST, *SHARED], 0)
    folder = IndexFolder(tmp_path / "index")
    with without_fsync():
        options = IndexOptions(method="Flat", shards=3)
        made = construct(Parts.open(tmp_path / "first"), folder, options, Here(folder.root))
        assert folder.commit(made.manifest)
        made.ledger.clear()
        yield folder


class Rounds:
    """Writers that are set going at the same moment, and what their index has to be."""

    def __init__(self, folder, writers, seed):
        self.folder, self.writers = folder, writers
        self.rows = content(folder.root)
        self.rng = np.random.default_rng(seed)
        self.stamp = 1
        self.collided = 0

    def run(self):
        """One round: the versions that came are those of the writers, one after the other."""
        before = self.folder.versions()
        count = int(self.rng.integers(2, len(self.writers) + 1))
        chosen = self.rng.permutation(len(self.writers))[:count].tolist()
        orders = {number: self._order(number) for number in chosen}
        for number, (words, _) in orders.items():
            self.writers[number].order(*words)
        answers = {number: self.writers[number].answer() for number in chosen}
        assert all(isinstance(answer, list) for answer in answers.values()), answers
        owners = {version: number for number, mine in answers.items() for version in mine}
        assert len(owners) == sum(map(len, answers.values()))
        versions = self.folder.versions()
        assert versions == [*before, *sorted(owners)]
        assert versions == list(range(versions[0], versions[-1] + 1))
        self.collided += len(owners) > 1
        seen = [self.rows]
        for version in sorted(owners):
            self.rows = orders[owners[version]][1](self.rows)
            assert content(self.folder.root, version) == self.rows
            seen.append(self.rows)
        for number, mine in answers.items():
            (verb, *words), _ = orders[number]
            assert len(mine) <= 1
            if verb == "append":
                assert mine
            if verb == "remove" and not mine:
                assert any(rows.keys().isdisjoint(words[0]) for rows in seen)

    def _order(self, number):
        """Words for a writer, and what the order makes of the rows."""
        verb = self.rng.choice(["append", "remove", "compact"], p=[0.5, 0.25, 0.25])
        if verb == "compact":
            return ("compact", bool(self.rng.integers(2))), dict
        own = [f"{number}/{n}" for n in self.rng.permutation(8)[:3]]
        keys = [*own, *(SHARED if self.rng.integers(2) else ())]
        if verb == "remove":
            gone = frozenset(keys)
            return ("remove", keys), lambda rows: {k: rows[k] for k in rows if k not in gone}
        self.stamp += 1
        embeddings = self.folder.root.parent / f"{self.stamp}"
        fresh = embed(embeddings, keys, self.stamp)
        return ("append", str(embeddings)), lambda rows: rows | fresh


def many_rounds(folder, rounds, every):
    """Rounds beside a reader, and `gc` after every so many of them; returns how often it looked."""
    until = folder.root.parent / "until"
    with ExitStack() as stack:
        reader, *writers = (stack.enter_context(Peer(folder.root)) for _ in range(WRITERS + 1))
        work = Rounds(folder, writers, seed=rounds)
        reader.order("watch", str(until))
        for number in range(1, rounds + 1):
            work.run()
            if number % every == 0:
                gc(IndexGcConfig(index=folder.root))
                assert content(folder.root) == work.rows
        until.touch()
        looks = reader.answer()
    assert work.collided >= rounds / 3
    assert isinstance(looks, int), looks
    return looks


def test_no_write_of_several_processes_is_lost_or_mixed_with_another(folder):
    assert many_rounds(folder, rounds=10, every=4) > 3


@pytest.mark.soak
def test_no_write_is_lost_in_200_rounds(folder):
    assert many_rounds(folder, rounds=200, every=7) > 200


def test_gc_leaves_a_running_writer_alone(folder, tmp_path):
    fresh = embed(tmp_path / "more", ["b/0", *SHARED], 5)
    before = content(folder.root)
    with Peer(folder.root) as writer:
        writer.order("halting", "append", str(tmp_path / "more"))
        assert writer.answer() == AT_WORK
        with pytest.raises(OutputError, match=f"{folder.root}: a writer, or another `gc`, is at"):
            gc(IndexGcConfig(index=folder.root))
        assert content(folder.root) == before
        writer.order(GO)
        assert writer.answer() == [2]
    assert content(folder.root) == before | fresh
    gc(IndexGcConfig(index=folder.root))
    assert content(folder.root) == before | fresh


def test_a_writer_leaves_a_running_gc_alone(folder, tmp_path):
    embed(tmp_path / "more", ["b/0"], 5)
    before = content(folder.root)
    with Peer(folder.root) as collector, Peer(folder.root) as writer:
        collector.order("halting", "gc")
        assert collector.answer() == AT_WORK
        for order in (
            ["append", str(tmp_path / "more")],
            ["remove", ["first/0"]],
            ["compact", True],
        ):
            writer.order(*order)
            assert "`clipray index gc` is at work; try again" in writer.answer()
        assert folder.versions() == [1]
        assert content(folder.root) == before
        collector.order(GO)
        assert collector.answer() == 0  # bytes freed
        writer.order("append", str(tmp_path / "more"))
        assert writer.answer() == [2]


@pytest.mark.parametrize("words", [("append", "more"), ("gc",)])
def test_a_killed_process_holds_no_lock(folder, tmp_path, words):
    fresh = embed(tmp_path / "more", ["b/0"], 5)
    before = content(folder.root)
    with Peer(folder.root) as killed:
        killed.order(
            "halting", *(str(tmp_path / word) if word == "more" else word for word in words)
        )
        assert killed.answer() == AT_WORK
        killed.kill()
    segments = list(folder.segments.iterdir())
    gc(IndexGcConfig(index=folder.root))
    left = {segment.id for segment in folder.read().segments}
    assert {path.name for path in folder.segments.iterdir()} == left
    assert len(segments) - len(left) == (words[0] == "append")
    assert content(folder.root) == before
    with folder.writing():
        append_parts(folder, Parts.open(tmp_path / "more"), Here(folder.root))
    assert content(folder.root) == before | fresh


def test_a_build_that_tidies_up_takes_nothing_from_a_writer_that_came_after_it(
    tmp_path, monkeypatch
):
    rows = embed(tmp_path / "first", FIRST, 0) | embed(tmp_path / "more", ["b/0"], 1)
    folder = IndexFolder(tmp_path / "index")
    (folder.segments / "rest of a try").mkdir(parents=True)
    published = IndexFolder.commit

    def commit_and_see_an_append(self, manifest):
        done = published(self, manifest)
        if manifest.version == 1:
            with self.writing():
                append_parts(self, Parts.open(tmp_path / "more"), Here(self.root))
        return done

    monkeypatch.setattr(IndexFolder, "commit", commit_and_see_an_append)
    monkeypatch.setattr(build.cluster, "session", lambda **_: nullcontext())
    monkeypatch.setattr(build.room, "wait", lambda: None)
    monkeypatch.setattr(build, "RayTasks", lambda folder, _: Here(folder.root))
    with without_fsync():
        config = build.IndexBuildConfig(embeddings=tmp_path / "first", index=folder.root)
        assert build.build(config).version == 1
    assert content(folder.root) == rows
    assert content(folder.root, 1).keys() == set(FIRST)
    assert not (folder.segments / "rest of a try").exists()


class Meanwhile(Here):
    """Workers during whose building something else happens, once."""

    def __init__(self, root, happening):
        super().__init__(root)
        self._happening = [happening]

    def run(self, function, calls, on=None):
        done = list(super().run(function, calls, on))
        if function is build_segment and self._happening:
            self._happening.pop()()
        return iter(done)


def test_a_compaction_does_not_lose_rows_that_a_rollback_brings_back(folder):
    whole = content(folder.root)
    here = Here(folder.root)
    remove_rows(folder, Doomed(ids=row_ids(["first/1", "first/7"])), here)
    compact(folder, Meanwhile(folder.root, lambda: roll_back(folder, 1)))
    assert folder.versions() == [1, 2, 3]
    assert content(folder.root) == whole


def test_a_compaction_keeps_what_a_rollback_and_a_removal_leave(folder):
    whole = content(folder.root)
    here = Here(folder.root)
    remove_rows(folder, Doomed(ids=row_ids(["first/1", "first/7"])), here)

    def meanwhile():
        roll_back(folder, 1)
        remove_rows(folder, Doomed(ids=row_ids(["first/2", "first/3"])), here)

    compact(folder, Meanwhile(folder.root, meanwhile))
    assert folder.versions() == [1, 2, 3, 4, 5]
    assert content(folder.root).keys() == whole.keys() - {"first/2", "first/3"}


def grow_and_collect(folder):
    with folder.writing():
        remove_rows(folder, Doomed(ids=row_ids(["first/1"])), Here(folder.root))
        compaction.compact(folder, Here(folder.root))
    gc(IndexGcConfig(index=folder.root))


@pytest.mark.parametrize("partial", [False, True])
def test_a_reader_whose_version_is_collected_takes_the_newer_one(folder, monkeypatch, partial):
    opened, happening = Shard.open, [grow_and_collect]

    def open_late(*arguments, **options):
        if happening:
            happening.pop()(folder)
        return opened(*arguments, **options)

    monkeypatch.setattr(Shard, "open", open_late)
    index = Index.open(folder.root, partial=partial)
    assert index.manifest.version == 3
    assert not index.coverage.missing


def test_a_manifest_that_is_collected_before_it_is_read_gives_way_to_a_newer_one(
    folder, monkeypatch
):
    listed, happening = IndexFolder.versions, [grow_and_collect]

    def list_early(self):
        found = listed(self)
        if happening:
            happening.pop()(folder)
        return found

    monkeypatch.setattr(IndexFolder, "versions", list_early)
    assert folder.read().version == 3
