"""`Arch.name`, `Global.pretrained_model` and the shapes of the file, as a model to load."""

import logging
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg

from clipray import clip
from clipray.errors import ConfigError
from clipray.manifest import ModelFolder, ModelSource, read_tree
from clipray.paddle.clip_file import ClipFile, DataLoaderSection
from clipray.paddle.transforms import preprocess_of
from clipray.preprocess import OWN, PreprocessConfig

log = logging.getLogger(__name__)

MODELS = {
    "CLIP_vit_base_patch32_224_with_TextEncoder": "ViT-B-32",
    "CLIP_vit_base_patch16_224_with_TextEncoder": "ViT-B-16",
    "CLIP_vit_large_patch14_224_with_TextEncoder": "ViT-L-14",
    "CLIP_vit_large_patch16_224_with_TextEncoder": "ViT-L-16",
}
PADDLE_SUFFIXES = (".pdparams", ".pdopt", ".pdmodel", ".pdiparams", ".pdstates")
MODEL_FOLDER = "model"  # in Global.output_dir
DEFAULT_CONTEXT = 77  # tokens, where a model_cfg says nothing
KEY = "Global.pretrained_model"


def refuse_paddle(key: str, given: str) -> None:
    """Refuse weights in Paddle's format.

    Raises:
        ConfigError: telling what to give instead.
    """
    if given.endswith(PADDLE_SUFFIXES):
        raise ConfigError(
            f"{key}: found {given}, weights of PaddlePaddle, which torch does not read; give an "
            "open_clip tag such as openai or laion2b_s34b_b79k, a .pt or .safetensors file, a "
            f"model folder, or null (-o {key}=…)"
        )


def begun_from(file: ClipFile) -> ModelSource:
    """The model that training begins with; without `pretrained_model`, random weights.

    Raises:
        ConfigError: weights that are not there, of Paddle, or of another architecture; or an
            `embedding_size` that is not the model's.
        ModelError: no such architecture.
    """
    source = _source(file, file.Global.pretrained_model)
    _require_dim(file, source)
    return source


def finished(file: ClipFile) -> tuple[ModelSource, PreprocessConfig]:
    """The model that is used as it is: `pretrained_model`, or what training has made.

    Returns:
        the model, and how pictures are made ready for it.

    Raises:
        ConfigError: as `begun_from`, or there is none.
    """
    given, made = file.Global.pretrained_model, Path(file.Global.output_dir) / MODEL_FOLDER
    if given is None and not ModelFolder(made).config.is_file():
        raise ConfigError(
            f"{KEY}: found null, and no model in {made}; train first, or give an open_clip tag, a "
            "weights file or a model folder"
        )
    source, preprocess = _source(file, given or str(made)), preprocessing(file)
    _require_dim(file, source)
    _tell_change(source, preprocess)
    return source, preprocess


def preprocessing(file: ClipFile) -> PreprocessConfig:
    """How the file has pictures made ready, which is part of a model here.

    Raises:
        ConfigError: what the sections say does not agree.
    """
    found = _transforms(file.DataLoader) if file.DataLoader else OWN
    shape = file.Global.image_shape
    if shape is None:
        return found
    if found.forced_size(shape[1:]) is not None:
        raise ConfigError(
            f"Global.image_shape: found {list(shape)}, but the transforms make pictures of size "
            f"{found.size}, height and width; give both one size"
        )
    return found.model_copy(update={"size": shape[1:]})


def context_length(source: ModelSource) -> int:
    """Tokens that the model reads of a text."""
    text = clip.architecture_of(source.name)["text_cfg"]
    return int(text.get("context_length", DEFAULT_CONTEXT))


def _source(file: ClipFile, given: str | None) -> ModelSource:
    name = MODELS.get(file.Arch.name, file.Arch.name)
    if given is None:
        return ModelSource(name=name)
    refuse_paddle(KEY, given)
    if ModelFolder(Path(given)).config.is_file():
        _require_like(given, name)
        return ModelSource(name=given)
    return ModelSource(name=_for_tag(name, given), pretrained=given)


def _require_dim(file: ClipFile, source: ModelSource) -> None:
    dim = clip.architecture_of(source.name)["embed_dim"]
    for key, losses in (("Train", file.Loss.Train), ("Eval", file.Loss.Eval)):
        for number, item in enumerate(losses):
            found = item.ContrastiveLoss.embedding_size
            if found != dim:
                raise ConfigError(
                    f"Loss.{key}.{number}.ContrastiveLoss.embedding_size: found {found}, but "
                    f"vectors of {file.Arch.name} have {dim} numbers"
                )


def _tell_change(source: ModelSource, wanted: PreprocessConfig) -> None:
    """Warn where a model folder's pictures were made ready in another way than the file's."""
    path = ModelFolder(Path(source.name)).config
    if not path.is_file():
        return
    own = read_tree(path).get("preprocess_cfg", {})
    other = {key: value for key, value in wanted.forced().items() if own.get(key, value) != value}
    size = wanted.forced_size(own["size"]) if "size" in own else None
    if size is not None:
        other["size"] = size
    if other:
        log.warning(
            "%s: its pictures were made ready in another way; the file is obeyed: %s",
            source.name, other,
        )  # fmt: skip


def _transforms(data: DataLoaderSection) -> PreprocessConfig:
    found: dict[str, Any] = {}
    for name, section in (("Train", data.Train), ("Eval", data.Eval)):
        if section is None or not section.dataset.transform:
            continue
        where = f"DataLoader.{name}.dataset.transform"
        there = preprocess_of(section.dataset.transform, where)
        if found and there != found:
            raise ConfigError(
                f"{where}: {_difference(there, found)} in that of Train; a model has one way to "
                "make pictures ready, give both the same"
            )
        found = there
    return PreprocessConfig(**found)


def _difference(these: dict[str, Any], those: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {these.get(key)}, but {those.get(key)}"
        for key in sorted(these.keys() | those.keys())
        if these.get(key) != those.get(key)
    )


def _for_tag(name: str, given: str) -> str:
    """The name whose activations are those that the weights of a tag were trained with."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if given in tags:
        quick = f"{name}-quickgelu"
        wants_quick = bool(get_pretrained_cfg(name, given).get("quick_gelu"))
        return quick if wants_quick and quick in open_clip.list_models() else name
    if not Path(given).is_file():
        raise ConfigError(
            f"{KEY}: found {given}, which is no file and no model folder; open_clip's tags for "
            f"{name} are {', '.join(tags) or 'none'}"
        )
    return name


def _require_like(folder: str, name: str) -> None:
    """Refuse a model folder of another architecture; image sizes and activations may differ."""
    found, wanted = (_measures(clip.architecture_of(of)) for of in (folder, name))
    if found != wanted:
        raise ConfigError(
            f"{KEY}: {folder} has {_difference(found, wanted)} by Arch.name; give Arch.name its "
            "architecture, as an open_clip model name or a JSON file with the model_cfg"
        )


def _measures(architecture: dict[str, Any]) -> dict[str, Any]:
    towers = {
        f"{tower}.{key}": value
        for tower in ("vision_cfg", "text_cfg")
        for key, value in architecture[tower].items()
    }
    towers.pop("vision_cfg.image_size", None)
    return towers | {"embed_dim": architecture["embed_dim"]}
