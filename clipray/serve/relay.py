"""Hands the numbers of a process on to Ray, which shows those of a whole cluster to Prometheus.

Not each observation as it comes: one of a histogram costs 2 µs here and 10 µs in the agent of the
node (m), which then makes up its sum from the middles of the buckets. So buckets, sums and counts
go as counters, by difference, every few seconds.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.samples import Sample
from ray.serve import metrics

from clipray.serve.meter import Meter

PERIOD_S = 5.0  # below Ray's own 10 s: it forgets a gauge that was not set for two of them
NEXT_TO_NOTHING = 1e-30  # gone as soon as 1 is added


class Count(Protocol):
    """A counter of Ray."""

    def inc(self, value: float, tags: dict[str, str]) -> None:
        """Add more than 0."""
        ...


class Level(Protocol):
    """A gauge of Ray."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Replace the value."""
        ...


class Relay:
    """Hands a meter's numbers on; in a replica of Serve they carry its deployment and its name.

    Args:
        meter: of this process.
        count, level: make a metric of Ray from its name, a description and its tags.
    """

    def __init__(
        self,
        meter: Meter,
        count: Callable[..., Count] = metrics.Counter,
        level: Callable[..., Level] = metrics.Gauge,
    ) -> None:
        self._meter = meter
        self._make_count, self._make_level = count, level
        self._counts: dict[str, Count] = {}
        self._levels: dict[str, Level] = {}
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def start(self) -> None:
        """Hand on every few seconds, in a thread that ends with the process."""
        threading.Thread(target=self._run, name="clipray-relay", daemon=True).start()

    def hand_on(self) -> None:
        """Hand on what has changed since the last time, and all gauges."""
        for family in self._meter.registry.collect():
            for sample in family.samples:
                if family.type == "gauge":
                    self._hand_on_level(family, sample)
                elif not sample.name.endswith("_created"):
                    self._hand_on_count(family, sample)

    def _run(self) -> None:
        while True:
            self.hand_on()
            time.sleep(PERIOD_S)

    def _hand_on_level(self, family: Metric, sample: Sample) -> None:
        if sample.name not in self._levels:
            tags = tuple(sample.labels)
            self._levels[sample.name] = self._make_level(sample.name, family.documentation, tags)
        self._levels[sample.name].set(sample.value, dict(sample.labels))

    def _hand_on_count(self, family: Metric, sample: Sample) -> None:
        name = sample.name.removesuffix("_total")  # which Ray appends
        if name not in self._counts:
            tags = tuple(sample.labels)
            self._counts[name] = self._make_count(name, family.documentation, tags)
        series = sample.name, tuple(sample.labels.items())
        # Ray knows no series before its first increment, and takes none of 0. Prometheus needs the
        # empty buckets of a histogram, and the 0 that a rate begins with.
        more = sample.value - self._told.get(series, -NEXT_TO_NOTHING)
        if more > 0:
            self._counts[name].inc(more, dict(sample.labels))
            self._told[series] = sample.value
