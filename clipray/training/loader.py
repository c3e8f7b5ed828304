"""Training batches of one rank: its share of every global batch of a plan, decoded ahead.

What a batch holds follows from the seed and the plan, never from the number of ranks, threads or
processes. Losses, devices and models are not known here.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, Sampler

from clipray import forks
from clipray.config import Config
from clipray.encoder_options import Decode
from clipray.errors import ClipRayError, UnavailableError
from clipray.training.batch import Batch, Batcher, Made, Step, Tokenize
from clipray.training.corpus import Corpus
from clipray.training.decoder import Decoder, ReadPixels, Refused
from clipray.training.plan import Plan

log = logging.getLogger(__name__)

PREFETCH = 2  # shares that a decode process makes ahead


class LoaderConfig(Config):
    """What a batch is made of."""

    batch_size: int = Field(256, ge=1, description="global batch, over all workers")
    captions: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        {"caption": 1.0},
        min_length=1,
        description="metadata columns to draw the text from, with weights",
    )
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (), description="one an input: how often an epoch sees it, such as 2.5; 1 by default"
    )
    shuffle_shards: int = Field(
        32,
        ge=1,
        description="shards whose samples are mixed; a worker, and each of its decode processes, "
        "keeps the lists of so many, and local copies of so many remote ones",
    )
    decode: Decode = Field(
        "fast",
        description="fast reads image files in half the time and less, nearly the same as exact, "
        "which is open_clip's way",
    )
    threads: int = Field(2, ge=1, description="threads of one worker that decode images")
    processes: int | None = Field(
        None,
        ge=0,
        description="decode in so many processes of one worker, instead of its threads and "
        "without its cache; by default none on a CPU",
    )
    cache_mb: int = Field(
        512, ge=0, description="memory of one worker for decoded images; 0 decodes every time"
    )


def begin_processes(config: LoaderConfig) -> None:
    """Let decode processes get ready while a model is made, if there will be any."""
    if config.processes:
        forks.server(__name__)


def plan_of(corpus: Corpus, config: LoaderConfig, seed: int) -> Plan:
    """The order of a corpus's samples.

    Raises:
        ConfigError: an epoch has no step, or weights that do not fit the inputs.
    """
    weights = corpus.weights(config.weights)
    return Plan(
        corpus.counts, config.batch_size, seed, weights=weights, window=config.shuffle_shards
    )


class Loader:
    """The batches of one rank.

    Args:
        corpus: the samples.
        config: how they are decoded.
        plan: their order.
        seed: of captions and augmentation.
        rank: of `world` ranks; each takes an equal slice of every global batch.
        pixels: an image file → (3, height, width) uint8; must pickle where processes decode.
        tokenize: texts → (n, context length) int64; as well.

    Raises:
        ConfigError: a global batch has no equal slices.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: LoaderConfig,
        plan: Plan,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        pixels: ReadPixels,
        tokenize: Tokenize,
    ) -> None:
        plan.check_world(world)
        held = corpus.holding(config.shuffle_shards)
        decoder = Decoder(held, config.captions, pixels, config.cache_mb << 20)
        size = plan.batch_size // world
        mine = slice(rank * size, (rank + 1) * size)
        self._batcher = Batcher(
            decoder, config.captions, tokenize, seed=seed, share=mine, counts=corpus.counts
        )
        self._config, self._plan = config, plan
        self._processes = _Processes(self._batcher, config.processes) if config.processes else None
        self._told: set[str] = set()
        self.replaced = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on, made ahead of the step that wants them.

        Raises:
            InputError: no sample of a global batch can be used, or a shard is gone.
            UnavailableError: a decode process ended.
        """
        steps = enumerate(self._plan.batches(epoch, start), epoch * self._plan.steps + start)
        for batch, refused in self._made(steps):
            self._tell(refused)
            self.replaced += batch.replaced
            yield batch

    def _made(self, steps: Iterator[Step]) -> Iterator[Made]:
        if self._processes:
            return self._processes.made(steps)
        return _in_threads(self._batcher, steps, self._config.threads)

    def _tell(self, refused: Iterable[Refused]) -> None:
        for sample in refused:
            if sample.key not in self._told:
                self._told.add(sample.key)
                log.warning("%s: left out, %s", sample.key, sample.reason)


def _in_threads(batcher: Batcher, steps: Iterator[Step], threads: int) -> Iterator[Made]:
    """One batch ahead."""
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(threads) as pool:
        previous: Future[Made] | None = None
        for step, numbers in steps:
            following = ahead.submit(batcher.make, step, numbers, pool.map)
            if previous:
                yield previous.result()
            previous = following
        if previous:
            yield previous.result()


class _Batches(Dataset[Made | ClipRayError]):
    """What a decode process holds; an index is a step."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def __getitem__(self, index: Step) -> Made | ClipRayError:
        try:
            return self._batcher.make(*index)
        except ClipRayError as error:  # raised, it would come with a traceback for its message
            return error


class _Processes:
    """Every process makes whole batches; they come in the order of the steps.

    The processes stay from one epoch to the next. Batches lie in shared memory (/dev/shm) until
    they are used: `PREFETCH` a process.
    """

    def __init__(self, batcher: Batcher, count: int) -> None:
        self._following = _Following()
        self._loader = DataLoader(
            _Batches(batcher),
            batch_size=None,
            sampler=self._following,
            num_workers=count,
            collate_fn=_as_it_is,
            prefetch_factor=PREFETCH,
            multiprocessing_context=forks.server(__name__),
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the one of the process belongs to the model
        )

    def made(self, steps: Iterator[Step]) -> Iterator[Made]:
        """The batches of some steps."""
        self._following.steps = steps
        made = iter(self._loader)
        while (following := _next(made)) is not None:
            if isinstance(following, ClipRayError):
                raise following
            yield following


class _Following(Sampler[Step]):
    """Gives a DataLoader, each time that it begins anew, the steps that are asked for then."""

    def __init__(self) -> None:
        self.steps: Iterator[Step] = iter(())

    def __iter__(self) -> Iterator[Step]:
        return self.steps


def _next(made: Iterator[Made | ClipRayError]) -> Made | ClipRayError | None:
    try:
        return next(made, None)
    except (RuntimeError, OSError, EOFError) as error:  # what torch finds first when one is gone
        told = " ".join(str(error).split()) or type(error).__name__
        raise UnavailableError(
            f"a decode process ended ({told}); was it out of memory, or /dev/shm full? Lower "
            "loader.processes or loader.batch_size"
        ) from error


def _as_it_is(made: Any) -> Any:
    return made
