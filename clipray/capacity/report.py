"""What `clipray plan` gives back, for people and as JSON."""

from clipray.config import Config
from clipray.report import Report


class JobPlan(Config):
    """A job over all pairs: work in CPU or GPU hours, hours on the clock, and what it leaves."""

    cpu_hours: float | None = None
    gpu_hours: float | None = None
    hours: float
    disk_gb: float | None = None

    def told(self) -> str:
        """One line."""
        kind = "CPU" if self.gpu_hours is None else "GPU"
        work = self.cpu_hours if self.gpu_hours is None else self.gpu_hours
        left = "" if self.disk_gb is None else f", leaves {size(self.disk_gb)}"
        return f"{figure(work or 0)} {kind} hours, {figure(self.hours)} h on the clock{left}"


class IndexPlan(Config):
    """One copy of the index, and the making of it.

    Attributes:
        training_hours: of the quantizer, in one task, part of the CPU hours.
        build_hours: on the clock, a CPU for each shard.
        task_memory_gb: memory of a task that builds a shard.
        append_cpu_s: CPU seconds of appending 1,000 embedded rows.
    """

    method: str
    shards: int
    vectors_gb: float
    index_gb: float
    rows_gb: float
    disk_gb: float
    build_cpu_hours: float
    training_hours: float
    build_hours: float
    task_memory_gb: float
    append_cpu_s: float


class ServePlan(Config):
    """The service.

    Attributes:
        groups: of shards, each on a node; a copy of the index is one replica of all groups.
        nodes: for all copies.
        limit: what asks for so many: memory, disk or CPUs.
        cores: CPUs that all queries take, of all nodes together.
        search_ms: that one query alone spends in a group, the slowest part of it.
    """

    groups: int
    shards_a_group: int
    nodes: int
    limit: str
    memory_gb_a_node: float
    disk_gb_a_node: float
    memory_gb: float
    disk_gb: float
    cores: float
    search_cores: float
    service_cores: float
    encoder_cores: float
    search_ms: float


class GrowthStep(Config):
    """The same for more rows; work is in CPU hours, or GPU hours where GPUs embed."""

    rows: int
    method: str
    nodes: int
    disk_gb: float
    embed_hours: float
    build_cpu_hours: float
    cores: float

    def told(self) -> str:
        """A line of the table."""
        return (
            f"{self.rows:>15,}  {self.nodes:>5}  {size(self.disk_gb):>9}  "
            f"{figure(self.embed_hours):>11}  {figure(self.build_cpu_hours):>11}  "
            f"{figure(self.cores):>9}  {self.method}"
        )


class PlanReport(Report):
    """What a collection takes.

    Attributes:
        growth: for these rows, and for 10 and 100 times as many.
        extrapolated: what was not measured at this size, in words.
        measured: the date of the figures.
    """

    rows: int
    dim: int
    embed: JobPlan
    train: JobPlan | None
    index: IndexPlan
    serve: ServePlan
    growth: tuple[GrowthStep, ...]
    extrapolated: tuple[str, ...]
    measured: str

    def summary(self) -> str:
        """A line for each step, and a table of growth."""
        lines = [f"{self.rows:,} pairs, {self.dim} dimensions", f"embed   {self.embed.told()}"]
        lines += [f"train   {self.train.told()}"] if self.train else []
        lines += [*self._index(), *self._serve(), "", *self._growth(), ""]
        lines += [f"extrapolated: {told}" for told in self.extrapolated]
        lines.append(f"measured {self.measured} on CPUs: clipray/capacity/costs.py")
        return "\n".join(lines)

    def _index(self) -> list[str]:
        index = self.index
        return [
            f"index   {index.method}, {many(index.shards, 'shard')}, {size(index.disk_gb)}: "
            f"vectors {size(index.vectors_gb)}, Faiss {size(index.index_gb)}, "
            f"rows {size(index.rows_gb)}",
            f"build   {figure(index.build_cpu_hours)} CPU hours, {figure(index.training_hours)} of "
            f"them training in one task; {figure(index.build_hours)} h on the clock; "
            f"{size(index.task_memory_gb)} of memory a task",
            f"append  {figure(index.append_cpu_s)} CPU s for 1,000 rows",
        ]

    def _serve(self) -> list[str]:
        serve = self.serve
        return [
            f"serve   {many(serve.nodes, 'node')}: {many(serve.groups, 'group')} of "
            f"{many(serve.shards_a_group, 'shard')}, {many(serve.nodes // serve.groups, 'copy')}; "
            f"{serve.limit} decides",
            f"        a node: {size(serve.memory_gb_a_node)} of memory for the index, "
            f"{size(serve.disk_gb_a_node)} of disk; all: {size(serve.memory_gb)} and "
            f"{size(serve.disk_gb)}",
            f"        CPUs busy: {figure(serve.cores)}, of that search "
            f"{figure(serve.search_cores)}, encoder {figure(serve.encoder_cores)}, the rest "
            f"{figure(serve.service_cores)}; one query searches {figure(serve.search_ms)} ms",
        ]

    def _growth(self) -> list[str]:
        unit = "GPU h" if self.embed.gpu_hours is not None else "CPU h"
        head = f"{'rows':>15}  nodes       disk  embed {unit}  build CPU h  CPUs busy  method"
        return [head, *(step.told() for step in self.growth)]


def many(count: int, noun: str) -> str:
    """With the plural where there are several."""
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def figure(value: float) -> str:
    """Two digits that count, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def size(gigabytes: float) -> str:
    """With its unit."""
    if gigabytes >= 1000:
        return f"{figure(gigabytes / 1000)} TB"
    return f"{figure(gigabytes)} GB" if gigabytes >= 1 else f"{figure(1000 * gigabytes)} MB"
