"""The embedding job: a collection of images and texts to an embeddings folder.

What has to be done is decided here, who does it in `fleet`, and how in `part`. Finished parts are
skipped, so a job that was stopped is simply run again.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

from pydantic import Field

from clipray import cluster, nodes, room, storage
from clipray.account import Account, EmbedReport
from clipray.config import to_yaml
from clipray.dataset import find_shards
from clipray.decode_pool import DecodePool
from clipray.embeddings import EmbeddingSettings, EmbeddingsFolder, EmbeddingsManifest
from clipray.encoder import identify, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import ClipRayError, MismatchError, OutputError
from clipray.filters import FilterTree
from clipray.fleet import BATCH, DECODE_THREADS, plan_fleet, run_fleet
from clipray.manifest import Modalities, ModelIdentity, ModelSource, modalities_of, write_json
from clipray.outputs import OutputPath
from clipray.part import PartPlan, PartReport, Workshop, embed_shard
from clipray.prepare import PartSettings
from clipray.shards import Shard
from clipray.tally import Tally, drawn

JUDGED_FROM = 100  # samples; fewer say little about a collection
LOOKUPS = 32  # signatures that are read at once


class EmbedConfig(EncoderOptions):
    """Turn images and captions into unit vectors, one part per input shard."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="folder of img2dataset's output (webdataset, files, parquet) or of images, one "
        ".tar or .parquet, a .txt with one text a line, or a pattern such as "
        "laion/{00000..00099}.tar or photos/*.jpg; a path or a URI (s3://, gs://, https://); may "
        "be repeated, and given as NAME=PATH",
    )
    output: OutputPath = Field(description="embeddings folder; an unfinished one is continued")
    model: str = Field(description="open_clip model name, or a model folder")
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")
    modality: Modalities = Field("image", description="what to embed")
    filter: FilterTree | None = Field(
        None,
        description='only samples whose metadata pass, in JSON: {"width": {"$gte": 256}, '
        '"language": {"$in": ["en", "de"]}}; also $eq $ne $gt $lt $lte $nin $exists $contains '
        "$and $or $not",
    )
    workers: int = Field(
        1, ge=0, description="encoder actors at least; 0 embeds in this process, without Ray"
    )
    max_workers: int | None = Field(
        None,
        ge=1,
        description="encoder actors at most, as the backlog grows; by default one for each GPU, "
        "or CPU where there is none, while there are 1000 samples for each",
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs of one actor; by default 1 where the cluster has any"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="samples the encoder sees at once; by default 256 on an actor's GPU, else 64",
    )
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="threads of one actor that read and decode; by default 2, or its share of the "
        "CPUs beside a GPU; give more where images are remote, without decode_processes",
    )
    decode_processes: int | None = Field(
        None,
        ge=0,
        description="decode in so many processes of one actor instead of its threads; by default "
        "its share of the CPUs beside a GPU less one, else none",
    )
    max_reject_fraction: float = Field(
        1.0, ge=0, le=1, description="stop when more of the samples than this are rejected"
    )

    @property
    def settings(self) -> EmbeddingSettings:
        """What must be the same in every run into one folder."""
        return EmbeddingSettings(
            modality=self.modality,
            filter=self.filter,
            precision=self.precision,
            backend=self.backend,
            decode=self.decode,
        )


def embed(config: EmbedConfig) -> EmbedReport:
    """Run the job; returns when every shard is done or skipped.

    Raises:
        InputError: nothing to read.
        ModelError: the model cannot be loaded.
        MismatchError: the folder was begun with another model, other settings or other input.
        OutputError: the output holds something else.
    """
    source = ModelSource(name=config.model, pretrained=config.pretrained).absolute()
    folder = EmbeddingsFolder(config.output.resolve())
    _require_ours(folder)
    members = {part.shard: part.members for _, part in folder.markers()}
    found = find_shards(config.input, members)
    identity = identify(source, config, modalities_of(config.modality))
    with _only_writer(folder):
        manifest = _begin(folder, config, source, identity, found.shards)
        numbers = {name: number for number, name in enumerate(manifest.shards)}
        plans = [PartPlan(numbers[shard.name], shard) for shard in found.shards]
        done = {number: part.signature for number, part in folder.markers()}
        _require_unchanged(plans, done)
        todo = [plan for plan in plans if plan.part not in done]
        account = Account()
        run = _run_here if config.workers == 0 else _run_fleet
        with closing(run(todo, config, source, folder)) as reports:
            for report in reports:
                account.add(report)
                _require_hope(account.counts, config.max_reject_fraction)
        return account.report(folder, found.skipped)


