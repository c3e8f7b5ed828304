"""A local folder of one node, lent to the others: tasks that do not see it reach it through Ray.

There it looks like any store behind a URI. A small actor beside the folder reads and writes for
them, in pieces, so that no file is ever in memory as a whole. What the files mean is not known
here.
"""

import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import ray
import ray.exceptions
from fsspec.spec import AbstractFileSystem
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from upath import UPath
from upath.registry import register_implementation

from clipray import cluster, storage, uri
from clipray.errors import plain
from clipray.uri import AnyPath

PROTOCOL = "lent"
PIECE = 8 << 20  # bytes that travel at once
SIGN = ".lent"  # file with a random word, by which a node knows that it sees the folder


class LentPath(UPath):
    """A path in such a folder; its file system is a `LentFiles`."""


@dataclass(frozen=True)
class Lent:
    """A folder as a task finds it, wherever it runs; pickles small.

    Attributes:
        root: its path on its own node, or the URI of a store, which is lent to nobody.
        word: that stands in its sign.
        keeper: the actor beside it.
    """

    root: str
    word: str = ""
    keeper: Any = None

    def reached(self) -> AnyPath:
        """The folder itself where this node sees it, else the way through Ray."""
        if self.keeper is None or _sign_of(Path(self.root)) == self.word:
            return uri.at(self.root)
        fsspec.register_implementation(PROTOCOL, LentFiles, clobber=True)
        register_implementation(PROTOCOL, LentPath, clobber=True)
        return UPath(f"{PROTOCOL}://{self.root}", keeper=self.keeper)


@contextmanager
def lent(root: AnyPath) -> Iterator[Lent]:
    """Lend a folder, which is there, for the time of the block; called beside it.

    On a Ray that this command has started for itself there is nobody to lend it to.

    Raises:
        OSError: when nothing can be written there.
    """
    if not uri.is_local(root) or cluster.is_alone():
        yield Lent(str(root))
        return
    root = root.resolve()
    word, sign = secrets.token_hex(16), root / SIGN
    storage.write_file(sign, word.encode())
    try:
        yield Lent(str(root), word, _keeper(root))
    finally:
        sign.unlink(missing_ok=True)


class Keeper:
    """Reads and writes the files of a folder for others; paths are those of its own node.

    Args:
        root: the folder, an absolute path; nothing outside of it is touched.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def entries(self, path: str) -> list[dict[str, Any]]:
        """What lies right inside a folder, or a file alone, as fsspec has it."""
        place = self._at(path)
        found = [place] if place.is_file() else list(place.iterdir())
        return [_entry(one) for one in found]

    def read(self, path: str, start: int, size: int) -> bytes:
        """At most so many bytes of a file."""
        return uri.read(self._at(path), start, size)

    def write(self, path: str, upload: str, start: int, piece: bytes) -> None:
        """Write a piece of what will be a file, which nobody takes for one yet."""
        staged = self._staged(path, upload)
        storage.make_folder(staged.parent)
        with staged.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.write(piece)

    def publish(self, path: str, upload: str) -> None:
        """Let a file be seen whose pieces are all written, in the place of an older one."""
        storage.publish(self._staged(path, upload), self._at(path))

    def remove(self, path: str) -> None:
        """Remove a file, and the folders that it leaves empty."""
        place = self._at(path)
        place.unlink()
        for folder in place.parents:
            if folder == self._root or any(folder.iterdir()):
                return
            folder.rmdir()

    def _at(self, path: str) -> Path:
        place = Path(path)  # not resolved: checkpoints may be a link to a larger disk
        if ".." in place.parts or not place.is_relative_to(self._root):
            raise PermissionError(f"{path}: outside of {self._root}")
        return place

    def _staged(self, path: str, upload: str) -> Path:
        place = self._at(path)
        return place.with_name(f".{place.name}.{upload}{storage.STAGING_SUFFIX}")


class LentFiles(AbstractFileSystem):  # type: ignore[misc]
    """The files of a lent folder as fsspec has them, as far as clipray uses it.

    Args:
        keeper: the actor beside the folder.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, keeper: Any, **options: Any) -> None:
        super().__init__(**options)
        self._keeper = keeper

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002
        """What lies right inside a folder, or a file alone."""
        found = self._ask("entries", self._strip_protocol(path))
        return found if detail else [row["name"] for row in found]

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Bytes of a file, from `start` to before `end`."""
        first, last = start or 0, self.info(path)["size"]
        return b"".join(self._pieces(path, first, last if end is None else min(end, last)))

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Fetch a file."""
        with Path(lpath).open("wb") as stream:
            for piece in self._pieces(rpath, 0, self.info(rpath)["size"]):
                stream.write(piece)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Send a file."""
        with Path(lpath).open("rb") as stream:
            self._put(rpath, iter(lambda: stream.read(PIECE), b""))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Send bytes."""
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        self._put(path, [value])

    def _rm(self, path: str) -> None:
        self._ask("remove", path)

    def _put(self, path: str, pieces: Iterable[bytes]) -> None:
        upload, start = secrets.token_hex(6), 0
        self._ask("write", path, upload, 0, b"")  # an empty file is one as well
        for piece in pieces:
            self._ask("write", path, upload, start, piece)
            start += len(piece)
        self._ask("publish", path, upload)

    def _pieces(self, path: str, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, PIECE):
            yield self._ask("read", path, at, min(PIECE, end - at))

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._keeper, method).remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise plain(error) from None


def _keeper(root: Path) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(Keeper).options(**options).remote(str(root))


def _sign_of(root: Path) -> str | None:
    try:
        return (root / SIGN).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None


def _entry(path: Path) -> dict[str, Any]:
    told = path.stat()
    kind = "directory" if stat.S_ISDIR(told.st_mode) else "file"
    return {"name": str(path), "size": told.st_size, "type": kind}
