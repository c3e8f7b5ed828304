"""A folder that is lent through Ray is a folder: what is done to it there is done here."""

import os
from pathlib import Path

import pytest

from clipray import lent as lending
from clipray import storage, uri
from clipray.lent import SIGN, Lent, lent
from clipray.training.checkpoints import CheckpointConfig, Checkpoints

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("lent")


@pytest.fixture(scope="module", autouse=True)
def of_several(ray_session):
    """Ray as it is where nodes may join."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipray.cluster.is_alone", lambda: False)
        yield


@pytest.fixture(scope="module")
def far(root, of_several):
    """The way of a node that does not see the folder: it finds another word there."""
    with lent(root) as found:
        yield Lent(found.root, "another word", found.keeper).reached()


def test_a_node_that_sees_the_folder_uses_it(root, far):
    with lent(root) as found:
        assert found.reached() == root
        assert (root / SIGN).is_file()
    assert not (root / SIGN).exists()
    assert not uri.is_local(far)
    assert str(far) == f"lent://{root}"


def test_a_store_is_lent_to_nobody():
    with lent(uri.at("memory://runs/a")) as found:
        assert str(found.reached()) == "memory://runs/a"


def test_nothing_is_lent_where_nobody_else_is(root, monkeypatch):
    monkeypatch.setattr("clipray.cluster.is_alone", lambda: True)
    with lent(root) as found:
        assert found == Lent(str(root))
        assert not (root / SIGN).exists()


@pytest.mark.parametrize("size", [0, 1, 10, 25])
def test_files_come_and_go_in_pieces(root, far, tmp_path, monkeypatch, size):
    monkeypatch.setattr(lending, "PIECE", 10)
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    uri.send(tmp_path / "file", far / "in" / "side", lambda _: None)
    assert (root / "in" / "side").read_bytes() == data
    assert uri.sizes(far / "in") == {"side": size}
    with uri.fetched(far / "in" / "side") as copy:
        assert copy.read_bytes() == data
    assert uri.read(far / "in" / "side", 3, 5) == data[3:8]
    (far / "in" / "side").unlink()
    assert not (root / "in").exists()


def test_what_is_not_there_is_told_as_of_a_local_file(far):
    with pytest.raises(FileNotFoundError):
        uri.read(far / "nothing", 0, 1)
    assert uri.sizes(far / "nothing") == {}
    uri.create(far / "once", b"1")
    with pytest.raises(OSError, match="once"):
        uri.create(far / "once", b"2")
    assert uri.read(far / "once", 0, 9) == b"1"


def test_a_link_to_another_disk_is_followed(root, far, tmp_path):
    (root / "linked").symlink_to(tmp_path)
    far.fs.pipe_file(str(root / "linked" / "file"), b"there")
    assert (tmp_path / "file").read_bytes() == b"there"
    assert uri.sizes(far / "linked") == {"file": 5}
    (root / "linked").unlink()


def test_nothing_outside_is_touched(root, far):
    keeper = far.fs
    with pytest.raises(PermissionError, match="outside of"):
        keeper.pipe_file(str(root.parent / "elsewhere"), b"")
    with pytest.raises(PermissionError, match="outside of"):
        keeper.cat_file(f"{root}/../elsewhere")
    assert not (root.parent / "elsewhere").exists()


def test_checkpoints_sent_there_are_those_found_here(root, far):
    def fill(folder: Path):
        (folder / "inner").mkdir()
        (folder / "inner" / "state").write_bytes(b"state")

    config = CheckpointConfig(keep=2)
    for step in (1, 2, 3):
        Checkpoints(far / "checkpoints", config).save(step, "data", {}, fill)
    names = sorted(path.name for path in (root / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]
    for place in (root, far):
        with Checkpoints(place / "checkpoints", config).newest() as (folder, manifest):
            assert manifest.step == 3
            assert (folder / "inner" / "state").read_bytes() == b"state"
    assert not [path for path in root.rglob("*") if storage.is_staging(path)]
