"""The account of an embedding job: what went in, what came out, and where the time went.

It is made of the reports of the parts and of their done-markers. Who embeds is not known here.
"""

import logging
from collections import Counter, defaultdict
from pathlib import Path

from clipray.embeddings import EmbeddingsFolder
from clipray.part import PartReport
from clipray.prepare import DUPLICATE
from clipray.report import DONE, DONE_WITH_REJECTS, Report

log = logging.getLogger(__name__)


class EmbedReport(Report):
    """What a run did, and what its folder holds now.

    Attributes:
        output: the embeddings folder.
        samples: in all finished shards; rows + rejected + filtered, always.
        rows: samples in the parts.
        rejected: samples left out of them, by reason; listed in the folder `rejected/`.
        filtered: samples that the filter did not select.
        skipped: inputs not read, with the reason: unfinished or damaged shards.
        embedded: rows that this run added; the others were there.
        images_per_s: rows a second of this run, of all actors together, from the first shard to
            the last; the start of Ray is left out.
        encoder_busy: share of the actors' time in which the encoder ran.
        seconds: where the actors' time went, by stage: list (and fetch), wait (of the encoder for
            samples), encode, write; `decode` is that of the threads beside it.
    """

    output: Path
    samples: int
    rows: int
    rejected: dict[str, int]
    filtered: int
    skipped: dict[str, str]
    embedded: int
    images_per_s: float
    encoder_busy: float
    seconds: dict[str, float]

    @property
    def exit_code(self) -> int:
        """0 when every sample of every input is in a part or was not selected, else 3."""
        return DONE_WITH_REJECTS if self.rejected or self.skipped else DONE

    @property
    def duplicates(self) -> int:
        """Samples left out because their key came again."""
        return self.rejected.get(DUPLICATE, 0)

    def summary(self) -> str:
        """The account of all samples, the speed, then a line for each reason and input left out."""
        left = sum(self.rejected.values())
        lines = [
            f"{self.output}: {self.samples} samples = {self.rows} rows + {left} rejected "
            f"({self.duplicates} of them duplicates) + {self.filtered} filtered out"
        ]
        if self.embedded:
            spent = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            lines.append(
                f"embedded now: {self.embedded} at {self.images_per_s:.0f} samples/s, encoder "
                f"busy {self.encoder_busy:.0%} of the time; seconds: {spent}"
            )
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        if self.rejected:
            lines.append(f"rejected samples are listed in {self.output / 'rejected'}")
        lines += [f"skipped {path}: {reason}" for path, reason in sorted(self.skipped.items())]
        return "\n".join(lines)


class Account:
    """What the reports of a run add up to."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._damaged: dict[str, str] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._spans: dict[str, tuple[float, float]] = {}

    def add(self, report: PartReport) -> None:
        """One more shard."""
        if report.damage:
            log.warning("%s: quarantined, %s", report.path, report.damage)
            self._damaged[report.path] = report.damage
        rejected = sum(report.rejected.values())
        self.counts.update(samples=report.samples, rejected=rejected)
        if report.kept or report.damage:
            return
        self.counts.update(embedded=report.rows)
        for name, seconds in report.seconds.items():
            self._seconds[name] += seconds
        began, ended = self._spans.get(report.actor, (report.began, report.ended))
        self._spans[report.actor] = min(began, report.began), max(ended, report.ended)

    def report(self, folder: EmbeddingsFolder, skipped: dict[str, str]) -> EmbedReport:
        """The run, and the sums over all finished parts of the folder."""
        rejected, sums = Counter[str](), Counter[str]()
        for _, part in folder.markers():
            rejected.update(part.rejected)
            sums.update(samples=part.samples, rows=part.rows, filtered=part.filtered)
        return EmbedReport(
            output=folder.root,
            samples=sums["samples"],
            rows=sums["rows"],
            rejected=dict(rejected),
            filtered=sums["filtered"],
            skipped=skipped | self._damaged,
            embedded=self.counts["embedded"],
            images_per_s=self.counts["embedded"] / max(1e-9, self._wall()),
            encoder_busy=self._seconds.get("encode", 0.0) / max(1e-9, self._actor_seconds()),
            seconds={name: round(value, 3) for name, value in self._seconds.items()},
        )

    def _wall(self) -> float:
        spans = self._spans.values()
        began = min((began for began, _ in spans), default=0.0)
        return max((ended for _, ended in spans), default=0.0) - began

    def _actor_seconds(self) -> float:
        return sum(ended - began for began, ended in self._spans.values())
