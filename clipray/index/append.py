"""`clipray index append`: add the rows of an embeddings folder; equal keys are replaced."""

from pathlib import Path

from pydantic import Field

from clipray.config import Config
from clipray.embeddings import Parts
from clipray.index.appending import append_parts
from clipray.index.compact import compact_where_needed
from clipray.index.manifest import IndexFolder, IndexManifest
from clipray.index.tasks import workers_for
from clipray.manifest import Modality
from clipray.outputs import OutputPath
from clipray.report import DONE, DONE_WITH_REJECTS, Report


class IndexAppendConfig(Config):
    """Add the rows of an embeddings folder; a key that is there already is replaced."""

    embeddings: Path = Field(description="folder that `clipray embed` wrote")
    index: OutputPath = Field(description="index folder")
    modality: Modality | None = Field(None, description="image or text; by default the index's")
    only_new: bool = Field(
        False, description="leave out parts of the embeddings that came in before"
    )
    compact: bool = Field(
        True, description="rewrite segments of which more than 20% is dead, or which are too many"
    )


class AppendReport(Report):
    """What an append did.

    Attributes:
        version: the newest now.
        rows: that came.
        replaced: how many of them took the place of an older row.
        total: live rows of the index now.
        rejected: rows left out, by reason.
    """

    index: Path
    version: int
    rows: int
    replaced: int
    total: int
    rejected: dict[str, int]

    @property
    def exit_code(self) -> int:
        """0 when every row is in the index, else 3."""
        return DONE_WITH_REJECTS if self.rejected else DONE

    def summary(self) -> str:
        """One line, and one for each reason."""
        lines = [
            f"{self.index}: version {self.version}, {self.rows} rows came, {self.replaced} of them "
            f"in the place of an older one; {self.total} rows now"
        ]
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        return "\n".join(lines)


def append(config: IndexAppendConfig) -> AppendReport:
    """Add rows in one version.

    Raises:
        InputError: no index, no embeddings, or no usable row.
        MismatchError: embeddings of another model or modality.
        DamagedError: a file that is missing or changed.
    """
    folder = IndexFolder(config.index.resolve())
    base = folder.read()
    parts = Parts.open(config.embeddings.resolve(), config.modality or base.modality)
    if config.only_new:
        names = parts.fingerprints()
        parts = parts.only(number for number in parts if names[number] not in base.parts)
    if not parts:
        return _nothing(base, folder)
    with folder.writing(), workers_for(folder, base.placement, parts.rows) as workers:
        done = append_parts(folder, parts, workers)
    manifest = done.manifest
    if config.compact:
        manifest = compact_where_needed(folder, manifest)
    return AppendReport(
        index=folder.root,
        version=manifest.version,
        rows=done.rows,
        replaced=done.replaced,
        total=manifest.rows,
        rejected=done.rejected,
    )


def _nothing(base: IndexManifest, folder: IndexFolder) -> AppendReport:
    return AppendReport(
        index=folder.root, version=base.version, rows=0, replaced=0, total=base.rows, rejected={}
    )
