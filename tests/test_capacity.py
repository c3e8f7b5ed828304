"""What `clipray plan` says is what was measured, and what an index really takes."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from clipray.capacity import costs
from clipray.capacity.layout import Load, Node, lay_out
from clipray.capacity.needs import Bytes, Collection, build_seconds, search_ms
from clipray.capacity.plan import PlanConfig, plan
from clipray.capacity.report import figure, size
from clipray.cli import main
from clipray.errors import ConfigError
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests/benchmarks/results"
NODE = Node(memory=64 * 10**9, disk=500 * 10**9, cpus=16)
LOAD = Load(qps=10, texts=0, replicas=1, in_memory=True)
METHODS = ("Flat", "HNSW32", "IVF", "auto")


def collection(rows, **changes):
    made = Collection(
        rows=rows, dim=512, row_bytes=200, method="auto", recall=0.95, shards=1
    )  # fmt: skip
    return replace(made, **changes)


def measured():
    """The table of building and searching, a mapping a line."""
    text = (RESULTS / "capacity_x86_64_2026-11-26.md").read_text(encoding="utf-8")
    names, _, *lines = [line.strip("|").split("|") for line in text.splitlines() if "|" in line]
    cells = [[cell.strip() for cell in line] for line in (names, *lines)]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[1:]]


PLAIN = [row for row in measured() if row["method"] in METHODS]


def of_row(row):
    return collection(
        int(row["rows"]), method=row["method"], shards=int(row["shards"]), row_bytes=7
    )


# The table of costs


def test_every_figure_stands_in_the_table_that_it_names():
    figures = [value for value in vars(costs).values() if isinstance(value, costs.Measured)]
    assert len(figures) > 8
    for one in figures:
        assert f"{one.value:g}" in (RESULTS / one.source).read_text(encoding="utf-8"), one


def test_every_point_of_a_curve_stands_in_the_table():
    kinds = {"Flat": "Flat", "HNSW32": "HNSW32", "IVF": "IVF", "PQ": "auto"}
    for curves, column in ((costs.BATCH_MS, "batch_ms_"), (costs.SINGLE_MS, "ms_")):
        for family, by_recall in curves.items():
            for recall, curve in by_recall.items():
                found = {
                    int(row["rows"]): float(row[column + recall[2:]])
                    for row in PLAIN
                    if row["method"] == kinds[family] and row["shards"] == "1"
                }
                assert found == dict(curve.points)


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: f"{row['method']}-{row['rows']}")
def test_what_was_measured_is_predicted(row):
    wanted = of_row(row)
    known = sum(float(row[name]) for name in ("vectors", "index", "ids", "rows_arrow", "codec"))
    assert Bytes.of(wanted).total / wanted.rows == pytest.approx(known, rel=0.03)
    assert sum(build_seconds(wanted)) == pytest.approx(float(row["build_s"]), rel=0.35, abs=0.1)


def test_several_shards_cost_about_what_was_measured():
    (row,) = [row for row in PLAIN if row["shards"] == "4"]
    assert search_ms(of_row(row)) == pytest.approx(float(row["batch_ms_95"]), rel=0.6)


def test_a_curve_goes_through_its_points_and_on():
    curve = costs.Curve(((100, 1.0), (200, 2.0), (400, 8.0)))
    assert [curve.at(rows) for rows in (100, 200, 400)] == pytest.approx([1, 2, 8])
    assert curve.at(800) == pytest.approx(8 * 2**1.5)  # as from the first point to the last
    assert curve.at(50) == pytest.approx(0.5**1.5)
    assert curve.reaches(400)
    assert not curve.reaches(401)


# What an index really takes


@pytest.mark.parametrize(
    ("rows", "method", "dim", "shards"),
    [(20_000, "auto", 512, 1), (50_000, "auto", 512, 1), (20_000, "HNSW32", 64, 2),
     (20_000, "IVF", 64, 2), (50_000, "auto", 64, 2)],
)  # fmt: skip
def test_the_disk_is_what_a_build_leaves(tmp_path, rows, method, dim, shards):
    parts = cut_parts(random_halves(rows, dim), 4)
    write_embeddings(tmp_path / "embeddings", parts)
    build_index(tmp_path / "index", tmp_path / "embeddings", method, shards)
    files = [path for path in (tmp_path / "index").rglob("*") if path.is_file()]
    wanted = collection(rows, method=method, dim=dim, shards=shards, row_bytes=len("s/10000"))
    assert Bytes.of(wanted).total == pytest.approx(
        sum(path.stat().st_size for path in files), rel=0.15
    )


# The layout


def test_more_rows_take_more_of_everything():
    report = plan(PlanConfig(rows=3_000_000))
    for name in ("rows", "nodes", "disk_gb", "embed_hours", "build_cpu_hours", "cores"):
        values = [getattr(step, name) for step in report.growth]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_shards_fall_evenly_on_nodes_that_hold_them():
    laid = lay_out(collection(500_000_000, shards=50), NODE, LOAD)
    assert laid.wanted.shards % laid.groups == 0
    assert laid.wanted.each <= 10_000_000
    assert laid.memory / laid.groups < 0.8 * NODE.memory
    assert laid.bytes.total / laid.groups < 0.8 * NODE.disk


@pytest.mark.parametrize(
    ("node", "load", "limit"),
    [
        (replace(NODE, disk=10**12), LOAD, "memory"),
        (replace(NODE, disk=10**10), replace(LOAD, in_memory=False), "disk"),
        (NODE, replace(LOAD, qps=100_000), "CPUs"),
    ],
)
def test_it_is_said_what_asks_for_the_nodes(node, load, limit):
    laid = lay_out(collection(200_000_000, shards=20), node, load)
    assert laid.limit == limit
    assert laid.groups > 1


def test_copies_double_the_nodes_and_not_the_work():
    once, twice = (plan(PlanConfig(rows=100_000_000, replicas=n)) for n in (1, 2))
    assert twice.serve.nodes == 2 * once.serve.nodes
    assert twice.index == once.index.model_copy(update={"build_hours": twice.index.build_hours})
    assert twice.serve.cores == pytest.approx(once.serve.cores)


def test_gpu_hours_follow_from_the_figure_given():
    report = plan(PlanConfig(rows=3_600_000, gpus=2, gpu_images_per_s=1000))
    assert (report.embed.gpu_hours, report.embed.hours) == pytest.approx((1, 0.5))
    assert report.embed.cpu_hours is None
    assert any("GPU" in told for told in report.extrapolated)


def test_training_is_planned_where_its_speed_is_given():
    config = PlanConfig(rows=3_600_000, gpus=4, train_epochs=2, train_pairs_per_s=500)
    report = plan(config)
    assert report.train is not None
    assert (report.train.gpu_hours, report.train.hours) == pytest.approx((4, 1))
    assert "train " in report.summary()


def test_a_size_that_was_measured_is_not_called_extrapolated():
    assert plan(PlanConfig(rows=200_000)).extrapolated == ()
    told = plan(PlanConfig(rows=5_000_000_000, dim=768, vectors="disk", recall=0.995)).extrapolated
    for word in ("search in shards", "building more", "dim", "groups", "disk", "recall"):
        assert any(word in line for line in told), word


def test_nodes_too_small_for_anything_are_refused():
    with pytest.raises(ConfigError, match="larger nodes"):
        plan(PlanConfig(rows=1000, node_memory=10**9))


def test_the_command_prints_a_table_or_json(capsys):
    assert main(["plan", "--rows", "1000000", "--node-memory", "32GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 1_000_000
    assert found["serve"]["nodes"] == 2


# What the documentation shows


def examples():
    text = (ROOT / "cluster/capacity.md").read_text(encoding="utf-8")
    return re.findall(r"```sh\nclipray (.*?)\n```\n\n```\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize(("command", "shown"), examples())
def test_the_examples_are_what_the_command_prints(capsys, command, shown):
    assert main(shlex.split(command.replace("\\\n", " "))) == 0
    assert capsys.readouterr().out == shown


def test_there_are_examples_of_three_sizes():
    sizes = {shlex.split(command)[2] for command, _ in examples()}
    assert {"1000000", "100000000", "5000000000"} <= sizes


def per_million(method):
    """A line of the table in cluster/README.md."""
    wanted = collection(1_000_000, method=method)
    taken = Bytes.of(wanted)
    cells = [size(taken.vectors / 1e9), size(taken.index / 1e9), size(taken.rows / 1e9)]
    cells += [figure(sum(build_seconds(wanted)) / 3600), figure(search_ms(wanted))]
    return f"| `{method}` | {' | '.join(cells)} |"


def test_the_table_of_a_million_is_what_the_planner_computes():
    text = (ROOT / "cluster/README.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert per_million(method) in text
    hours = costs.EMBED_MS.value * 1e6 / 3.6e6
    assert f"{figure(hours)} CPU hours" in text
