"""What can be asked of an evaluation."""

from pathlib import Path

from pydantic import Field

from clipray import storage
from clipray.encoder_options import EncoderOptions
from clipray.errors import ConfigError, OutputError
from clipray.outputs import OutputPath


class EvaluateConfig(EncoderOptions):
    """Measure an index (--index), a service (--url), a model (--data, --labelled), or all of them.

    Every part is measured that is asked for; --report writes a page with curves and pictures.
    """

    index: Path | str | None = Field(
        None, description="recall of an index against exact search: a folder, or a URI"
    )
    url: str | None = Field(
        None, description="recall of a running service; --index is a copy of what it serves"
    )
    served: str | None = Field(None, description="name of the index at --url, if it has several")
    data: tuple[str, ...] = Field(
        (), description="captioned data for retrieval: as --input of embed; may be repeated"
    )
    embeddings: Path | None = Field(
        None, description="the same from an embeddings folder of both modalities, without a model"
    )
    labelled: tuple[str, ...] = Field(
        (), description="pictures with classes for zero-shot accuracy; may be repeated"
    )
    report: OutputPath | None = Field(
        None, description="new folder for report.json and report.html, one page with everything"
    )
    model: str | None = Field(
        None, description="model name or folder; by default that of the index or the embeddings"
    )
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")
    texts: bool = Field(True, description="search an index with captions, which needs the model")
    curve: bool = Field(True, description="measure other search settings as well")
    queries: int = Field(256, ge=1, description="rows drawn as queries, and their captions")
    captions: int = Field(10_000, ge=1, description="most captions that must find their own row")
    seed: int = Field(0, ge=0, description="of what is drawn")
    limit: int | None = Field(
        None, ge=1, description="most samples of the data, spread evenly; all where not given"
    )
    caption: str = Field("caption", description="column of the data with the text")
    several: bool = Field(False, description="each line of a text is a caption of its own")
    classes: Path | None = Field(
        None, description="text file, one class a line; by default the labels of the pictures"
    )
    templates: Path | None = Field(
        None, description="text file, one prompt a line with {} for the class"
    )
    label: str | None = Field(
        None, description="column with the class of a picture; by default the folder it lies in"
    )
    verify: bool = Field(True, description="compare all files of the index with their checksums")


def require_sense(config: EvaluateConfig) -> None:
    """Refuse what cannot be measured, before anything is opened.

    Raises:
        ConfigError: nothing is asked for, or what does not go together.
        OutputError: the folder of the report holds something.
    """
    if not (config.index or config.data or config.embeddings or config.labelled):
        raise ConfigError(
            "nothing to evaluate: give --index, --data, --embeddings or --labelled"
            + ("; --url needs --index, a copy of what is served" if config.url else "")
        )
    if config.url and not config.index:
        raise ConfigError("--url needs --index: a copy of what is served, to search it exactly")
    if config.data and config.embeddings:
        raise ConfigError("--data and --embeddings: give one of them")
    if config.report and storage.occupied(config.report):
        raise OutputError(f"{config.report}: holds something already; give --report a new folder")
