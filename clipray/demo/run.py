"""The whole way on this machine: emoji → train → embed → index → search → serve.

Everything is real: img2dataset shards, a model trained from scratch, sharded indices and queries
over HTTP. The trained model is kept, so that the next run is quick.
"""

import json
import logging
import shutil
import sys
import threading
import time
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from clipray import cluster
from clipray.account import EmbedReport
from clipray.client import Client
from clipray.config import Config, to_yaml
from clipray.demo.emoji import write_emoji_shards
from clipray.demo.sheet import write_sheet
from clipray.demo.tour import INDEX, search_p50_ms, table, tour
from clipray.embed import EmbedConfig, embed
from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import OutputError
from clipray.evaluate import EvaluateReport, caption_recall
from clipray.index import Index
from clipray.index.build import IndexBuildConfig, build
from clipray.report import Report
from clipray.serve.local import ServeConfig, start
from clipray.train import CONFIG_FILE, TrainConfig, train
from clipray.training.augment import AugmentConfig
from clipray.training.loader import LoaderConfig
from clipray.training.optim import OptimConfig

log = logging.getLogger(__name__)

NOTE = "Emoji: OpenMoji, CC BY-SA 4.0. Model: trained from scratch by this demo."
ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 32},
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 128,
        "heads": 2,
        "layers": 1,
    },
}


class DemoConfig(Config):
    """Do the whole way once, on about 1,900 emoji."""

    output: Path = Field(Path("clipray-demo"), description="folder for all that the demo makes")
    serve: bool = Field(False, description="leave the service running until Ctrl-C")
    host: str = Field("127.0.0.1", description="address of the service")
    port: int = Field(8000, ge=1, le=65535, description="port of the service")
    emoji: int | None = Field(None, ge=64, description="use only so many emoji")
    epochs: int = Field(24, ge=1, description="of training")
    workers: int = Field(2, ge=1, description="of training")


class DemoReport(Report):
    """What the demo reached.

    Attributes:
        table: queries with their best hits.
        sheet: the same as a picture.
        seconds: wall time of everything.
    """

    table: str
    sheet: Path
    recall: EvaluateReport
    embed_images_per_s: float
    search_p50_ms: float
    seconds: float

    def summary(self) -> str:
        """The table, where the picture is, and one line of figures."""
        r5 = self.recall.metrics["text_to_image_R@5"]
        return (
            f"{self.table}\n\ncontact sheet: {self.sheet}\n"
            f"demo ok: text_to_image_R@5={r5:.4f} "
            f"embed_images_per_s={self.embed_images_per_s:.0f} "
            f"search_p50_ms={self.search_p50_ms:.1f} seconds={self.seconds:.0f}"
        )


