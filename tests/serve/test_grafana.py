"""The dashboard asks for metrics that there are."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from clipray.serve.meter import Meter

DASHBOARD = Path(__file__).parents[2] / "serve_configs/grafana.json"
OF_RAY = {  # as Ray 2.60 exports them
    "ray_component_cpu_percentage",
    "ray_component_rss_bytes",
    "ray_serve_replica_processing_queries",
    "ray_serve_deployment_replica_healthy",
}
FUNCTIONS = {"sum", "min", "max", "rate", "increase", "scalar", "histogram_quantile", "by"} | {
    "label_replace"
}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def asked(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _exported():
    """Name in Ray → labels, of every metric of the service."""
    names = {}
    for family in Meter().registry.collect():
        ends = {"gauge": ("",), "counter": ("_total",)}
        for end in ends.get(family.type, ("_bucket_total", "_sum_total", "_count_total")):
            names[f"ray_{family.name}{end}"] = family.name
    return names


def _names(expression):
    return set(re.findall(r"\bray_\w+", re.sub(r'"[^"]*"', "", expression)))


def test_every_metric_asked_for_is_exported(asked):
    known = _exported().keys() | OF_RAY
    assert {name for expression in asked for name in _names(expression)} <= known
    assert all(_names(expression) for expression in asked)


def test_every_metric_of_the_service_is_shown(asked):
    exported = _exported()
    shown = {exported.get(name) for expression in asked for name in _names(expression)}
    assert set(exported.values()) <= shown


def test_expressions_are_whole(asked):
    for expression in asked:
        bare = re.sub(r'"[^"]*"', "", expression)
        for opened, closed in ("()", "{}", "[]"):
            assert bare.count(opened) == bare.count(closed), expression
        assert set(re.findall(r"([a-z_]+) ?\(", bare)) <= FUNCTIONS, expression


def test_counters_are_rates_and_gauges_are_not(asked):
    for expression in asked:
        for name, window in re.findall(r"(ray_\w+)\{[^}]*\}(\[\S+?\])?", expression):
            assert bool(window) is name.endswith("_total"), expression


def test_panels_have_their_own_number_title_and_place(dashboard):
    panels = dashboard["panels"]
    for field in ("id", "title"):
        assert len({panel[field] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_the_source_is_chosen_on_import(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    panels = dashboard["panels"]
    sources = [part["datasource"] for panel in panels for part in (panel, *panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    used = set(re.findall(r"\$(?!__|\d)\{?(\w+)", json.dumps(panels)))
    assert used == variables.keys()
