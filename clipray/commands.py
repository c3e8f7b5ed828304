"""The commands: where each one's configuration and function are.

A command's own module is imported only when it is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from clipray.config import Config
from clipray.report import Report


@dataclass(frozen=True, slots=True)
class Command:
    """A verb: where its configuration and its function are, and one line about it."""

    module: str
    config: str
    function: str
    help: str

    def load(self) -> tuple[type[Config], Callable[[Config], Report]]:
        """Import the module of the command."""
        module = import_module(self.module)
        return getattr(module, self.config), getattr(module, self.function)


COMMANDS = {
    "train": Command("clipray.train", "TrainConfig", "train", "images and captions → model"),
    "embed": Command("clipray.embed", "EmbedConfig", "embed", "images and captions → embeddings"),
    "index build": Command(
        "clipray.index.build", "IndexBuildConfig", "build", "embeddings → searchable index"
    ),
    "index append": Command(
        "clipray.index.append", "IndexAppendConfig", "append", "add rows, replacing equal keys"
    ),
    "index remove": Command(
        "clipray.index.remove", "IndexRemoveConfig", "remove", "remove rows by key, id or filter"
    ),
    "index compact": Command(
        "clipray.index.compact", "IndexCompactConfig", "compact", "drop dead rows, or recut shards"
    ),
    "index info": Command(
        "clipray.index.inspection", "IndexInfoConfig", "info", "what an index is"
    ),
    "index verify": Command(
        "clipray.index.inspection", "IndexVerifyConfig", "verify", "compare all checksums"
    ),
    "index rollback": Command(
        "clipray.index.history", "IndexRollbackConfig", "rollback", "make an old version the newest"
    ),
    "index gc": Command(
        "clipray.index.history", "IndexGcConfig", "gc", "delete old versions and unneeded files"
    ),
    "index publish": Command(
        "clipray.index.publish", "IndexPublishConfig", "publish", "copy the newest version to a URI"
    ),
    "index tune": Command(
        "clipray.index.tune", "IndexTuneConfig", "tune", "settings for a recall, measured"
    ),
    "search": Command("clipray.search", "SearchConfig", "search", "query an index in process"),
    "paddle predict": Command(
        "clipray.paddle.predict", "PredictConfig", "predict", "PaddleClas: inference_clip.yaml"
    ),
    "serve": Command(
        "clipray.serve.local", "ServeConfig", "serve_until_interrupted", "answer queries over HTTP"
    ),
    "serve --check": Command(
        "clipray.serve.check", "CheckConfig", "check", "Serve YAML for a cluster → what it starts"
    ),
    "export": Command("clipray.export", "ExportConfig", "export", "model → ONNX files"),
    "evaluate": Command(
        "clipray.evaluate", "EvaluateConfig", "evaluate", "measure an index, a service or a model"
    ),
    "paddle train": Command(
        "clipray.paddle.train", "PaddleTrainConfig", "train", "CLIP.yaml of PaddleClas → model"
    ),
    "paddle infer": Command(
        "clipray.paddle.infer", "PaddleInferConfig", "infer", "its images or texts → vectors"
    ),
    "paddle export": Command(
        "clipray.paddle.export", "PaddleExportConfig", "export", "its model → ONNX, one tower"
    ),
    "doctor": Command(
        "clipray.doctor.run", "DoctorConfig", "doctor", "check machines and cluster, say what to do"
    ),
    "plan": Command(
        "clipray.capacity.plan", "PlanConfig", "plan", "nodes, memory, disk and hours for a size"
    ),
    "pipeline": Command(
        "clipray.pipeline", "PipelineConfig", "pipeline", "train, embed, index … in a row"
    ),
    "demo": Command("clipray.demo.run", "DemoConfig", "demo", "the whole way, on emoji"),
}
