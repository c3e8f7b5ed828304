"""Local paths and stores are read alike, and what goes wrong is told alike."""

import functools
import http.server
import importlib.util
import threading
from pathlib import Path

import pytest

from clipray import uri
from clipray.errors import InputError

CONTENT = bytes(range(256)) * 40


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files without ranges, as Python serves them; the first `failures` requests fail."""

    failures = 0

    def do_GET(self):
        if Handler.failures:
            Handler.failures -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder and the URI under which a real HTTP server has it."""
    root = tmp_path_factory.mktemp("served")
    (root / "inner").mkdir()
    (root / "inner/a.bin").write_bytes(CONTENT)
    (root / "inner/b.bin").write_bytes(b"b")
    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def memory(request):
    folder = uri.at(f"memory://{request.node.name.replace('[', '-').replace(']', '')}")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/a.bin").write_bytes(CONTENT)
    (folder / "inner/b.bin").write_bytes(b"b")
    return folder


@pytest.fixture(params=["local", "http", "memory"])
def folder(request, served):
    """The same files behind three kinds of path."""
    root, address = served
    if request.param == "memory":
        return request.getfixturevalue("memory") / "inner"
    return uri.at(f"{address}/inner" if request.param == "http" else str(root / "inner"))


def test_ranges_are_read(folder):
    path = folder / "a.bin"
    assert uri.read(path, 0, 10) == CONTENT[:10]
    assert uri.read(path, 250, 20) == CONTENT[250:270]
    assert uri.read(path, len(CONTENT) - 5, 100) == CONTENT[-5:]
    assert uri.read(path, 3, 0) == b""


def test_a_whole_file_is_at_hand_for_a_while(folder):
    with uri.fetched(folder / "a.bin") as here:
        assert isinstance(here, Path)
        assert here.read_bytes() == CONTENT
    assert here.exists() is uri.is_local(folder)


def test_files_are_listed_with_their_sizes(folder):
    assert uri.files(folder) == [("a.bin", len(CONTENT)), ("b.bin", 1)]


def test_names_are_told(folder):
    path = folder / "a.bin"
    assert uri.name_of(path) == "a.bin"
    assert uri.below(path, folder) == "a.bin"
    assert uri.below(folder, folder) == ""
    assert uri.name_of(uri.at("memory://bucket/")) == "bucket"


def test_what_is_missing_is_an_os_error(folder):
    with pytest.raises(FileNotFoundError):
        uri.read(folder / "none", 0, 1)
    with pytest.raises(FileNotFoundError), uri.fetched(folder / "none") as here:
        here.read_bytes()


def test_a_store_is_asked_again(served):
    path = uri.at(f"{served[1]}/inner/b.bin")
    Handler.failures = uri.TRIES - 1
    assert uri.read(path, 0, 1) == b"b"
    Handler.failures = uri.TRIES
    with pytest.raises(OSError, match="503"):
        uri.read(path, 0, 1)
    Handler.failures = 0


def test_a_replaced_remote_file_has_another_stamp(memory):
    path = memory / "inner/a.bin"
    before = uri.stamp(path)
    assert uri.stamp(path) == before
    path.write_bytes(CONTENT[::-1])
    assert uri.stamp(path) != before


def test_a_cut_transfer_is_told(memory, monkeypatch):
    path = memory / "inner/a.bin"
    monkeypatch.setattr(
        type(path.fs), "get_file", lambda fs, source, target: Path(target).write_bytes(b"half")
    )
    with pytest.raises(OSError, match=f"4 of {len(CONTENT)} bytes"), uri.fetched(path):
        pass


def test_protocols_that_are_not_there_are_told():
    with pytest.raises(InputError, match=r"foo://x: cannot be opened"):
        uri.at("foo://x")


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named():
    with pytest.raises(InputError, match=r"pip install 'clipray\[s3\]'"):
        uri.at("s3://bucket/x")


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri.at("a/b") == tmp_path / "a/b"
    assert uri.at(f"file://{tmp_path}/c") == tmp_path / "c"


def test_errors_of_any_library_become_one_about_the_path(tmp_path):
    with pytest.raises(InputError, match="x: cannot be read"), uri.reachable(tmp_path / "x"):
        raise RuntimeError("no credentials")
    with pytest.raises(InputError, match=r"^as it is$"), uri.reachable(tmp_path / "x"):
        raise InputError("as it is")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("photos", (None, "photos")),
        ("mine=photos", ("mine", "photos")),
        ("a.b-c_1=s3://bucket/x=y/z", ("a.b-c_1", "s3://bucket/x=y/z")),
        ("s3://bucket/lang=en/x", (None, "s3://bucket/lang=en/x")),
        ("a=", (None, "a=")),
    ],
)
def test_names_of_inputs_are_split_off(given, expected):
    assert uri.split_name(given) == expected


def test_a_path_with_an_equals_sign_that_exists_has_no_name(tmp_path, monkeypatch):
    (tmp_path / "lang=en").mkdir()
    monkeypatch.chdir(tmp_path)
    assert uri.split_name("lang=en") == (None, "lang=en")
    assert uri.named_place("lang=en") == ("lang=en", tmp_path / "lang=en")
    assert uri.named_place("x=lang=en") == ("x", tmp_path / "lang=en")
