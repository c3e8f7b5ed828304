"""What a pipeline is told: a section for each step, with the keys of its command.

Paths that lead from one step to the next follow from one folder, unless they are given. What the
steps do is not known here.
"""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from clipray.config import Config
from clipray.embed import EmbedConfig
from clipray.evaluate import EvaluateConfig
from clipray.export import ExportConfig
from clipray.index.build import IndexBuildConfig
from clipray.manifest import modalities_of
from clipray.outputs import OutputPath
from clipray.train import TrainConfig

WORK = Path("WORK")  # stands for --work in what is shown of defaults
OPTIONAL = ("train", "export", "image_index", "text_index", "evaluate")

SectionT = TypeVar("SectionT", bound=Config)


class TrainStep(TrainConfig):
    """`clipray train`, with what follows from the pipeline filled in."""

    input: tuple[str, ...] = Field((), description="as --input, where not given")
    output: OutputPath = Field(WORK / "model", description="model folder")


class ExportStep(ExportConfig):
    """`clipray export`, likewise."""

    model: str = Field("", description="the trained model, where there is one")
    output: OutputPath = Field(
        WORK / "exported", description="folder; of a trained model its folder exported/"
    )


class EmbedStep(EmbedConfig):
    """`clipray embed`, likewise."""

    input: tuple[str, ...] = Field((), description="as --input, where not given")
    output: OutputPath = Field(WORK / "embeddings", description="embeddings folder")
    model: str = Field("", description="the trained model, or else the exported one")


class IndexStep(IndexBuildConfig):
    """`clipray index build`, likewise."""

    embeddings: Path = Field(WORK / "embeddings", description="embeddings folder")


class ImageIndexStep(IndexStep):
    """Of images."""

    index: OutputPath = Field(WORK / "image-index", description="index folder")
    modality: Literal["image"] = Field("image", description="what it holds")


class TextIndexStep(IndexStep):
    """Of texts."""

    index: OutputPath = Field(WORK / "text-index", description="index folder")
    modality: Literal["text"] = Field("text", description="what it holds")


class EvaluateStep(EvaluateConfig):
    """`clipray evaluate`, likewise."""

    index: Path | str = Field("", description="the image index, or else the text index")


class PipelineConfig(Config):
    """Train, export, embed, index and evaluate in a row, and go on where it stopped.

    Each step is a section with the keys of its command. `train`, `export` and `evaluate` run where
    their section is given, be it empty; an index is built of all that is embedded, unless one of
    both is given. `SECTION: false` leaves a step out. Paths from step to step are filled in.
    """

    work: OutputPath = Field(description="folder of all that is made, which all nodes can reach")
    input: tuple[str, ...] = Field(
        min_length=1, description="what to embed, and to train on; as for `clipray embed`"
    )
    train: TrainStep | None = None
    export: ExportStep | None = None
    embed: EmbedStep = EmbedStep()
    image_index: ImageIndexStep | None = None
    text_index: TextIndexStep | None = None
    evaluate: EvaluateStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Empty sections count; those that are `false` do not."""
        kept = {name: value for name, value in tree.items() if value is not False}
        given = [name for name in (*OPTIONAL, "embed") if name in kept]
        return kept | {name: {} for name in given if kept[name] in (None, True)}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not (self.embed.model or self.train or self.export):
            raise ValueError("embed.model: missing; name a model, or give a section train")
        if self.export and not (self.export.model or self.train):
            raise ValueError("export.model: missing; name a model, or give a section train")
        for name in ("image", "text"):
            if getattr(self, f"{name}_index") and name not in modalities_of(self.embed.modality):
                raise ValueError(f"{name}_index: needs embed.modality {name} or both")
        return self


def settled(config: PipelineConfig) -> PipelineConfig:
    """With the paths that follow from others, and the indices that are built by default."""
    work, given = config.work.resolve(), config.input
    train = config.train and _filled(config.train, input=given, output=work / "model")
    made = str(train.output) if train else None
    beside = train.output / "exported" if train else work / "exported"
    export = config.export and _filled(config.export, model=made, output=beside)
    model = made or (str(export.output) if export else None)
    embed = _filled(config.embed, input=given, output=work / "embeddings", model=model)
    image, text = _indices(config)
    image = image and _filled(image, embeddings=embed.output, index=work / "image-index")
    text = text and _filled(text, embeddings=embed.output, index=work / "text-index")
    first = image or text
    evaluate = config.evaluate and _filled(config.evaluate, index=first.index if first else None)
    return config.model_copy(
        update={
            "work": work,
            "train": train,
            "export": export,
            "embed": embed,
            "image_index": image,
            "text_index": text,
            "evaluate": evaluate,
        }
    )


def _filled(section: SectionT, **values: Any) -> SectionT:
    """The section, with values for keys that the user has not given."""
    missing = values.keys() - section.model_fields_set
    return section.model_copy(
        update={name: values[name] for name in missing if values[name] is not None}
    )


def _indices(config: PipelineConfig) -> tuple[ImageIndexStep | None, TextIndexStep | None]:
    image, text = config.image_index, config.text_index
    if image or text:
        return image, text
    found = modalities_of(config.embed.modality)
    return (
        ImageIndexStep() if "image" in found else None,
        TextIndexStep() if "text" in found else None,
    )
