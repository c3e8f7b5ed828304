"""The embedding job: Ray Data maps encoder actors over shards.

One shard is one task and becomes one part. Only paths go to the actors and only counts come back.
Finished parts are skipped, so a job that was stopped is simply run again.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.data
import ray.exceptions
from pydantic import Field
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from clipray import cluster, storage
from clipray.config import to_yaml
from clipray.dataset import Shard, find_shards
from clipray.encoder import Encoder, EncoderOptions, identify, open_encoder
from clipray.errors import ClipRayError, MismatchError, OutputError, from_remote
from clipray.manifest import (
    EmbeddingsFolder,
    EmbeddingsManifest,
    Modalities,
    ModelIdentity,
    ModelSource,
    PartManifest,
    modalities_of,
    write_json,
)
from clipray.part import PartPlan, PartReport, PartSettings, embed_shard
from clipray.report import DONE, DONE_WITH_REJECTS, Report

log = logging.getLogger(__name__)

JUDGED_FROM = 100  # samples; fewer say little about a collection


class EmbedConfig(EncoderOptions):
    """Turn images and captions into unit vectors, one part per input shard."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="folder of img2dataset shards or of images, one .tar, or a .txt with one text "
        "a line; may be repeated, and given as NAME=PATH",
    )
    output: Path = Field(description="embeddings folder; an unfinished one is continued")
    model: str = Field(description="open_clip model name, or a model folder")
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")
    modality: Modalities = Field("image", description="what to embed")
    workers: int = Field(1, ge=1, description="encoder actors at least")
    max_workers: int | None = Field(
        None,
        ge=1,
        description="encoder actors at most, as the backlog grows; --workers if not given",
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of one actor")
    batch_size: int = Field(64, ge=1, description="samples the encoder sees at once")
    decode_threads: int = Field(2, ge=1, description="threads of one actor that decode images")
    max_reject_fraction: float = Field(
        1.0, ge=0, le=1, description="stop when more of the samples than this are rejected"
    )

    @property
    def actors(self) -> tuple[int, int]:
        """Fewest and most encoder actors."""
        return self.workers, max(self.workers, self.max_workers or self.workers)


class EmbedReport(Report):
    """What a run did.

    Attributes:
        output: the embeddings folder.
        rows: samples in all finished parts.
        rejected: samples left out of them, by reason.
        skipped: inputs not read, with the reason: unfinished or damaged shards.
        embedded: samples that this run embedded; the others were there.
        images_per_s: speed of this run, of all actors together, waiting for Ray left out.
    """

    output: Path
    rows: int
    rejected: dict[str, int]
    skipped: dict[str, str]
    embedded: int
    images_per_s: float

    @property
    def exit_code(self) -> int:
        """0 when every sample of every input is in a part, else 3."""
        return DONE_WITH_REJECTS if self.rejected or self.skipped else DONE

    def summary(self) -> str:
        """Counts, then one line for each reason and each input left out."""
        lines = [f"{self.output}: {self.rows} rows, {self.embedded} of them embedded now"]
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        lines += [f"skipped {path}: {reason}" for path, reason in sorted(self.skipped.items())]
        return "\n".join(lines)


def embed(config: EmbedConfig) -> EmbedReport:
    """Run the job; returns when every shard is done or skipped.

    Raises:
        InputError: nothing to read.
        ModelError: the model cannot be loaded.
        MismatchError: the folder was begun with another model, modality or input.
        OutputError: the output holds something else.
    """
    found = find_shards(config.input)
    source = ModelSource(name=config.model, pretrained=config.pretrained).absolute()
    folder = EmbeddingsFolder(config.output.resolve())
    _require_ours(folder)
    manifest = _begin(folder, config, source, identify(source, config), found.shards)
    numbers = {name: number for number, name in enumerate(manifest.shards)}
    plans = [PartPlan(numbers[shard.name], shard) for shard in found.shards]
    done = folder.parts()
    _require_unchanged(plans, done)
    todo = [plan for plan in plans if plan.part not in done]
    reports = _run(todo, config, source, folder) if todo else []
    return _report(folder, found.skipped, reports)


class ShardEncoder:
    """Actor that holds one encoder and embeds a shard a call."""

    def __init__(self, config: EmbedConfig, source: ModelSource, root: Path) -> None:
        self._encoder: Encoder = open_encoder(source, config)
        modalities = modalities_of(config.modality)
        self._settings = PartSettings(modalities, config.batch_size, config.decode_threads)
        self._folder = EmbeddingsFolder(root)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed the one plan in `batch`."""
        (plan,) = batch["plan"]
        return {"report": [embed_shard(plan, self._settings, self._folder, self._encoder)]}


def _run(
    todo: Sequence[PartPlan], config: EmbedConfig, source: ModelSource, folder: EmbeddingsFolder
) -> list[PartReport]:
    fewest, most = (min(count, len(todo)) for count in config.actors)
    with cluster.session(cpus=fewest):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends the job is raised
        items = ray.data.from_items(
            [{"plan": plan} for plan in todo], override_num_blocks=len(todo)
        )
        reports = items.map_batches(
            ShardEncoder,
            fn_constructor_args=(config, source, folder.root),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=fewest, max_size=most),
            num_cpus=1,
            num_gpus=config.gpus_per_worker,
        )
        try:
            return list(_watch(reports.iter_rows(), todo, config.max_reject_fraction))
        except ray.exceptions.RayError as error:
            raise from_remote(str(error), "embedding failed") from error


def _watch(
    rows: Iterable[dict[str, Any]], todo: Sequence[PartPlan], max_reject_fraction: float
) -> Iterator[PartReport]:
    counts = Counter[str]()
    with tqdm(total=len(todo), unit="shard", desc="embed") as bar:
        for row in rows:
            report: PartReport = row["report"]
            counts["samples"] += report.rows
            counts["rejected"] += sum(report.rejected.values())
            bar.update()
            _require_hope(counts, max_reject_fraction)
            speed = counts["samples"] / max(1e-9, bar.format_dict["elapsed"])
            bar.set_postfix_str(f"{speed:.0f} samples/s, {counts['rejected']} rejected")
            if report.damage:
                log.warning("%s: quarantined, %s", report.plan.shard.path, report.damage)
            yield report


def _require_hope(counts: Counter[str], max_reject_fraction: float) -> None:
    seen = counts["samples"] + counts["rejected"]
    if seen >= JUDGED_FROM and counts["rejected"] > max_reject_fraction * seen:
        raise ClipRayError(
            f"stopped: {counts['rejected']} of {seen} samples were rejected, more than "
            f"--max-reject-fraction {max_reject_fraction}; see the folder rejected/"
        )


def _require_ours(folder: EmbeddingsFolder) -> None:
    if storage.occupied(folder.root) and not folder.manifest.is_file():
        raise OutputError(
            f"{folder.root}: holds something that is no embeddings folder; "
            "give --output a new or empty folder"
        )


def _begin(
    folder: EmbeddingsFolder,
    config: EmbedConfig,
    source: ModelSource,
    identity: ModelIdentity,
    shards: Sequence[Shard],
) -> EmbeddingsManifest:
    begun = folder.read() if folder.manifest.is_file() else None
    if begun:
        begun.model.require(identity, f"{folder.root}: --model")
        if begun.modality != config.modality:
            raise MismatchError(
                f"{folder.root}: begun with modality {begun.modality}, not {config.modality}; "
                "use another --output"
            )
    known = begun.shards if begun else ()
    names = tuple(dict.fromkeys([*known, *(shard.name for shard in shards)]))  # known ones first
    manifest = EmbeddingsManifest(
        model=identity, source=source, modality=config.modality, shards=names
    )
    if manifest != begun:
        write_json(folder.manifest, manifest)
        storage.write_file(folder.root / "embed.yaml", to_yaml(config).encode())
    return manifest


def _require_unchanged(plans: Sequence[PartPlan], done: dict[int, PartManifest]) -> None:
    for plan in plans:
        marker = done.get(plan.part)
        if marker and marker.signature != plan.shard.signature():
            raise MismatchError(
                f"{plan.shard.path}: was {marker.signature} when it was embedded, is now "
                f"{plan.shard.signature()}; embed changed inputs into another --output"
            )


def _report(
    folder: EmbeddingsFolder, skipped: dict[str, str], reports: Sequence[PartReport]
) -> EmbedReport:
    parts = folder.parts().values()
    rejected = Counter[str]()
    for part in parts:
        rejected.update(part.rejected)
    damaged = {str(r.plan.shard.path): r.damage for r in reports if r.damage}
    embedded, seconds = sum(r.rows for r in reports), sum(r.seconds for r in reports)
    return EmbedReport(
        output=folder.root,
        rows=sum(part.rows for part in parts),
        rejected=dict(rejected),
        skipped=skipped | damaged,
        embedded=embedded,
        images_per_s=embedded / seconds if seconds else 0.0,
    )
