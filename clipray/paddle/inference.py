"""`inference_clip.yaml` of PaddleClas: its keys, and what they mean here.

What a key asks for is done in the other modules of this package.
"""

from typing import Literal

from pydantic import Field, field_validator

from clipray.config import Config
from clipray.encoder_options import EncoderOptions
from clipray.errors import ConfigError
from clipray.manifest import Modality
from clipray.paddle.notes import Notes
from clipray.paddle.transforms import Transform
from clipray.query import MAX_K

Mode = Literal[
    "image_index_build", "text_index_build", "text-to-image", "image-to-text", "image-to-image"
]
Operation = Literal["new", "append", "remove"]

# Cosines of a CLIP model lie higher within one modality than between two (the modality gap): two
# alike pictures reach 0.5 and more, a picture and the best words for it about 0.2 to 0.35.
THRESHOLDS: dict[str, float] = {"image-to-image": 0.5, "text-to-image": 0.2, "image-to-text": 0.2}

MEANINGLESS = {
    "enable_mkldnn": "ONNX Runtime and torch choose their CPU kernels themselves",
    "ir_optim": "the graphs of exported models are always optimised",
    "use_tensorrt": "exported models are run by ONNX Runtime, others by torch",
    "gpu_mem": "GPU memory is taken as it is needed, not ahead",
    "enable_profile": "there is no profiler inside; enable_benchmark tells where the time goes",
}


class GlobalSection(Config):
    """`Global`: what is asked for, with which encoders, and on what."""

    mode: Mode = Field(description=", ".join(Mode.__args__))  # type: ignore[attr-defined]
    infer_imgs: str | None = Field(
        None,
        description="an image, a folder of images, an img2dataset folder or .tar, or a .txt with "
        "one image path a line, a label behind the delimiter where there is one",
    )
    texts: str | None = Field(None, description="a file with one text a line")
    inference_image_encoder_dir: str | None = Field(
        None,
        description="folder with the exported image tower; also a model folder, or an open_clip "
        "name with its tag, as ViT-B-32/laion2b_s34b_b79k",
    )
    inference_text_encoder_dir: str | None = Field(
        None, description="likewise, with the text tower"
    )
    batch_size: int = Field(32, ge=1, description="queries that the encoder sees at once")
    use_gpu: bool = Field(False, description="encode on the GPU")
    embedding_size: int | None = Field(None, ge=1, description="must be the model's, where given")
    cpu_num_threads: int | None = Field(
        None, ge=1, description="CPU threads of the encoder and of the search; by default all"
    )
    enable_benchmark: bool = Field(False, description="tell on stderr where the time went")
    use_fp16: bool | None = Field(
        None,
        description="half precision on a GPU: of an exported tower the fp16 variant; by default "
        "the most precise variant",
    )
    enable_mkldnn: bool | None = Field(None, description="no meaning here")
    ir_optim: bool | None = Field(None, description="no meaning here")
    use_tensorrt: bool | None = Field(None, description="no meaning here")
    gpu_mem: int | None = Field(None, description="no meaning here")
    enable_profile: bool | None = Field(None, description="no meaning here")


class PreProcessSection(Config):
    """`PreProcess`: how pictures are made ready."""

    transform_ops: tuple[Transform, ...] = Field(
        (), description="list of transforms; by default the encoder's own"
    )


class IndexSection(Config):
    """`IndexProcess`: the indices, and what is wanted of them."""

    index_method: str = Field(
        "HNSW32", description="HNSW32, IVF, Flat, auto, or a string of Faiss's index_factory"
    )
    image_index_dir: str | None = Field(None, description="index folder of images")
    text_index_dir: str | None = Field(None, description="index folder of texts")
    index_operation: Operation = Field("new", description="new, append, remove")
    delimiter: str = Field(
        "\t", min_length=1, description="between path and label in a list of images"
    )
    dist_type: str = Field("IP", description="IP: the cosine, as all vectors have length 1")
    embedding_size: int | None = Field(None, ge=1, description="must be the model's, where given")
    batch_size: int = Field(32, ge=1, description="rows that the encoder sees at once")
    return_k: int = Field(1, ge=1, le=MAX_K, description="at most this many results a query")
    score_thres: float | None = Field(
        None,
        allow_inf_nan=False,
        description="smallest cosine of a result; by default 0.5 from image to image, else 0.2",
    )

    @field_validator("dist_type")
    @classmethod
    def _inner_product(cls, value: str) -> str:
        if value != "IP":
            raise ValueError(
                "expected IP; vectors have length 1, so the inner product is the cosine, and L2 "
                "would give the same order with other scores"
            )
        return value


class PredictConfig(Config):
    """Build indices and answer queries as `inference_clip.yaml` of PaddleClas says."""

    Global: GlobalSection
    PreProcess: PreProcessSection = PreProcessSection()
    IndexProcess: IndexSection = IndexSection()

    @property
    def encodes(self) -> Modality:
        """Which tower the mode needs."""
        return "text" if self.Global.mode.startswith("text") else "image"

    @property
    def indexed(self) -> Modality:
        """Of which modality the rows of the mode's index are."""
        if self.Global.mode.endswith("_index_build"):
            return self.encodes
        return "text" if self.Global.mode.endswith("text") else "image"

    @property
    def threshold(self) -> float:
        """Smallest cosine that is kept."""
        given = self.IndexProcess.score_thres
        return THRESHOLDS[self.Global.mode] if given is None else given

    @property
    def sizes(self) -> dict[str, int]:
        """What the file says of the length of a vector, by key."""
        found = {
            "Global.embedding_size": self.Global.embedding_size,
            "IndexProcess.embedding_size": self.IndexProcess.embedding_size,
        }
        return {key: size for key, size in found.items() if size is not None}

    def given(self, section: str, key: str) -> str:
        """A path that the mode cannot do without.

        Raises:
            ConfigError: it is not there.
        """
        value = getattr(getattr(self, section), key)
        if not value:
            raise ConfigError(f"{section}.{key} is missing; mode {self.Global.mode} needs it")
        return str(value)

    def options(self, notes: Notes) -> EncoderOptions:
        """How the encoder is run."""
        device = "cuda" if self.Global.use_gpu else "cpu"
        half = self.Global.use_fp16
        if half and device == "cpu":
            notes.ignored("Global.use_fp16", "a CPU computes in fp32; it is for use_gpu")
            half = False
        if half is None:
            return EncoderOptions(device=device)
        return EncoderOptions(device=device, precision="fp16" if half else "fp32")

    def tell_meaningless(self, notes: Notes) -> None:
        """Warn of keys that change nothing."""
        for key, why in MEANINGLESS.items():
            if key in self.Global.model_fields_set:
                notes.ignored(f"Global.{key}", why)
