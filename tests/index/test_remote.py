"""An index in a store: published piece by piece, read through a folder of this machine."""

import functools
import http.server
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipray import nodes, storage, uri
from clipray.cli import main
from clipray.embeddings import Parts
from clipray.errors import ConfigError, DamagedError, InputError, OutputError
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.deletions import Doomed
from clipray.index.history import IndexGcConfig, gc
from clipray.index.manifest import IndexFolder
from clipray.index.publish import IndexPublishConfig
from clipray.index.publish import publish as run
from clipray.index.publishing import publish
from clipray.index.reader import unit_queries
from clipray.index.remove import remove_rows
from clipray.index.shard import Wanted
from clipray.index.store import newest, opened, read
from clipray.index.table import row_ids
from clipray.index.workers import Here
from clipray.serve.catalog import ServedFolder
from clipray.serve.groups import plan_groups
from clipray.serve.holding import Holding, Job
from tests.careless import without_fsync
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings

DIM, ROWS = 8, 60
FILES = 9  # of the index below
QUERIES = random_halves(4, DIM, seed=9).astype(np.float32)
UNITS = unit_queries(QUERIES, DIM)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPRAY_CACHE", str(tmp_path / "cache"))
    with without_fsync():
        yield tmp_path / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two shards with a codec, and what can be appended."""
    root = tmp_path_factory.mktemp("remote")
    write_embeddings(root / "first", cut_parts(random_halves(ROWS, DIM), 2))
    write_embeddings(root / "more", [(["m/0", "s/1"], random_halves(2, DIM, seed=1))])
    with without_fsync():
        build_index(root / "index", root / "first", "IVF4,Flat", shards=2)
    return root


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "local")
    return IndexFolder(tmp_path / "local/index")


@pytest.fixture
def store(tmp_path):
    return uri.at(f"memory://bucket{tmp_path}")


@pytest.fixture
def requests(monkeypatch, store):
    """Names of the files that were read from the store, and of those that were sent."""
    read, sent = [], []
    kind = type(store.fs)
    cat, put = kind.cat_file, kind.put_file

    def counted_cat(fs, path, *args, **kwargs):
        read.append(Path(path).name)
        return cat(fs, path, *args, **kwargs)

    def counted_put(fs, source, path, *args, **kwargs):
        sent.append(Path(path).name)
        return put(fs, source, path, *args, **kwargs)

    monkeypatch.setattr(kind, "cat_file", counted_cat)
    monkeypatch.setattr(kind, "put_file", counted_put)
    return read, sent


def append(folder):
    parts = Parts.open(folder.root.parent / "more")
    return append_parts(folder, parts, Here(folder.root)).manifest


def answers(place, version=None):
    index = Index.open(place, version)
    return [[(m.key, m.score) for m in found] for found in index.search(QUERIES, 20)]


def a_file(folder, store, name="vectors.npy"):
    """A file of the index, here and in the store."""
    path = next(path for path, _ in folder.all_files(folder.read()) if path.name == name)
    return path, store / path.relative_to(folder.root).as_posix()


def manifest_of(folder, store, version):
    return store / folder.version_file(version).relative_to(folder.root).as_posix()


def flip(remote):
    data = bytearray(remote.read_bytes())
    data[len(data) // 2] ^= 1
    remote.write_bytes(bytes(data))


def test_a_published_index_answers_as_the_local_one(folder, store):
    done = publish(folder, store)
    assert (done.version, done.there) == (1, 0)
    assert done.sent == len(list(folder.all_files(folder.read()))) == FILES
    assert answers(str(store)) == answers(folder.root)
    assert set(uri.sizes(store)) == {
        path.relative_to(folder.root).as_posix()
        for parent in (folder.segments, folder.codecs, folder.manifests)
        for path in parent.rglob("*")
        if path.is_file()
    }


def test_publishing_again_sends_nothing(folder, store, requests):
    publish(folder, store)
    requests[1].clear()
    done = publish(folder, store)
    assert (done.sent, done.bytes, done.there, requests[1]) == (0, 0, FILES, [])


def test_a_change_sends_only_what_is_new_and_old_versions_stay(folder, store):
    publish(folder, store)
    before = answers(folder.root)
    assert answers(str(store)) == before
    append(folder)
    changed = append_removed(folder)
    done = publish(folder, store)
    assert done.version == changed.version == 3
    assert done.there == FILES
    new = {path.name for path, _ in folder.all_files(changed)} - {a_file(folder, store)[0].name}
    assert 0 < done.sent <= len(new) + 1
    assert answers(str(store)) == answers(folder.root) != before
    assert answers(str(store), version=1) == before
    with pytest.raises(InputError, match="has no version 2"):
        Index.open(str(store), version=2)


def append_removed(folder):
    manifest, _ = remove_rows(folder, Doomed(ids=row_ids(["s/5", "s/50"])), Here(folder.root))
    return manifest


def test_a_publish_that_was_killed_goes_on(folder, store, requests):
    path, remote = a_file(folder, store)
    kept = a_file(folder, store, "rows.arrow")
    for number, (source, _) in enumerate(folder.all_files(folder.read())):
        target = store / source.relative_to(folder.root).as_posix()
        if number < 4:  # those of the first segment
            uri.send(source, target, lambda count: None)
    remote.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="no index there"):
        Index.open(str(store))
    requests[1].clear()
    done = publish(folder, store)
    assert (done.sent, done.there) == (FILES - 3, 3)
    assert path.name in requests[1]
    assert kept[1].read_bytes() == kept[0].read_bytes()
    assert answers(str(store)) == answers(folder.root)


def test_another_index_is_not_published_over_this_one(folder, store, tmp_path):
    publish(folder, store)
    write_embeddings(tmp_path / "other", cut_parts(random_halves(9, DIM, seed=3), 1))
    build_index(tmp_path / "index", tmp_path / "other")
    before = uri.sizes(store)
    with pytest.raises(OutputError, match=r"memory://\S+1\.json: is not the version 1 that /\S+1"):
        publish(IndexFolder(tmp_path / "index"), store)
    shutil.copytree(folder.root.parent / "more", tmp_path / "more")
    append(IndexFolder(tmp_path / "index"))
    with pytest.raises(OutputError, match="is not the version 1"):
        publish(IndexFolder(tmp_path / "index"), store)
    assert uri.sizes(store) == before
    assert answers(str(store)) == answers(folder.root)


def test_of_two_publishers_of_a_version_one_is_refused(folder, store, monkeypatch):
    create = uri.create
    there = manifest_of(folder, store, 1)

    def late(path, data):
        path.fs.pipe_file(path.path, b"{}")
        create(path, data)

    monkeypatch.setattr(uri, "create", late)
    with pytest.raises(OutputError, match="is not the version 1"):
        publish(folder, store)
    assert there.read_bytes() == b"{}"


def test_a_store_that_tells_nothing_of_a_second_try_is_understood(folder, store, monkeypatch):
    create = uri.create

    def twice(path, data):
        create(path, data)
        raise OSError("412 Precondition Failed")

    monkeypatch.setattr(uri, "create", twice)
    assert publish(folder, store).version == 1


def test_what_is_damaged_here_is_not_published(folder, store):
    path, _ = a_file(folder, store)
    flip(path)
    with pytest.raises(DamagedError, match=str(path)):
        publish(folder, store)
    assert not manifest_of(folder, store, 1).exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (flip, "its sha256 is not"),
        (lambda remote: remote.write_bytes(remote.read_bytes()[:50]), "has 50 bytes, its manifest"),
        (lambda remote: remote.unlink(), "missing; publish the index again"),
    ],
    ids=["flipped", "cut", "missing"],
)
def test_damage_in_the_store_is_told_with_its_name(folder, store, change, told):
    publish(folder, store)
    path, remote = a_file(folder, store)
    change(remote)
    with pytest.raises(DamagedError, match=rf"{remote}: {told}"):
        Index.open(str(store))
    partial = Index.open(str(store), partial=True)
    assert partial.coverage.missing == (0,)
    remote.write_bytes(path.read_bytes())
    assert answers(str(store)) == answers(folder.root)


def test_a_damaged_manifest_of_the_store_is_told_with_its_name(folder, store):
    publish(folder, store)
    remote = manifest_of(folder, store, 1)
    flip(remote)
    with pytest.raises(DamagedError, match=str(remote)):
        Index.open(str(store))


def test_the_cache_saves_reading_the_store_again(folder, store, requests):
    publish(folder, store)
    requests[0].clear()
    expected = answers(str(store))
    assert len(requests[0]) == FILES + 1
    requests[0].clear()
    assert answers(str(store)) == expected
    assert requests[0] == [folder.version_file(1).name]


def test_a_damaged_cache_is_mended(folder, store, requests):
    publish(folder, store)
    expected = answers(str(store))
    cached = opened(str(store), verify=False).folder
    flip(a_file(cached, store)[0])
    a_file(cached, store, "rows.arrow")[0].write_bytes(b"cut")
    requests[0].clear()
    assert answers(str(store)) == expected
    assert sorted(requests[0])[1:] == ["rows.arrow", "vectors.npy"]


def test_the_cache_is_an_index_folder(folder, store, cache):
    publish(folder, store)
    Index.open(str(store))
    append(folder)
    append_removed(folder)
    publish(folder, store)
    cached, _, verified = opened(str(store))
    assert verified
    assert cached.root.parent == cache == storage.cache_root()
    assert cached.versions() == [1, 3]
    assert gc(IndexGcConfig(index=cached.root)).versions == (3,)
    assert answers(cached.root) == answers(folder.root)
    assert answers(str(store), version=1) == answers(folder.root, version=1)


def test_an_index_published_anew_under_the_same_name_is_noticed(folder, store, tmp_path):
    publish(folder, store)
    append(folder)
    publish(folder, store)
    Index.open(str(store))
    store.fs.rm(store.path, recursive=True)
    write_embeddings(tmp_path / "other", cut_parts(random_halves(30, DIM, seed=3), 1))
    build_index(tmp_path / "index", tmp_path / "other")
    publish(IndexFolder(tmp_path / "index"), store)
    assert answers(str(store)) == answers(tmp_path / "index")


def test_two_fetches_at_once_do_not_disturb_each_other(folder, store):
    publish(folder, store)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answers, [str(store)] * 4))
    assert found == [answers(folder.root)] * 4
    assert not list(opened(str(store)).folder.root.rglob("*.npy.*.tmp"))


def test_large_files_come_in_pieces(folder, store, requests, monkeypatch):
    publish(folder, store)
    monkeypatch.setattr(uri, "CHUNK", 200)
    assert answers(str(store)) == answers(folder.root)
    assert requests[0].count("vectors.npy") >= 4


def test_a_store_that_refuses_ranges_behind_the_end_is_understood(folder, store, monkeypatch):
    publish(folder, store)
    path, remote = a_file(folder, store)
    remote.write_bytes(path.read_bytes()[:200])
    cat = type(store.fs).cat_file

    def strict(fs, path, start=None, end=None):
        if start and start >= fs.info(path)["size"]:
            raise OSError("416")
        return cat(fs, path, start=start, end=end)

    monkeypatch.setattr(type(store.fs), "cat_file", strict)
    monkeypatch.setattr(uri, "CHUNK", 200)
    monkeypatch.setattr(uri, "TRIES", 1)
    with pytest.raises(DamagedError, match=rf"{remote}: has 200 bytes, its manifest says"):
        Index.open(str(store))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files without ranges, as Python serves them."""

    def log_message(self, *args):
        pass


