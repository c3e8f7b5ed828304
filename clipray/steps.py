"""The steps of a pipeline: each runs, or is found whole and kept as it is.

What stands there and was made from something else, or in another way, is an error; nothing is
overwritten. Which steps there are, and in which order, is not known here.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from clipray import clip
from clipray.config import Config, read_yaml
from clipray.embed import EmbedConfig, embed
from clipray.embeddings import Parts
from clipray.errors import MismatchError
from clipray.evaluate import EvaluateConfig, EvaluateReport, evaluate
from clipray.evaluate.page import withdraw
from clipray.export import ExportConfig, export
from clipray.exported import ExportedFolder
from clipray.index import Index
from clipray.index.append import IndexAppendConfig, append
from clipray.index.build import IndexBuildConfig, build
from clipray.index.manifest import IndexFolder
from clipray.manifest import (
    ModelFolder,
    ModelManifest,
    ModelSource,
    modalities_of,
    read_json,
    write_json,
)
from clipray.report import DONE, Report
from clipray.train import CONFIG_FILE, FREE, TrainConfig, train
from clipray.training.run_folder import differences


class Kept(Report):
    """A step that had nothing to do.

    Attributes:
        place: what stands there.
        told: what it is.
        code: exit code that the step would have now.
    """

    place: str
    told: str
    code: int = DONE

    @property
    def exit_code(self) -> int:
        """As the step would have it."""
        return self.code

    def summary(self) -> str:
        """One line."""
        return f"{self.place}: whole already, kept; {self.told}"


def trained(config: TrainConfig) -> Report:
    """The model folder; a run that was cut off goes on.

    Raises:
        MismatchError: a model stands there that was trained in another way.
    """
    output, source = config.output.resolve(), config.source.absolute()
    used = output / CONFIG_FILE
    if not used.is_file():
        return train(config)
    wanted = config.model_dump(mode="json")
    wanted |= {"model": source.name, "pretrained": source.pretrained}
    _require_same(output, read_yaml(used), wanted, FREE)
    manifest = read_json(ModelManifest, ModelFolder(output).manifest)
    return Kept(place=str(output), told=f"model {manifest.identity}")


def exported(config: ExportConfig) -> Report:
    """The ONNX files of a model.

    Raises:
        MismatchError: those of another model stand there.
        ModelError: a tower or a precision is not among them.
    """
    folder = ExportedFolder(config.output.resolve())
    if not folder.exists:
        return export(config)
    source = ModelSource(name=config.model, pretrained=config.pretrained).absolute()
    identity, manifests = clip.load(source, config.preprocess).identity(), folder.read()
    for name in modalities_of(config.towers):
        folder.require(name)
        manifests[name].identity.require(identity, f"{folder.root}: the model to export")
        for precision in config.precision:
            folder.tower(name).choose(manifests[name], precision)
    return Kept(place=str(folder.root), told=f"model {identity}")


def embedded(config: EmbedConfig) -> Report:
    """The embeddings folder; finished parts stay, and so does the account of what was rejected."""
    report = embed(config)
    if report.embedded:
        return report
    return Kept(place=str(report.output), told=f"{report.rows} rows", code=report.exit_code)


def indexed(config: IndexBuildConfig) -> Report:
    """The index of all finished parts; those that came since are appended.

    Raises:
        MismatchError: an index of other embeddings stands there, or one built in another way.
    """
    folder = IndexFolder(config.index.resolve())
    if not folder.versions():
        return build(config)
    newest = folder.read()
    parts = Parts.open(config.embeddings.resolve(), config.modality or newest.modality)
    ours, theirs = set(parts.fingerprints().values()), set(newest.parts)
    if not ours & theirs:
        raise MismatchError(
            f"{folder.root}: holds an index of other embeddings than those in {parts.root}; "
            "remove it, or choose another folder"
        )
    places = ("embeddings", "index", "modality")
    _require_same(folder.root, read_yaml(folder.settings), config.model_dump(mode="json"), places)
    if ours <= theirs:
        told = f"version {newest.version}, {newest.rows} rows"
        return Kept(place=str(folder.root), told=told)
    return append(
        IndexAppendConfig(
            embeddings=parts.root, index=folder.root, modality=parts.modality, only_new=True
        )
    )


class Evaluation(Config):
    """What was measured, and on which version of an index."""

    asked: dict[str, Any]
    version: int
    created: datetime
    found: EvaluateReport


def evaluated(config: EvaluateConfig, file: Path) -> Report:
    """What was asked for, in `file`; measured anew for each version of an index.

    The page of an earlier version gives way to the new one.
    """
    if config.index is None:
        return evaluate(config)
    asked, newest = config.model_dump(mode="json"), Index.open(config.index).manifest
    there = read_json(Evaluation, file) if file.is_file() else None
    if there and (there.asked, there.created) == (asked, newest.created):
        told = there.found.summary().replace(":\n", ": ").replace("\n", ", ")
        return Kept(place=str(file), told=" ".join(told.split()), code=there.found.exit_code)
    if config.report:
        withdraw(config.report.resolve(), asked)
    found = evaluate(config)
    version, created = newest.version, newest.created
    write_json(file, Evaluation(asked=asked, version=version, created=created, found=found))
    return found


def _require_same(
    place: Path, there: dict[str, Any], wanted: dict[str, Any], free: tuple[str, ...]
) -> None:
    if other := differences(there, wanted, free):
        raise MismatchError(
            f"{place}: was made with {'; '.join(other)}; remove it, choose another folder, or set "
            "back what differs"
        )
