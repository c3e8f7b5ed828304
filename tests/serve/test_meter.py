"""What a process counts, how Prometheus reads it, and how it is handed on to Ray."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayTaskError

from clipray.errors import OverloadedError
from clipray.matches import Coverage
from clipray.serve.meter import CONTENT_TYPE, MAX_ROUTES, Meter
from clipray.serve.relay import Relay

PARTIAL = Coverage(4, 3, 30, 40, (1,))
WHOLE = Coverage(4, 4, 40, 40)


def _read(meter):
    families = text_string_to_metric_families(meter.exposition().decode())
    samples = (sample for family in families for sample in family.samples)
    return {_series(sample.name, sample.labels): sample.value for sample in samples}


def _series(name, labels):
    """The bound of a bucket is last."""
    return (name, *[labels[label] for label in sorted(labels, key="le".__eq__)])


def test_stages_and_batches_are_histograms():
    meter = Meter()
    for seconds in (0.02, 0.04, 3.0):
        meter.stage("encode", seconds)
    meter.batch("queries", 16)
    told = _read(meter)
    assert told["clipray_stage_seconds_bucket", "encode", "0.025"] == 1
    assert told["clipray_stage_seconds_bucket", "encode", "+Inf"] == 3
    assert told["clipray_stage_seconds_sum", "encode"] == pytest.approx(3.06)
    assert told["clipray_stage_seconds_count", "merge"] == 0
    assert told["clipray_batch_size_bucket", "queries", "8.0"] == 0
    assert told["clipray_batch_size_bucket", "queries", "16.0"] == 1


def test_a_partial_reply_shows_in_coverage_until_the_next():
    meter = Meter()
    meter.version("a/image", 7)
    told = _read(meter)
    assert told["clipray_index_version", "a/image"] == 7
    assert told["clipray_degraded_replies_total", "a/image"] == 0
    assert ("clipray_coverage_ratio", "a/image") not in told
    meter.reply("a/image", PARTIAL)
    assert _read(meter)["clipray_coverage_ratio", "a/image"] == 0.75
    meter.reply("a/image", WHOLE)
    meter.reply("b/image", Coverage())
    told = _read(meter)
    assert told["clipray_coverage_ratio", "a/image"] == 1
    assert told["clipray_replies_total", "a/image"] == 2
    assert told["clipray_degraded_replies_total", "a/image"] == 1
    assert told["clipray_coverage_ratio", "b/image"] == 1


def test_errors_are_told_by_type_also_where_ray_wraps_them():
    meter = Meter()
    meter.failed(OverloadedError("x"))
    meter.failed(RayTaskError("f", "traceback", OverloadedError("x")))
    meter.failed(KeyError("anything"))
    told = _read(meter)
    assert told["clipray_errors_total", "OverloadedError"] == 2
    assert told["clipray_errors_total", "other"] == 1


def test_routes_are_bounded_in_number():
    meter = Meter()
    for number in range(10 * MAX_ROUTES):
        meter.request(f"/{number}", 404)
    meter.request("/0", 200)
    requests = {key[1:]: value for key, value in _read(meter).items() if "requests_total" in key[0]}
    assert len(requests) <= MAX_ROUTES + 2
    assert requests["/0", "200"] == requests["/0", "404"] == 1
    assert sum(requests.values()) == 10 * MAX_ROUTES + 1


def test_cache_and_failed_switches_are_counted():
    meter = Meter()
    meter.text_cache(hits=3, misses=1)
    meter.switch_failed("a/image")
    told = _read(meter)
    assert told["clipray_text_cache_total", "hit"] == 3
    assert told["clipray_text_cache_total", "miss"] == 1
    assert told["clipray_switch_failures_total", "a/image"] == 1
    assert CONTENT_TYPE.startswith("text/plain")


def test_two_meters_of_a_process_know_nothing_of_each_other():
    first, second = Meter(), Meter()
    first.request("/search", 200)
    assert ("clipray_requests_total", "/search", "200") not in _read(second)


def test_a_query_costs_no_time():
    meter = Meter()
    began = time.thread_time()
    for _ in range(1000):
        meter.stage("total", 0.02)
        meter.reply("a/image", WHOLE)
        meter.request("/search", 200)
    assert time.thread_time() - began < 0.1  # 4 ms where nobody else computes


class Ray:
    """Metrics of Ray that add up what they are told, and are as strict."""

    def __init__(self):
        self.values = {}

    def metric(self, name, told, tag_keys):
        assert told
        return _Metric(self.values, name, tag_keys)


class _Metric:
    def __init__(self, values, name, tag_keys):
        self._values, self._name, self._tag_keys = values, name, tag_keys

    def inc(self, value, tags):
        assert value > 0
        series = self._series(tags)
        self._values[series] = self._values.get(series, 0) + value

    def set(self, value, tags):
        self._values[self._series(tags)] = value

    def _series(self, tags):
        assert tuple(tags) == self._tag_keys
        return (self._name, *tags.values())


@pytest.fixture
def ray():
    return Ray()


def test_ray_gets_what_the_process_counts(ray):
    meter = Meter()
    relay = Relay(meter, ray.metric, ray.metric)
    for _ in range(3):
        meter.stage("encode", 0.02)
        meter.request("/search", 200)
        meter.reply("a/image", PARTIAL)
        relay.hand_on()
    relay.hand_on()
    assert ray.values["clipray_stage_seconds_bucket", "encode", "0.025"] == 3
    assert ray.values["clipray_stage_seconds_sum", "encode"] == pytest.approx(0.06)
    assert ray.values["clipray_stage_seconds_count", "encode"] == 3
    assert ray.values["clipray_requests", "/search", "200"] == 3  # Ray appends _total
    assert ray.values["clipray_coverage_ratio", "a/image"] == 0.75


def test_ray_knows_empty_buckets_and_counters_at_zero(ray):
    meter = Meter()
    meter.version("a/image", 1)
    Relay(meter, ray.metric, ray.metric).hand_on()
    assert ray.values["clipray_stage_seconds_bucket", "encode", "0.0005"] == pytest.approx(0)
    assert ray.values["clipray_degraded_replies", "a/image"] == pytest.approx(0)
    assert not any("_created" in series[0] for series in ray.values)


def test_gauges_are_told_again_for_ray_forgets_them(ray):
    meter = Meter()
    meter.version("a/image", 7)
    relay = Relay(meter, ray.metric, ray.metric)
    relay.hand_on()
    ray.values.clear()
    relay.hand_on()
    assert ray.values == {("clipray_index_version", "a/image"): 7}
