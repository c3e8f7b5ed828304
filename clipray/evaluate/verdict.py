"""What an evaluation found: values that are shown to people, written as JSON and drawn."""

from pathlib import Path

from pydantic import Field

from clipray.config import Config
from clipray.index.manifest import SearchSettings
from clipray.report import DONE, DONE_WITH_REJECTS, Report

Recalls = dict[str, dict[str, float]]  # kind of query → recall@k → value


class Latency(Config):
    """Wall milliseconds of one query, asked alone."""

    p50_ms: float
    p95_ms: float


class Point(Config):
    """What one choice of search settings gives."""

    settings: SearchSettings
    chosen: bool = Field(description="whether the index is set so")
    recall: dict[str, float] = Field(description="by kind of query")
    ms: dict[str, float] = Field(description="median of a query alone, by kind")


class IndexRecall(Config):
    """Recall of an index against exact search over its own vectors."""

    index: str
    version: int
    rows: int
    method: str
    settings: SearchSettings
    queries: dict[str, int] = Field(description="number by kind")
    recall: Recalls
    latency: dict[str, Latency]
    curve_k: int
    curve: tuple[Point, ...] = Field((), description="empty where every row is looked at")


class ServiceRecall(Config):
    """The same of a running service."""

    url: str
    name: str
    version: int
    queries: dict[str, int]
    recall: Recalls
    latency: dict[str, Latency] = Field(description="over HTTP; of texts with their encoding")
    searched: float = Field(description="least share of the rows that a reply was computed from")
    degraded: int = Field(description="replies from a part of the index")
    strayed: int = Field(description="replies from another version")


class Threshold(Config):
    """A smallest cosine, and what it lets pass."""

    score: float
    pairs: float = Field(description="share of the pairs at or above it")
    others: float = Field(description="share of the non-pairs at or above it")


class Scores(Config):
    """Cosines of pairs and of non-pairs."""

    pairs: int
    others: int
    edges: tuple[float, ...] = Field(description="of the bins, one more than there are")
    pairs_shares: tuple[float, ...] = Field(description="by bin, summing to 1")
    others_shares: tuple[float, ...] = Field(description="by bin, summing to 1")
    best_f1: Threshold = Field(description="where F1 is largest among as many pairs as non-pairs")
    one_percent: Threshold = Field(description="the lowest that lets 1 % of the non-pairs pass")


class HardPair(Config):
    """A caption that finds its own picture late, and the best other picture."""

    caption: str
    key: str
    rank: int = Field(description="of its own picture, counted from 1")
    score: float
    rival: str = Field(description="key of the best other picture")
    rival_score: float


class EvaluateReport(Report):
    """What was measured; what was not asked for is empty.

    Attributes:
        queries: captions that `metrics` is over.
        metrics: how often a row's caption finds that row, by open_clip's names.
        retrieval: of captioned data, by open_clip's names.
        rejected: samples of the data that were left out, with the reason.
        notes: what could not be measured, and why.
        versions: of what took part.
        report: folder of `report.json` and `report.html`.
    """

    queries: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    index: IndexRecall | None = None
    service: ServiceRecall | None = None
    retrieval: dict[str, float] = Field(default_factory=dict)
    zero_shot: dict[str, float] = Field(default_factory=dict)
    scores: Scores | None = None
    hardest: tuple[HardPair, ...] = ()
    rejected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    report: Path | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 when samples were left out."""
        return DONE_WITH_REJECTS if self.rejected else DONE

    def summary(self) -> str:
        """One line a metric."""
        lines = [f"{self.queries} captions", *_lines(self.metrics)] if self.metrics else []
        lines += _told(self.index) if self.index else []
        lines += _told(self.service) if self.service else []
        lines += _lines(self.retrieval) + _lines(self.zero_shot)
        if self.scores:
            lines += [
                _threshold("threshold of the best F1", self.scores.best_f1),
                _threshold("threshold of 1 % false matches", self.scores.one_percent),
            ]
        lines += [f"note: {note}" for note in self.notes]
        if self.rejected:
            lines.append(f"{len(self.rejected)} samples left out, first {self.rejected[0]}")
        return "\n".join(lines + ([f"report: {self.report}/report.html"] if self.report else []))


def _lines(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in metrics.items()]


def _told(found: IndexRecall | ServiceRecall) -> list[str]:
    where = found.url if isinstance(found, ServiceRecall) else found.index
    lines = [f"{where}, version {found.version}, against exact search:"]
    for kind, recall in found.recall.items():
        told = "  ".join(f"{name} {value:.4f}" for name, value in recall.items())
        latency = found.latency[kind]
        lines.append(
            f"  {kind}-like, {found.queries[kind]} queries: {told}  "
            f"p50 {latency.p50_ms:.2f} ms  p95 {latency.p95_ms:.2f} ms"
        )
    if isinstance(found, ServiceRecall):
        lines.append(f"  rows searched {found.searched:.4f}, degraded replies {found.degraded}")
    return lines


def _threshold(name: str, found: Threshold) -> str:
    return (
        f"{name}: {found.score:.4f} (lets pass {found.pairs:.1%} of the pairs, "
        f"{found.others:.1%} of the non-pairs)"
    )
