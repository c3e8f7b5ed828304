"""Building, growing and thinning the index of a mode: `index_operation` new, append, remove.

Rows are embedded in this process into a folder beside the index, which is removed again; an index
that should be made by many machines is made by `clipray embed` and `clipray index build`.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType

from pydantic import Field

from clipray import storage
from clipray.account import Account, EmbedReport
from clipray.dataset import Found
from clipray.embeddings import EmbeddingSettings, EmbeddingsFolder, EmbeddingsManifest, Parts
from clipray.encoder_options import EncoderOptions
from clipray.errors import InputError, OutputError
from clipray.index.append import IndexAppendConfig, append
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder, IndexManifest
from clipray.index.remove import IndexRemoveConfig, remove
from clipray.index.tasks import workers_for
from clipray.manifest import Modality, write_json
from clipray.paddle.stopwatch import Stopwatch
from clipray.paddle.tower import Tower
from clipray.part import PartPlan, Workshop, embed_shard
from clipray.prepare import PartSettings
from clipray.report import DONE, DONE_WITH_REJECTS, Report

log = logging.getLogger(__name__)


class GalleryReport(Report):
    """What became of an index.

    Attributes:
        did: in words, how many rows came or went.
        total: live rows of the index now.
        rejected: lines left out, by reason.
        skipped: inputs not read, with the reason.
    """

    index: Path
    modality: Modality
    version: int
    method: str
    did: str
    total: int
    rejected: dict[str, int] = Field(default_factory=dict)
    skipped: dict[str, str] = Field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when every line is in the index, else 3."""
        return DONE_WITH_REJECTS if self.rejected or self.skipped else DONE

    def summary(self) -> str:
        """One line, and one for each reason and input left out."""
        lines = [
            f"{self.index}: version {self.version}, {self.method}, {self.did}; "
            f"{self.total} {self.modality} rows now"
        ]
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        lines += [f"skipped {path}: {reason}" for path, reason in sorted(self.skipped.items())]
        return "\n".join(lines)