@contextmanager
def _only_writer(folder: EmbeddingsFolder) -> Iterator[None]:
    try:
        with storage.locked(folder.lock):
            yield
    except BlockingIOError:
        raise OutputError(
            f"{folder.root}: another embedding job is writing there; wait for its end, or stop it"
        ) from None


def _run_here(
    todo: Sequence[PartPlan], config: EmbedConfig, source: ModelSource, folder: EmbeddingsFolder
) -> Generator[PartReport]:
    if not todo:
        return
    settings, tally = _settings(config, DECODE_THREADS), Tally()
    with ExitStack() as stack:
        pool = stack.enter_context(DecodePool(settings)) if settings.decode_processes else None
        shop = Workshop(settings, folder, open_encoder(source, config), pool=pool, tick=tally.add)
        bar = stack.enter_context(drawn(tally.total, _expected(todo), len(todo)))
        for plan in todo:
            report = embed_shard(plan, shop)
            bar.finish(report.samples, sum(report.rejected.values()))
            yield report


def _run_fleet(
    todo: Sequence[PartPlan], config: EmbedConfig, source: ModelSource, folder: EmbeddingsFolder
) -> Generator[PartReport]:
    if not todo:
        return
    samples = _expected(todo)
    gpus = 0 if config.device == "cpu" else config.gpus_per_worker
    with cluster.session(cpus=config.workers):
        room.wait(nodes.Needs(gpus=gpus or 0))
        fleet = plan_fleet(
            list(nodes.present()),
            config.workers,
            config.max_workers,
            gpus,
            samples=samples,
            shards=len(todo),
        )
        settings = _settings(config, fleet.decode_threads, fleet.decode_processes, fleet.batch_size)
        arguments = (source, config, settings, folder.root)
        yield from run_fleet(todo, fleet, samples, arguments)


def _settings(
    config: EmbedConfig, threads: int, processes: int = 0, batch_size: int = BATCH
) -> PartSettings:
    given = config.decode_processes
    return PartSettings(
        modalities_of(config.modality),
        config.batch_size or batch_size,
        config.decode_threads or threads,
        processes if given is None else given,
        config.filter,
    )


def _expected(plans: Iterable[PartPlan]) -> int | None:
    counts = [plan.shard.expected for plan in plans]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _require_hope(counts: Counter[str], max_reject_fraction: float) -> None:
    seen = counts["samples"]
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
        if differences := begun.settings.differences(config.settings):
            raise MismatchError(
                f"{folder.root}: begun with {'; '.join(differences)}; use another --output"
            )
    names = _number(begun.shards if begun else (), [shard.name for shard in shards], folder)
    manifest = EmbeddingsManifest(
        model=identity, source=source, settings=config.settings, shards=names
    )
    if manifest != begun:
        write_json(folder.manifest, manifest)
        storage.write_file(folder.root / "embed.yaml", to_yaml(config).encode())
    return manifest


def _number(
    known: Sequence[str], found: Sequence[str], folder: EmbeddingsFolder
) -> tuple[str, ...]:
    """The names of shards by number: known ones keep theirs, new ones take what is free.

    Free is the number of a shard that is not there any more and was never finished.
    """
    here, names = set(found), list(known)
    fresh = iter([name for name in dict.fromkeys(found) if name not in set(known)])
    for number, name in enumerate(known):
        if name not in here and not folder.done(number).exists():
            names[number] = next(fresh, name)
    return (*names, *fresh)


def _require_unchanged(plans: Sequence[PartPlan], done: dict[int, str]) -> None:
    kept = [plan for plan in plans if plan.part in done]
    with ThreadPoolExecutor(LOOKUPS) as pool:
        for plan, found in zip(kept, pool.map(_signature, kept), strict=True):
            if found != done[plan.part]:
                raise MismatchError(
                    f"{plan.shard.path}: was {done[plan.part]} when it was embedded, is now "
                    f"{found}; embed changed inputs into another --output"
                )


def _signature(plan: PartPlan) -> str:
    try:
        return plan.shard.signature()
    except OSError as error:
        return f"unreadable ({error})"