class _Layout:
    """The folders of a demo."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.emoji = root / "emoji"
        self.architecture = root / "architecture.json"
        self.model, self.run = root / "model", root / "model-run"
        self.embeddings = root / "embeddings"
        self.images, self.texts = root / "index-images", root / "index-texts"
        self.sheet = root / "contact_sheet.png"

    @property
    def all(self) -> set[Path]:
        """Everything that the demo writes."""
        return {path for path in vars(self).values() if path != self.root}


def demo(config: DemoConfig) -> DemoReport:
    """Run all steps.

    Raises:
        OutputError: the output folder holds something that no demo wrote.
        InputError: the packages of the extra `demo` are not installed.
    """
    began = time.monotonic()
    layout = _prepare(config)
    with cluster.session(cpus=config.workers):
        _say("1/5 train a model from scratch on emoji")
        _train_once(config, layout)
        _say("2/5 embed pictures and names")
        embedded = _embed(layout)
        _say("3/5 build two sharded indices")
        _index(layout)
        _say("4/5 evaluate: how often does a name find its picture?")
        images = Index.open(layout.images)
        recall = caption_recall(images, open_encoder(images.manifest.source, EncoderOptions()))
        _say("5/5 serve, and search over HTTP")
        url = start(_service(config, layout))
        with Client(url) as client:
            rows = tour(client)
            texts = [text for text in images.column("caption").values() if text]
            p50 = search_p50_ms(client, texts)
        write_sheet(layout.sheet, "clipray: emoji, by a model trained a minute ago", rows, NOTE)
        report = DemoReport(
            table=table(rows),
            sheet=layout.sheet,
            recall=recall,
            embed_images_per_s=embedded.images_per_s,
            search_p50_ms=p50,
            seconds=time.monotonic() - began,
        )
        if config.serve:
            _stay(url, report)
    return report


def _prepare(config: DemoConfig) -> _Layout:
    layout = _Layout(config.output.resolve())
    if layout.root.is_file() or (
        layout.root.is_dir()
        and not {path for path in layout.root.iterdir() if not path.name.startswith(".")}
        <= layout.all
    ):
        raise OutputError(f"{layout.root}: holds other things; give --output a new folder")
    layout.root.mkdir(parents=True, exist_ok=True)
    for path in (layout.embeddings, layout.images, layout.texts):
        shutil.rmtree(path, ignore_errors=True)
    if not layout.emoji.exists():
        with tqdm(unit="emoji", desc="draw") as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            per_shard = min(256, (config.emoji or 512) // 2)
            write_emoji_shards(
                layout.emoji, per_shard=per_shard, limit=config.emoji, progress=progress
            )
    layout.architecture.write_text(json.dumps(ARCHITECTURE, indent=1), encoding="utf-8")
    return layout


def _train_once(config: DemoConfig, layout: _Layout) -> None:
    wanted = _recipe(config, layout)
    used = layout.model / CONFIG_FILE
    if used.is_file() and used.read_text(encoding="utf-8") == to_yaml(wanted):
        _say(f"    kept from an earlier run: {layout.model}")
        return
    for path in (layout.model, layout.run):
        shutil.rmtree(path, ignore_errors=True)
    train(wanted)


def _recipe(config: DemoConfig, layout: _Layout) -> TrainConfig:
    return TrainConfig(
        input=(str(layout.emoji),),
        output=layout.model,
        model=str(layout.architecture),
        epochs=config.epochs,
        workers=config.workers,
        loader=LoaderConfig(
            batch_size=min(256, (config.emoji or 512) // 2 // config.workers * config.workers),
            captions={"caption": 0.7, "caption_tags": 0.3},
            decode="exact",  # of so small pictures, kept in memory, nothing is to be gained
        ),
        optim=OptimConfig(lr=2e-3, weight_decay=0.1, warmup=0.36),
        augment=AugmentConfig(
            rotate=8, scale=0.1, shift=0.06, shear=4, brightness=0.1, contrast=0.1, saturation=0.1
        ),
        augment_until=0.6,
    )


def _embed(layout: _Layout) -> EmbedReport:
    return embed(
        EmbedConfig(
            input=(str(layout.emoji),),
            output=layout.embeddings,
            model=str(layout.model),
            modality="both",
            max_workers=1,  # so few pictures do not pay for the start of a second actor
        )
    )


def _index(layout: _Layout) -> None:
    embeddings = layout.embeddings
    build(IndexBuildConfig(embeddings=embeddings, index=layout.images, method="HNSW32", shards=2))
    build(
        IndexBuildConfig(
            embeddings=embeddings, index=layout.texts, method="HNSW32", shards=2, modality="text"
        )
    )


def _service(config: DemoConfig, layout: _Layout) -> ServeConfig:
    return ServeConfig(
        index=(f"{INDEX}={layout.images}", f"{INDEX}={layout.texts}"),
        groups=2,
        host=config.host,
        port=config.port,
    )


def _stay(url: str, report: DemoReport) -> None:
    _say(report.summary())
    _say(f"\nopen {url} in a browser; Ctrl-C ends the service")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        _say("stopping")


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
