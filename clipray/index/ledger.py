"""What a build has finished before its commit, so that the next try goes on from there.

Every build has a fingerprint; one of other embeddings or another method starts anew.
"""

from pathlib import Path

from clipray import storage
from clipray.config import Config
from clipray.embeddings import Parts
from clipray.errors import DamagedError
from clipray.index.builder import SegmentPlan, build_segment
from clipray.index.manifest import Codec, IndexFolder, SegmentRecord, ShardRecord
from clipray.manifest import digest, read_json, write_json


class Entry(Config):
    """A shard that is built; without a segment when it has no row."""

    segment: SegmentRecord | None
    codec: str | None = None


class Ledger:
    """What is finished of one build.

    Args:
        root: of the index folder.
        fingerprint: of the build.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = IndexFolder(root), fingerprint
        self._own = self.folder.building / fingerprint

    @classmethod
    def of(cls, root: Path, parts: Parts, method: str, shards: int) -> "Ledger":
        """The ledger of a build of these embeddings."""
        files = {
            number: {name: file.sha256 for name, file in sorted(part.files.items())}
            for number, part in sorted(parts.parts.items())
        }
        return cls(root, digest([files, parts.modality, method, shards])[:16])

    def codec(self) -> Codec | None:
        """The trained codec, if it is there."""
        try:
            codec = read_json(Codec, self._own / "codec.json")
            codec.file.verify(self.folder.codecs / codec.name)
        except DamagedError:
            return None
        return codec

    def keep_codec(self, codec: Codec) -> None:
        """Remember the trained codec."""
        write_json(self._own / "codec.json", codec)

    def shard(self, number: int, plan: SegmentPlan) -> ShardRecord:
        """Build a shard as one segment, or return the one that is built.

        Raises:
            DamagedError: an input is missing or changed.
        """
        path = self._own / f"shard_{number:05d}.json"
        codec = plan.codec.name if plan.codec else None
        built = self._whole(path)
        if built is None or built.codec != codec:
            built = Entry(segment=build_segment(self.folder.root, plan), codec=codec)
            write_json(path, built)
        return ShardRecord(segments=(built.segment,) if built.segment else ())

    def clear(self) -> None:
        """Forget it, after the commit."""
        storage.remove_folder(self.folder.building)

    def _whole(self, path: Path) -> Entry | None:
        try:
            entry = read_json(Entry, path)
            for file, record in self.folder.files(entry.segment) if entry.segment else ():
                record.verify(file)
        except DamagedError:
            return None
        return entry


def build_shard(root: Path, fingerprint: str, number: int, plan: SegmentPlan) -> ShardRecord:
    """`Ledger.shard`, as a function that workers can run."""
    return Ledger(root, fingerprint).shard(number, plan)
