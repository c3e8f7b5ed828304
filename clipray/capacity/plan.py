"""`clipray plan`: nodes, memory, disk and hours for a collection, before it is there."""

from math import ceil
from typing import Literal

from pydantic import ByteSize, Field

from clipray.capacity import costs
from clipray.capacity.layout import Layout, Load, Node, lay_out
from clipray.capacity.needs import Collection, beyond, build_seconds, shard_ms
from clipray.capacity.report import GrowthStep, IndexPlan, JobPlan, PlanReport, ServePlan
from clipray.config import Config

Method = Literal["auto", "Flat", "HNSW32", "IVF"]
GROWTH = (10, 100)
HOUR_MS = 3_600_000


class PlanConfig(Config):
    """Say what a collection takes: nodes, memory, disk, hours.

    All figures come from measurements on CPUs, which stand in clipray/capacity/costs.py; those of
    GPUs are yours to give. What was not measured at this size is said to be extrapolated.
    """

    rows: int = Field(gt=0, description="pairs of image and text, each a row of the index")
    dim: int = Field(512, gt=0, description="length of a vector: 512 for ViT-B-32, 768 for L-14")
    row_bytes: int = Field(200, gt=0, description="bytes of key, caption and metadata of a row")
    method: Method = Field("auto", description="as for `index build`")
    recall: float = Field(0.95, gt=0, le=1, description="recall@10 wanted for text queries")
    shard_rows: int = Field(
        10_000_000, gt=0, description="rows of a shard, at most; each is built by one task"
    )
    qps: float = Field(10, ge=0, description="queries a second that the service answers")
    texts: float = Field(
        1, ge=0, le=1, description="share of the queries that are texts not seen before"
    )
    replicas: int = Field(2, ge=1, description="copies of the index, each on nodes of its own")
    vectors: Literal["memory", "disk"] = Field(
        "memory",
        description="where the float16 vectors are that candidates are scored with again: in the "
        "memory of the nodes, as measured, or read from their disks (NVMe) when they are asked for",
    )
    node_memory: ByteSize = Field(ByteSize(64 * 10**9), description="memory of one node: 64GB")
    node_disk: ByteSize = Field(ByteSize(500 * 10**9), description="disk of one node: 500GB")
    node_cpus: int = Field(16, ge=1, description="logical CPUs of one node")
    embed_cpus: int = Field(16, ge=1, description="CPUs that embed at once, where no GPU does")
    embed_ms: float = Field(
        costs.EMBED_MS.value, gt=0, description="CPU milliseconds of embedding one image"
    )
    gpus: int = Field(0, ge=0, description="GPUs that embed and train")
    gpu_images_per_s: float | None = Field(
        None, gt=0, description="images a second that one GPU embeds: measure it, we did not"
    )
    train_epochs: float = Field(0, ge=0, description="epochs over all pairs; 0: no training")
    train_pairs_per_s: float | None = Field(
        None, gt=0, description="pairs a second that one GPU trains on: measure it, we did not"
    )


def plan(config: PlanConfig) -> PlanReport:
    """Work everything out.

    Raises:
        ConfigError: nodes that are too small for anything.
    """
    laid = _laid(config, 1)
    told = beyond(laid.wanted)
    if laid.groups > costs.GROUPS:
        told.append(f"calls to more than {costs.GROUPS} groups")
    if config.vectors == "disk":
        told.append("search while vectors are on the disk: as if they were in memory")
    if config.gpus:
        told.append("GPUs: your figures, not ours")
    return PlanReport(
        rows=config.rows,
        dim=config.dim,
        embed=_embed(config),
        train=_train(config),
        index=_index(config, laid),
        serve=_serve(config, laid),
        growth=tuple(_step(config, factor) for factor in (1, *GROWTH)),
        extrapolated=tuple(told),
        measured=costs.DATE,
    )


def _laid(config: PlanConfig, factor: int) -> Layout:
    rows = config.rows * factor
    wanted = Collection(
        rows=rows,
        dim=config.dim,
        row_bytes=config.row_bytes,
        method=config.method,
        recall=config.recall,
        shards=ceil(rows / config.shard_rows),
    )
    node = Node(config.node_memory, config.node_disk, config.node_cpus)
    load = Load(config.qps, config.texts, config.replicas, config.vectors == "memory")
    return lay_out(wanted, node, load)


def _embed(config: PlanConfig) -> JobPlan:
    """Of the images; what their texts take is little beside it."""
    size = config.rows * (2 * config.dim + config.row_bytes)
    if config.gpus and config.gpu_images_per_s:
        hours = config.rows / config.gpu_images_per_s / 3600
        return JobPlan(gpu_hours=hours, hours=hours / config.gpus, disk_gb=size / 1e9)
    hours = config.rows * config.embed_ms / HOUR_MS
    return JobPlan(cpu_hours=hours, hours=hours / config.embed_cpus, disk_gb=size / 1e9)


def _train(config: PlanConfig) -> JobPlan | None:
    if not (config.train_epochs and config.gpus and config.train_pairs_per_s):
        return None
    hours = config.rows * config.train_epochs / config.train_pairs_per_s / 3600
    return JobPlan(gpu_hours=hours, hours=hours / config.gpus)


def _index(config: PlanConfig, laid: Layout) -> IndexPlan:
    training, filling = build_seconds(laid.wanted)
    cores = min(laid.wanted.shards, laid.groups * config.replicas * config.node_cpus)
    return IndexPlan(
        method=laid.wanted.chosen,
        shards=laid.wanted.shards,
        vectors_gb=laid.bytes.vectors / 1e9,
        index_gb=laid.bytes.index / 1e9,
        rows_gb=laid.bytes.rows / 1e9,
        disk_gb=laid.bytes.total / 1e9,
        build_cpu_hours=(training + filling) / 3600,
        training_hours=training / 3600,
        build_hours=(training + filling / cores) / 3600,
        task_memory_gb=(laid.bytes.index / laid.wanted.shards + costs.TASK_MB.value * 1e6) / 1e9,
        append_cpu_s=costs.APPEND_S.value * laid.wanted.dim / costs.DIM,
    )


def _serve(config: PlanConfig, laid: Layout) -> ServePlan:
    per_group = laid.wanted.shards // laid.groups
    return ServePlan(
        groups=laid.groups,
        shards_a_group=per_group,
        nodes=laid.groups * config.replicas,
        limit=laid.limit,
        memory_gb_a_node=laid.memory / laid.groups / 1e9,
        disk_gb_a_node=laid.bytes.total / laid.groups / 1e9,
        memory_gb=laid.memory * config.replicas / 1e9,
        disk_gb=laid.bytes.total * config.replicas / 1e9,
        cores=laid.cores,
        search_cores=laid.search,
        service_cores=laid.service,
        encoder_cores=laid.encoder,
        search_ms=shard_ms(laid.wanted) * per_group,
    )


def _step(config: PlanConfig, factor: int) -> GrowthStep:
    laid = _laid(config, factor)
    training, filling = build_seconds(laid.wanted)
    embed = _embed(config.model_copy(update={"rows": config.rows * factor}))
    return GrowthStep(
        rows=laid.wanted.rows,
        method=laid.wanted.chosen,
        nodes=laid.groups * config.replicas,
        disk_gb=laid.bytes.total * config.replicas / 1e9,
        embed_hours=embed.cpu_hours or embed.gpu_hours or 0,
        build_cpu_hours=(training + filling) / 3600,
        cores=laid.cores,
    )
