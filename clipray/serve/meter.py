"""What a process of the service counts and times, as Prometheus reads it.

Ray is not known here; `relay` hands the same numbers on to it.
"""

from typing import Literal, TypeVar, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from clipray.errors import ClipRayError, plain
from clipray.matches import Coverage

Stage = Literal["parse", "encode", "queue", "search", "merge", "rows", "total"]
Batch = Literal["queries", "texts", "images"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_ROUTES = 64
OTHER = "other"

MetricT = TypeVar("MetricT", Counter, Gauge, Histogram)


class Meter:
    """The numbers of one process; every method takes about a microsecond, from any thread.

    Labels are few: routes are templates such as `/images/{index}/{row_id}`, slots are those of the
    catalog, types of errors are ours.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stages = _by_label(
            self._histogram("stage_seconds", "Seconds of a stage of a query.", "stage", SECONDS),
            get_args(Stage),
        )
        self._batches = _by_label(
            self._histogram("batch_size", "What went together in one call.", "kind", SIZES),
            get_args(Batch),
        )
        self._requests = self._counter("requests", "HTTP requests.", "route", "status")
        self._routes: set[str] = {OTHER}
        self._errors = self._counter("errors", "Queries and requests that failed.", "type")
        self._replies = self._counter("replies", "Replies to queries.", "slot")
        self._degraded = self._counter("degraded_replies", "Those of a part of the rows.", "slot")
        self._coverage = self._gauge("coverage_ratio", "Rows searched / all, of the last reply.")
        self._text_cache = self._counter("text_cache", "Vectors of texts asked for.", "result")
        self._versions = self._gauge("index_version", "Version that is served.")
        self._switch_failures = self._counter(
            "switch_failures", "New versions that could not go live.", "slot"
        )
        self._of_slots: dict[str, tuple[Counter, Counter, Gauge]] = {}
        self._hit, self._missed = map(self._text_cache.labels, ("hit", "miss"))

    def stage(self, name: Stage, seconds: float) -> None:
        """A stage of a query has taken this long."""
        self._stages[name].observe(seconds)

    def batch(self, kind: Batch, size: int) -> None:
        """So many queries went to the groups, or texts or images to the model, in one call."""
        self._batches[kind].observe(size)

    def request(self, route: str, status: int) -> None:
        """A request was answered; `route` is the template that it matched."""
        if route not in self._routes:
            if len(self._routes) > MAX_ROUTES:
                route = OTHER
            self._routes.add(route)
        self._requests.labels(route, str(status)).inc()

    def failed(self, error: BaseException) -> None:
        """A query or a request has ended with an error."""
        cause = plain(error)
        kind = type(cause).__name__ if isinstance(cause, ClipRayError) else OTHER
        self._errors.labels(kind).inc()

    def reply(self, slot: str, coverage: Coverage) -> None:
        """A query was answered from so much of a slot."""
        replies, degraded, ratio = self._of_slots.get(slot) or self._of_slot(slot)
        replies.inc()
        if coverage.degraded:
            degraded.inc()
        ratio.set(coverage.rows_searched / coverage.rows_total if coverage.rows_total else 1.0)

    def text_cache(self, hits: int, misses: int) -> None:
        """So many vectors of texts were at hand, and so many had to be made."""
        self._hit.inc(hits)
        self._missed.inc(misses)

    def version(self, slot: str, number: int) -> None:
        """This version of an index is served from now on."""
        for count in (self._replies, self._degraded, self._switch_failures):
            count.labels(slot)  # is there from the start, as 0
        self._versions.labels(slot).set(number)

    def switch_failed(self, slot: str) -> None:
        """A newer version of an index could not go live."""
        self._switch_failures.labels(slot).inc()

    def exposition(self) -> bytes:
        """All numbers in the text format of Prometheus, which `CONTENT_TYPE` names."""
        return generate_latest(self.registry)

    def _of_slot(self, slot: str) -> tuple[Counter, Counter, Gauge]:
        metrics = (
            self._replies.labels(slot),
            self._degraded.labels(slot),
            self._coverage.labels(slot),
        )
        return self._of_slots.setdefault(slot, metrics)

    def _histogram(self, name: str, told: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"clipray_{name}", told, [label], buckets=buckets, registry=self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"clipray_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(f"clipray_{name}", told, ["slot"], registry=self.registry)


def _by_label(metric: MetricT, values: tuple[str, ...]) -> dict[str, MetricT]:
    return {value: metric.labels(value) for value in values}