def test_an_index_folder_behind_a_web_server_can_be_opened(folder, monkeypatch):
    monkeypatch.setattr(uri, "CHUNK", 200)
    handler = functools.partial(Handler, directory=str(folder.root.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert answers(f"{address}/index/") == answers(folder.root)
        with pytest.raises(InputError, match="no index there"):
            Index.open(f"{address}/none")
        server.shutdown()


def test_a_manifest_cannot_name_files_elsewhere(folder, store, tmp_path, cache):
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep me")
    manifest = folder.read()
    segment = manifest.shards[0].segments[0]
    bad = segment.model_copy(update={"files": {"../../../../victim": segment.files["vectors.npy"]}})
    shard = manifest.shards[0].model_copy(update={"segments": (bad,)})
    forged = IndexFolder(tmp_path / "forged")
    changed = manifest.model_copy(update={"shards": (shard,), "placement": "node"})
    assert forged.commit(changed)
    manifest_of(folder, store, 1).write_bytes(forged.version_file(1).read_bytes())
    for verify in (True, False):
        with pytest.raises(DamagedError, match="lies outside"):
            opened(str(store), verify=verify)
    assert victim.read_bytes() == b"keep me"


def test_shards_on_their_nodes_are_not_published(folder, store, tmp_path):
    manifest = folder.read().model_copy(update={"placement": "node"})
    elsewhere = IndexFolder(tmp_path / "nodes")
    assert elsewhere.commit(manifest)
    with pytest.raises(InputError, match="lie on their nodes"):
        publish(elsewhere, store)


def test_errors_of_a_store_are_told(folder, store, monkeypatch):
    monkeypatch.setattr(uri, "TRIES", 1)

    def refuse(*args, **kwargs):
        raise RuntimeError("no credentials")

    publish(folder, store)
    monkeypatch.setattr(type(store.fs), "cat_file", refuse)
    with pytest.raises(InputError, match=r"memory://.*cannot be read \(no credentials\)"):
        Index.open(str(store))
    append(folder)
    monkeypatch.undo()
    monkeypatch.setattr(uri, "TRIES", 1)
    monkeypatch.setattr(type(store.fs), "put_file", refuse)
    with pytest.raises(InputError, match=r"memory://.*cannot be written \(no credentials\)"):
        publish(folder, store)


def test_the_command_publishes_and_search_reads(folder, store, capsys, tmp_path):
    command = ["index", "publish", "--index", str(folder.root), "--to", str(store), "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["sent"], told["there"], told["to"]) == (1, FILES, 0, str(store))
    assert told["bytes"] == sum(record.bytes for _, record in folder.all_files(folder.read()))
    shown = []
    for place in (str(store), str(folder.root)):
        assert main(["search", "--index", place, "--key", "s/7", "-o", "columns=[]"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""
    assert main(["search", "--index", "foo://bar", "--key", "s/7"]) == 2
    assert "foo://bar: cannot be opened" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected a URI"):
        run(IndexPublishConfig(index=folder.root, to=str(tmp_path / "copy")))


def names(folder, number):
    """Files of a shard."""
    segments = folder.read().shards[number].segments
    return sorted(path.name for segment in segments for path, _ in folder.files(segment))


def test_of_some_shards_only_their_files_are_fetched(folder, store, requests):
    publish(folder, store)
    requests[0].clear()
    cached, manifest, _ = opened(str(store), shards=(1,))
    assert len(manifest.shards) == 2
    assert sorted(requests[0])[1:] == names(folder, 1)
    assert all(path.is_file() for s in manifest.shards[1].segments for path, _ in cached.files(s))
    requests[0].clear()
    assert answers(str(store)) == answers(folder.root)  # what is missing comes when it is wanted
    assert len(requests[0]) == 1 + len(names(folder, 0)) + len([manifest.codec])


def test_what_was_compared_before_is_not_compared_again(folder, store, requests):
    publish(folder, store)
    cached = opened(str(store)).folder
    path, _ = a_file(cached, store)
    flip(path)
    requests[0].clear()
    opened(str(store), known={path})
    assert len(requests[0]) == 1
    opened(str(store))
    assert requests[0][1:] == [folder.version_file(1).name, path.name]


def test_newest_and_read_fetch_no_file_of_the_index(folder, store, requests):
    for place in (str(store), folder.root):
        with pytest.raises(InputError, match="no index"):
            read(tmp := f"{place}-none")
        with pytest.raises(InputError, match="no index"):
            newest(tmp)
    publish(folder, store)
    append(folder)
    assert (newest(folder.root), newest(str(store))) == (2, 1)
    publish(folder, store)
    requests[0].clear()
    assert newest(str(store)) == 2
    assert requests[0] == []
    assert read(str(store)) == folder.read()
    assert read(str(store), 1) == folder.read(1)
    assert requests[0] == [folder.version_file(2).name, folder.version_file(1).name]
    with pytest.raises(InputError, match="has no version 3"):
        read(str(store), 3)


def served(name, place):
    return ServedFolder.of(name, place, read(place))


def hold(spec):
    return Holding(spec.shards, nodes.local_root)


def search(holding, folder):
    piece = folder.piece(range(len(folder.shards)))
    part = holding.search(Job(piece, UNITS, Wanted(20)))
    return part.found


def test_a_published_index_is_served_as_a_local_one(folder, store, requests):
    publish(folder, store)
    there, here = served("there", str(store)), served("here", folder.root)
    first, second = plan_groups([there, here], 2)
    requests[0].clear()
    group = hold(first)
    assert group.open(there).lost == group.open(here).lost == {}
    assert requests[0].count("vectors.npy") == 1  # its shard's
    assert search(group, there) == search(group, here)
    assert np.array_equal(*[group.find(one.piece([0]), "s/7") for one in (there, here)])
    requests[0].clear()
    assert hold(second).open(there).lost == {}
    assert requests[0].count("vectors.npy") == 1


def test_a_group_goes_over_to_a_newly_published_version(folder, store, requests, monkeypatch):
    publish(folder, store)
    before = served("a", str(store))
    group = hold(plan_groups([before], 1)[0])
    group.open(before)
    append(folder)
    append_removed(folder)
    sent = publish(folder, store).sent
    after = served("a", str(store))
    requests[0].clear()
    hashed = []
    compare = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: hashed.append(path) or compare(path))
    assert group.open(after).lost == {}
    assert (len(requests[0]), hashed) == (1 + sent, [])  # the manifest, and what is new
    assert search(group, after) == Index.open(folder.root).search(QUERIES, 20)
    assert search(group, before) == Index.open(folder.root, 1).search(QUERIES, 20)


def test_a_group_says_which_published_shard_is_damaged_and_tries_again(folder, store):
    publish(folder, store)
    there = served("a", str(store))
    group = hold(plan_groups([there], 1)[0])
    path, remote = a_file(folder, store)
    flip(remote)
    (number,) = group.open(there).lost
    assert group.search(Job(there.piece([0, 1]), UNITS, Wanted(5))).lost == (number,)
    remote.write_bytes(path.read_bytes())
    assert group.open(there).lost == {}
