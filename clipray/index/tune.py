"""`clipray index tune`: the cheapest settings that reach a recall, measured."""

from pathlib import Path

from pydantic import Field

from clipray.config import Config
from clipray.index.manifest import CurvePoint, IndexFolder, IndexManifest, SearchSettings
from clipray.index.tasks import workers_for
from clipray.index.tuning import tune as measure
from clipray.outputs import OutputPath
from clipray.report import DONE, FAILED, Report


class IndexTuneConfig(Config):
    """Choose nprobe, efSearch and the rescore factor for a recall@10 of text and image queries."""

    index: OutputPath = Field(description="index folder")
    recall: float = Field(0.95, gt=0, le=1, description="recall@10 to reach, against exact search")
    embeddings: Path | None = Field(
        None, description="embeddings folder with vectors of the other tower, to search with"
    )


class TuneReport(Report):
    """What was chosen, and the curve it was chosen from."""

    index: Path
    version: int
    reached: bool
    settings: SearchSettings
    curve: tuple[CurvePoint, ...]

    @property
    def exit_code(self) -> int:
        """0 when the recall is reached, else 1."""
        return DONE if self.reached else FAILED

    def summary(self) -> str:
        """One line, and the curve as a table."""
        if not self.curve:
            return f"{self.index}: every row is looked at; there is nothing to tune"
        chosen = self.settings
        lines = [
            f"{self.index}: version {self.version}, nprobe {chosen.nprobe}, efSearch "
            f"{chosen.ef_search}, rescore {chosen.rescore}"
            + ("" if self.reached else "; the recall was not reached"),
            "nprobe  efSearch  rescore  recall image  recall text  CPU ms a query",
        ]
        return "\n".join(lines + [_line(point) for point in self.curve])


def tune(config: IndexTuneConfig) -> TuneReport:
    """Measure, choose and commit.

    Raises:
        InputError: no index.
        MismatchError: embeddings of another model.
        DamagedError: a file that is missing or changed.
    """
    folder = IndexFolder(config.index.resolve())
    embeddings = config.embeddings.resolve() if config.embeddings else None
    base = folder.read()
    with workers_for(folder, base.placement, 0) as workers:
        measured = measure(base, config.recall, workers, embeddings)
    if measured.tuning is None:
        return TuneReport(
            index=folder.root,
            version=measured.version,
            reached=True,
            settings=measured.settings,
            curve=(),
        )

    def on_top(newest: IndexManifest) -> IndexManifest:
        return newest.next("tune", settings=measured.settings, tuning=measured.tuning)

    return TuneReport(
        index=folder.root,
        version=folder.amend(on_top).version,
        reached=measured.tuning.reached,
        settings=measured.settings,
        curve=measured.tuning.curve,
    )


def _line(point: CurvePoint) -> str:
    settings = point.settings
    ms = "" if point.ms is None else f"{point.ms:.3f}"
    recall = point.recall
    return (
        f"{settings.nprobe:6}  {settings.ef_search:8}  {settings.rescore:7}  "
        f"{recall['image']:12.4f}  {recall['text']:11.4f}  {ms:>14}"
    )
