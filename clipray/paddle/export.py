"""`clipray paddle export`: the tower that `Arch.clip` names, as an ONNX file in a folder."""

from pathlib import Path

from clipray import export as exporting
from clipray import storage
from clipray.errors import ConfigError, OutputError
from clipray.export import ExportConfig, ExportReport
from clipray.manifest import ModelSource
from clipray.paddle.clip_file import ClipFile
from clipray.paddle.notes import Notes
from clipray.paddle.pretrained import context_length, finished


class PaddleExportConfig(ClipFile):
    """Write one tower of a trained model to Global.save_inference_dir."""


def export(config: PaddleExportConfig) -> ExportReport:
    """Write the tower that the file names.

    Raises:
        ConfigError: a key that cannot be obeyed.
        ClipRayError: as `clipray.export.export`.
    """
    if storage.occupied(Path(config.Global.save_inference_dir)):
        raise OutputError(
            f"Global.save_inference_dir: {config.Global.save_inference_dir} exists already; give "
            "a new folder, or remove it"
        )
    return exporting.export(translate(config, Notes()))


def translate(file: ClipFile, notes: Notes) -> ExportConfig:
    """The same export in our terms.

    Args:
        file: what is asked for.
        notes: get the keys that decide nothing here.
    """
    source, preprocess = finished(file)
    if file.Arch.clip == "image":
        notes.ignored("Global.export_shape", "an image tower takes pictures of Global.image_shape")
        notes.ignored("Global.export_type", "an image tower takes pixels in 8 bits, as they are")
    else:
        _check_tokens(file, source, notes)
    return ExportConfig(
        model=source.name,
        pretrained=source.pretrained,
        preprocess=preprocess,
        towers=file.Arch.clip,
        output=Path(file.Global.save_inference_dir),
    )


def _check_tokens(file: ClipFile, source: ModelSource, notes: Notes) -> None:
    if file.Global.export_type != "int64":
        raise ConfigError(
            f"Global.export_type: found {file.Global.export_type}, but a text tower takes tokens "
            "as int64"
        )
    shape, context = file.Global.export_shape, context_length(source)
    if shape is None or shape == (context,):
        return
    if len(shape) != 1 or shape[0] > context:
        raise ConfigError(
            f"Global.export_shape: found {list(shape)}, but {file.Arch.name} reads texts of at "
            f"most [{context}] tokens"
        )
    notes.ignored(
        "Global.export_shape",
        f"a text tower takes texts of any length up to the model's {context} tokens",
    )
