"""Exported models on disk: every file name, and what stands beside the ONNX files.

    FOLDER/image/  tower.json  open_clip_config.json  model_fp32.onnx  model_int8.onnx …
    FOLDER/text/   the same, and the files of a tokenizer that has some

Each of the two folders can be used alone. How models are written and run is not known here.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clipray.config import Config
from clipray.ending import Ending
from clipray.errors import DamagedError, MismatchError, ModelError
from clipray.manifest import (
    TOWER_FILE,
    FileRecord,
    Modality,
    ModelFolder,
    ModelIdentity,
    ModelManifest,
    ModelSource,
    digest,
    read_json,
)

ExportPrecision = Literal["fp32", "fp16", "int8"]
MOST_PRECISE: tuple[ExportPrecision, ...] = ("fp32", "fp16", "int8")
TOWERS: tuple[Modality, ...] = ("image", "text")


class Variant(Config):
    """One tower in one precision.

    Attributes:
        files: the ONNX file, and its weights where they are too many for one file.
        cosine_min: of the vectors with those of the model that was exported, over all samples.
    """

    files: dict[str, FileRecord]
    cosine_min: float
    cosine_mean: float


class TowerManifest(Config):
    """`tower.json`: one tower of a model.

    Attributes:
        identity: of the whole model that was exported; what it embeds, this tower can search.
        ending: where texts may be cut; None where the graph takes the full context.
        samples: what the cosines were measured on.
    """

    format: Literal[1] = 1
    tower: Modality
    identity: ModelIdentity
    source: ModelSource
    preprocess: dict[str, Any]
    ending: Ending | None = None
    samples: str
    variants: dict[ExportPrecision, Variant] = Field(min_length=1)


class TowerFolder:
    """File names of one tower."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / TOWER_FILE

    def model(self, precision: ExportPrecision) -> Path:
        """The ONNX file of one variant."""
        return self.root / f"model_{precision}.onnx"

    def read(self) -> TowerManifest:
        """Read `tower.json`.

        Raises:
            DamagedError: when it is torn, or was changed.
        """
        manifest = read_json(TowerManifest, self.manifest)
        if digest(manifest.preprocess) != manifest.identity.preprocess:
            raise DamagedError(f"{self.manifest}: its preprocessing is not that of its identity")
        return manifest

    def choose(self, manifest: TowerManifest, wanted: str) -> ExportPrecision:
        """The variant to run; `auto` is the most precise one, texts run in fp32 for int8.

        Raises:
            ModelError: telling which there are.
        """
        if wanted == "int8" and manifest.tower == "text":
            wanted = "fp32"
        for precision in MOST_PRECISE:
            if precision in manifest.variants and wanted in ("auto", precision):
                return precision
        raise ModelError(
            f"{self.root}: exported as {', '.join(manifest.variants)}, not as {wanted}; choose "
            "one of these, or export the model again"
        )

    def verify(self, manifest: TowerManifest, precision: ExportPrecision) -> Path:
        """The ONNX file of a variant, after its files were compared with the manifest.

        Raises:
            DamagedError: naming the file that is missing, cut or changed.
        """
        path, records = self.model(precision), manifest.variants[precision].files
        if path.name not in records:
            raise DamagedError(f"{self.manifest}: does not tell the checksum of {path.name}")
        for name, record in records.items():
            record.verify(self.root / Path(name).name)
        return path


class ExportedFolder:
    """The folders of both towers, of which one may be missing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def tower(self, modality: Modality) -> TowerFolder:
        """Folder of one tower."""
        return TowerFolder(self.root / modality)

    @property
    def exists(self) -> bool:
        """Whether there is a tower."""
        return any(self.tower(name).manifest.is_file() for name in TOWERS)

    def require(self, modality: Modality) -> None:
        """Refuse to go on without a tower.

        Raises:
            ModelError: when it is not there.
        """
        if not self.tower(modality).manifest.is_file():
            raise ModelError(
                f"{self.root}: has no {modality} tower; export the model with --towers both"
            )

    def read(self) -> dict[Modality, TowerManifest]:
        """The manifests of the towers there are.

        Raises:
            DamagedError: one of them cannot be used.
            MismatchError: they are of two models.
        """
        found = [name for name in TOWERS if self.tower(name).manifest.is_file()]
        manifests = {name: self.tower(name).read() for name in found}
        first, *others = manifests.values()
        for other in others:
            if other.identity.fingerprint != first.identity.fingerprint:
                raise MismatchError(
                    f"{self.root}: its image tower is of {first.identity}, its text tower of "
                    f"{other.identity}; export both from one model"
                )
        return manifests


def stated_identity(source: ModelSource) -> ModelIdentity | None:
    """What a folder says of the model in it, whose weights are not read; None where nothing does.

    Raises:
        DamagedError: what it says cannot be used.
        MismatchError: it says two things.
    """
    if folder := exported_itself(source):
        return next(iter(folder.read().values())).identity
    path = ModelFolder(Path(source.name)).manifest
    if source.pretrained or not path.is_file():
        return None
    return read_json(ModelManifest, path).identity


def exported_itself(source: ModelSource) -> ExportedFolder | None:
    """The exported folder that `source` names, if it names one."""
    folder = ExportedFolder(Path(source.name))
    return folder if folder.exists else None


def exported_beside(source: ModelSource) -> ExportedFolder:
    """The exported folder that `source` names, or `exported/` in the model folder it names.

    Raises:
        ModelError: when there is none, or it is not of that model.
    """
    model = ModelFolder(Path(source.name))
    folder = exported_itself(source) or ExportedFolder(model.root / "exported")
    if not folder.exists:
        raise ModelError(
            f"model '{source.name}': no exported folder, and none in {folder.root}; write one "
            f"with `clipray export --model {source.name} --output FOLDER`, or use --backend torch"
        )
    if folder.root != model.root and model.manifest.is_file():
        expected = read_json(ModelManifest, model.manifest).identity
        for name, manifest in folder.read().items():
            expected.require(manifest.identity, f"{folder.root}: its {name} tower")
    return folder
