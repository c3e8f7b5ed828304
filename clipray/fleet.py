"""The encoder actors of an embedding job, and Ray Data over them.

One shard is one call and becomes one part. Only paths go to the actors and only counts come back,
so the object store stays empty and an actor that dies costs a repetition of its shard.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy

from clipray import room
from clipray.decode_pool import DecodePool
from clipray.embeddings import EmbeddingsFolder
from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import from_remote
from clipray.manifest import ModelSource
from clipray.nodes import Needs, Node
from clipray.part import PartPlan, PartReport, Workshop, embed_shard
from clipray.prepare import PartSettings
from clipray.tally import Tally, drawn

MAX_TASKS = 10_000  # more shards than that are dealt out several to a task
DECODE_THREADS = 2
BATCH, BATCH_ON_GPU = 64, 256  # samples that an encoder sees at once
SHARDS_AT_ONCE = 2  # of an actor: one is fetched, listed or written while the other is encoded
SAMPLES_PER_ACTOR = 1_000  # fewer do not pay for the start of one more


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many actors there may be, and what each holds.

    Attributes:
        fewest: that are started at once.
        most: that the pool may grow to with its backlog.
        cpus: of one actor.
        gpus: of one actor.
    """

    fewest: int
    most: int
    cpus: float
    gpus: float

    @property
    def batch_size(self) -> int:
        """Samples that an encoder sees at once, unless the user says how many."""
        return BATCH_ON_GPU if self.gpus else BATCH

    @property
    def decode_threads(self) -> int:
        """Threads of one actor that decode, unless the user says how many."""
        return max(DECODE_THREADS, math.ceil(self.cpus))

    @property
    def decode_processes(self) -> int:
        """Processes that decode instead, likewise: beside a GPU all its CPUs but one."""
        return math.ceil(self.cpus) - 1 if self.gpus else 0


def plan_fleet(
    alive: Sequence[Node],
    fewest: int,
    most: int | None,
    gpus: float | None,
    *,
    samples: int | None,
    shards: int,
) -> Fleet:
    """Choose what the user left open, by the nodes that there are.

    Args:
        alive: the nodes.
        fewest: actors at least.
        most: actors at most; as many as there is room and work for where None.
        gpus: of one actor; one where the cluster has any, where None.
        samples: to be embedded, if known.
        shards: to be embedded.
    """
    gpus = float(any(node.gpus for node in alive)) if gpus is None else gpus
    cpus = max(1.0, room.share(alive, gpus))
    fit = room.count(alive, Needs(0 if gpus else 1, gpus))
    work = shards if samples is None else min(shards, math.ceil(samples / SAMPLES_PER_ACTOR))
    wanted = min(fit, work) if most is None else most
    return Fleet(
        fewest=min(fewest, shards),
        most=max(1, min(fewest, shards), min(wanted, shards)),
        cpus=cpus,
        gpus=gpus,
    )


class ShardEncoder:
    """Actor that holds one encoder and embeds a shard a call."""

    def __init__(
        self,
        source: ModelSource,
        options: EncoderOptions,
        settings: PartSettings,
        root: Path,
        tally: Any,
    ) -> None:
        pool = DecodePool(settings) if settings.decode_processes else None
        encoder = open_encoder(source, options)
        actor = str(ray.get_runtime_context().get_actor_id())
        folder = EmbeddingsFolder(root)
        self._shop = Workshop(settings, folder, encoder, actor, pool, tick=tally.add.remote)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed the one plan in `batch`."""
        (plan,) = batch["plan"]
        return {"report": [embed_shard(plan, self._shop)]}


def run_fleet(
    todo: Sequence[PartPlan], fleet: Fleet, samples: int | None, arguments: tuple[Any, ...]
) -> Iterator[PartReport]:
    """Embed shards; yields a report for each, in any order, and draws the progress.

    Args:
        todo: the shards.
        fleet: of actors.
        samples: to be embedded, if known.
        arguments: of `ShardEncoder`, without the tally.

    Raises:
        ClipRayError: an actor failed and would fail again; the message is its error.
    """
    tally: Any = ray.remote(num_cpus=0)(Tally).remote()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends the job is raised
    items = ray.data.from_items(
        [{"plan": plan} for plan in todo], override_num_blocks=min(len(todo), MAX_TASKS)
    )
    reports = items.map_batches(
        ShardEncoder,
        fn_constructor_args=(*arguments, tally),
        batch_size=1,
        compute=ActorPoolStrategy(
            min_size=fleet.fewest,
            max_size=fleet.most,
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=fleet.cpus,
        num_gpus=fleet.gpus,
    )
    with drawn(lambda: _total(tally), samples, len(todo)) as bar:
        try:
            for row in reports.iter_rows():
                report: PartReport = row["report"]
                bar.finish(report.samples, sum(report.rejected.values()))
                yield report
        except ray.exceptions.RayError as error:
            raise from_remote(str(error), "embedding failed") from error
        finally:
            ray.kill(tally)


def _total(tally: Any) -> int:
    total: int = ray.get(tally.total.remote())
    return total
