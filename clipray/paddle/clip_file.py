"""CLIP.yaml of PaddleClas: its sections and keys, under the names that they have there.

What a key becomes here is decided by the commands that read it.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from clipray.config import Config
from clipray.paddle.transforms import Transform

Count = Annotated[int, Field(ge=1)]


def _filled(value: Any) -> Any:
    """A section of which all keys are left out is null in YAML."""
    return {} if value is None else value


class GlobalSection(Config):
    """The run as a whole."""

    checkpoints: str | None = Field(
        None, description="folder of a run to go on from; <output_dir>/run where not given"
    )
    pretrained_model: str | None = Field(
        None,
        description="open_clip tag, weights file (.pt, .safetensors) or model folder; training "
        "begins with random weights where not given, infer and export take <output_dir>/model",
    )
    output_dir: str = Field("./output/", description="gets the folders model and run")
    device: Literal["cpu", "gpu"] = Field(
        "cpu", description="gpu trains one worker on each GPU of CUDA_VISIBLE_DEVICES"
    )
    save_interval: Count = Field(1, description="a checkpoint after so many epochs")
    eval_during_train: bool = Field(True, description="evaluate on DataLoader.Eval")
    eval_interval: Count = Field(1, description="evaluate after so many epochs")
    epochs: Count = Field(120, description="passes over the data")
    print_batch_step: Count = Field(10, description="write metrics after so many steps")
    use_visualdl: bool = Field(False, description="write event files, for TensorBoard")
    image_shape: tuple[Literal[3], Count, Count] | None = Field(
        None, description="colours, height and width of what the model sees"
    )
    export_shape: tuple[Count, ...] | None = Field(
        None, description="export: tokens of a text, at most the model's context"
    )
    export_type: Literal["int64", "float32"] = Field("int64", description="export: of the tokens")
    save_inference_dir: str = Field("./inference", description="export: folder to write, new")
    infer_imgs: str | None = Field(None, description="infer: an image, or a folder of images")
    texts: str | None = Field(None, description="infer: a file with one text a line")


class ArchSection(Config):
    """The model."""

    name: str = Field(
        description="CLIP_vit_base_patch32_224_with_TextEncoder or one of its three sisters, an "
        "open_clip model name, or a JSON file with open_clip's model_cfg"
    )
    clip: Literal["image", "text"] = Field("text", description="export: which tower")


class ContrastiveLossSection(Config):
    """One loss, of pairs."""

    margin: float = Field(1.0, description="no meaning: a softmax over the batch has no margin")
    embedding_size: Count = Field(512, description="length of a vector, must be the model's")
    is_text_image_pairs: Literal[True] = Field(True, description="nothing else is trained on")
    weight: float = Field(1.0, gt=0, description="what the loss is multiplied by")


class LossItem(Config):
    """An entry of a list of losses."""

    ContrastiveLoss: Annotated[ContrastiveLossSection, BeforeValidator(_filled)]


Losses = Annotated[tuple[LossItem, ...], Field(max_length=1)]


class LossSection(Config):
    """What is lowered, and what is measured."""

    Train: Losses = Field((), description="ContrastiveLoss, see its keys in the documentation")
    Eval: Losses = Field((), description="the same")


class RateSection(Config):
    """The learning rate: linear warm-up, then half a cosine."""

    name: Literal["Cosine"] = Field("Cosine", description="the schedule")
    learning_rate: float = Field(4e-4, gt=0, description="peak")
    eta_min: float = Field(0.0, ge=0, description="what the cosine falls to")
    warmup_epoch: float = Field(0, ge=0, description="epochs that warm up")
    warmup_start_lr: float = Field(0.0, ge=0, description="what the warm-up rises from")


class OptimizerSection(Config):
    """AdamW."""

    name: Literal["AdamW"] = Field("AdamW", description="the optimizer")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the mean of their squares")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the latter")
    weight_decay: float = Field(0.0, ge=0, description="never of the logit scale")
    layerwise_decay: float | None = Field(
        None, gt=0, le=1, description="a layer's rate is this times that of the layer above it"
    )
    filter_bias_and_bn: bool = Field(True, description="no weight decay of biases and norms")
    lr: RateSection = RateSection()


class DatasetSection(Config):
    """Pairs of images and texts, as img2dataset writes them."""

    name: Literal["Img2Dataset"] = Field("Img2Dataset", description="the kind of data")
    root_path: str = Field(description="folder or URI")
    split: str | None = Field(
        None, description="folder in root_path, or what the names of its .tar shards begin with"
    )
    transform: tuple[Transform, ...] = Field(
        (), description="ResizeImage, CropImage, NormalizeImage, ToCHWImage; the model's own way "
        "where not given"
    )  # fmt: skip


class SamplerSection(Config):
    """Samples to batches."""

    name: Literal["DistributedBatchSampler"] = Field(
        "DistributedBatchSampler", description="every card takes its share"
    )
    batch_size: Count = Field(256, description="of one card, or of one CPU worker")
    drop_last: bool = Field(False, description="leave out what fills no batch")
    shuffle: bool = Field(True, description="another order each epoch")


class WorkersSection(Config):
    """Who decodes images."""

    num_workers: int = Field(4, ge=0, description="processes; 0 decodes in threads")
    use_shared_memory: bool = Field(True, description="between these processes and the trainer")


class LoaderSection(Config):
    """One split of the data."""

    dataset: DatasetSection
    sampler: SamplerSection = SamplerSection()
    loader: WorkersSection = WorkersSection()


class DataLoaderSection(Config):
    """The data."""

    Train: LoaderSection
    Eval: LoaderSection | None = None


class ClipFile(Config):
    """The whole file."""

    Global: GlobalSection = GlobalSection()
    Arch: ArchSection
    Loss: LossSection = LossSection()
    Optimizer: OptimizerSection = OptimizerSection()
    DataLoader: DataLoaderSection | None = None