@dataclass(frozen=True)
class Gallery:
    """An index that a mode builds.

    Attributes:
        folder: of the index.
        method: as the file says.
        batch_size: rows that the encoder sees at once.
        threads: that read and decode.
    """

    folder: IndexFolder
    modality: Modality
    method: str
    batch_size: int
    threads: int
    watch: Stopwatch

    def new(self, found: Found, tower: Tower, options: EncoderOptions) -> GalleryReport:
        """A new index; one that stood there stays as an older version.

        Raises:
            InputError: no row can be used.
            OutputError: the folder holds something else.
        """
        before = self._before()
        with self._embedded(found, tower, options) as done, self.watch.stage("index"):
            manifest, rejected = self._build(Parts.open(done.output, self.modality))
        if before:
            log.warning(
                "%s: version %d is a new index; the one that stood there, with %d rows, is version "
                "%d until `clipray index gc`",
                self.folder.root,
                manifest.version,
                before.rows,
                before.version,
            )
        return self._report(manifest, f"{manifest.rows} rows built", done, rejected)

    def append(self, found: Found, tower: Tower, options: EncoderOptions) -> GalleryReport:
        """More rows; a line that is there already is replaced.

        Raises:
            InputError: no index, or no row can be used.
            MismatchError: the tower is of another model than the index.
        """
        base = self.require()
        base.model.require(tower.encoder.identity, f"{self.folder.root}: the encoder")
        if self.method not in ("auto", base.method):
            log.warning(
                "IndexProcess.index_method: %s stays as it was built, with %s, not %s; "
                "index_operation new builds another",
                self.folder.root,
                base.method,
                self.method,
            )
        with self._embedded(found, tower, options) as done, self.watch.stage("index"):
            came = append(IndexAppendConfig(embeddings=done.output, index=self.folder.root))
        did = f"{came.rows} rows came, {came.replaced} of them in the place of an older one"
        return self._report(self.folder.read(came.version), did, done, came.rejected)

    def remove(self, lines: Sequence[str]) -> GalleryReport:
        """Fewer rows: those whose whole line is among `lines`.

        Raises:
            InputError: no index.
        """
        self.require()
        with self.watch.stage("index"):
            gone = remove(IndexRemoveConfig(index=self.folder.root, key=tuple(lines)))
        did = f"{gone.removed} rows removed"
        if gone.unknown:
            did += f", {gone.unknown} lines in no row, such as {', '.join(gone.examples)}"
        return self._report(self.folder.read(gone.version), did)

    def require(self) -> IndexManifest:
        """The index that is to be changed.

        Raises:
            InputError: there is none, or it holds another modality.
        """
        before = self._before()
        if before is None:
            raise InputError(
                f"{self.folder.root}: no index folder; index_operation: new builds one"
            )
        return before

    def _before(self) -> IndexManifest | None:
        folder = self.folder
        if not folder.versions():
            if folder.holds_others():
                raise OutputError(f"{folder.root}: holds something that is no index")
            return None
        found = folder.read()
        if found.modality != self.modality:
            raise OutputError(
                f"{folder.root}: holds an index of {found.modality}s, and mode "
                f"{self.modality}_index_build is for {self.modality}s; choose another folder"
            )
        return found

    @contextmanager
    def _embedded(
        self, found: Found, tower: Tower, options: EncoderOptions
    ) -> Iterator[EmbedReport]:
        """What the lines give, in an embeddings folder that is gone after the block."""
        folder = EmbeddingsFolder(storage.staging_path(self.folder.root))
        try:
            manifest = EmbeddingsManifest(
                model=tower.encoder.identity,
                source=tower.source,
                settings=EmbeddingSettings(modality=self.modality, precision=options.precision),
                shards=tuple(shard.name for shard in found.shards),
            )
            write_json(folder.manifest, manifest)
            done = self._embed(found, tower, folder)
            decode, encode = (done.seconds.get(stage, 0.0) for stage in ("decode", "encode"))
            self.watch.add({"preprocess": decode, "encode": encode})
            if not done.rows:
                told = {**done.rejected, **done.skipped} or "nothing was there"
                raise InputError(f"no line can be used: {told}")
            yield done
        finally:
            storage.remove_folder(folder.root)

    def _embed(self, found: Found, tower: Tower, folder: EmbeddingsFolder) -> EmbedReport:
        settings = PartSettings((self.modality,), self.batch_size, self.threads)
        shop, account = Workshop(settings, folder, tower.encoder), Account()
        for number, shard in enumerate(found.shards):
            account.add(embed_shard(PartPlan(number, shard), shop))
        return account.report(folder, found.skipped)

    def _build(self, parts: Parts) -> tuple[IndexManifest, dict[str, int]]:
        """Build and commit, on top of what is there by then; also rows left out, by reason."""
        folder, options = self.folder, IndexOptions(method=self.method)
        with folder.writing(), workers_for(folder, "shared", parts.rows) as workers:
            made = construct(parts, folder, options, workers)
            first = not folder.versions() and folder.commit(made.manifest)
            committed = made.manifest if first else folder.amend(partial(_on_top, made.manifest))
            made.ledger.clear()
        return committed, made.rejected

    def _report(
        self,
        manifest: IndexManifest,
        did: str,
        done: EmbedReport | None = None,
        rejected: Mapping[str, int] = MappingProxyType({}),
    ) -> GalleryReport:
        return GalleryReport(
            index=self.folder.root,
            modality=self.modality,
            version=manifest.version,
            method=manifest.method,
            did=did,
            total=manifest.rows,
            rejected=dict(Counter(done.rejected if done else {}) + Counter(rejected)),
            skipped=done.skipped if done else {},
        )


def _on_top(made: IndexManifest, newest: IndexManifest) -> IndexManifest:
    """The new index as the version after the newest one."""
    changes = {"version": newest.version + 1, "parent": newest.version}
    return made.model_copy(update={**changes, "created": datetime.now(UTC)})
