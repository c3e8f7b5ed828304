"""An open_clip model with its tokenizer, preprocessing and identity, and the folder it lives in.

Models come from an open_clip name with a pretrained tag or weights file, or from a model folder;
a folder written here is what vanilla open_clip opens as `local-dir:FOLDER`. How a model is run is
not known here.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file
from torch import Tensor, nn

from clipray.errors import DamagedError, InputError, ModelError
from clipray.manifest import (
    TOWER_FILE,
    ModelFolder,
    ModelIdentity,
    ModelManifest,
    ModelSource,
    digest,
    read_tree,
    write_json,
)
from clipray.preprocess import OWN, PreprocessConfig

Tokenizer = Callable[[Sequence[str]], Tensor]

DEFAULT_SIDE = 224  # of a picture, where a `model_cfg` says nothing


@dataclass(frozen=True)
class ClipModel:
    """A model ready to run or to train.

    Attributes:
        module: open_clip's module, fp32, in evaluation mode.
        tokenize: texts → (n, context length) int64.
        architecture: open_clip's `model_cfg`.
        preprocess: open_clip's `preprocess_cfg`.
        source: where it was loaded from.
    """

    module: nn.Module
    tokenize: Tokenizer
    architecture: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    source: ModelSource

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.architecture["embed_dim"])

    def identity(self) -> ModelIdentity:
        """Checksums of what decides the vectors; reads all weights."""
        return ModelIdentity(
            name=_display_name(self.source),
            dim=self.dim,
            weights=_digest_weights(self.module),
            preprocess=digest(self.preprocess),
            tokenizer=digest(_describe_tokenizer(self.tokenize)),
        )


def load(source: ModelSource, preprocess: PreprocessConfig = OWN) -> ClipModel:
    """Load a model with its weights.

    Args:
        source: which model.
        preprocess: what is to differ from its own way; another size resizes its positions.

    Raises:
        ModelError: unknown name or tag, missing or unusable weights.
    """
    folder = Path(source.name)
    _require_no_export(folder)
    if ModelFolder(folder).config.is_file():
        name = f"local-dir:{folder.resolve()}"
        return _open(name, source, preprocess, require_pretrained=True)
    _check_name(source.name)
    _check_pretrained(source)
    return _open(source.name, source, preprocess, require_pretrained=True)


def create(source: ModelSource, seed: int, preprocess: PreprocessConfig = OWN) -> ClipModel:
    """Load a model, or make one with random weights where `source` has none.

    Args:
        source: as for `load`; besides, the name may be a JSON file with open_clip's `model_cfg`,
            and without `pretrained` the weights are drawn at random.
        seed: of the random weights.
        preprocess: as for `load`.
    """
    if source.pretrained or ModelFolder(Path(source.name)).weights.is_file():
        return load(source, preprocess)
    torch.manual_seed(seed)
    if not source.name.endswith(".json"):
        _check_name(source.name)
        return _open(source.name, source, preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        config = {"model_cfg": _read_architecture(Path(source.name)), "preprocess_cfg": {}}
        ModelFolder(Path(scratch)).config.write_text(json.dumps(config), encoding="utf-8")
        return _open(f"local-dir:{scratch}", source, preprocess)


def architecture_of(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a model that is not loaded.

    Args:
        name: open_clip model name, model folder, or JSON file with a `model_cfg`.

    Raises:
        ModelError: there is none of that name.
        InputError: the file holds something else.
    """
    folder = Path(name)
    if folder.is_file():
        return _read_architecture(folder)
    if ModelFolder(folder).config.is_file():
        name = f"local-dir:{folder.resolve()}"
    else:
        _check_name(name)
    try:
        return _architecture(name)
    except Exception as error:  # as in `_open`
        raise ModelError(f"model {name}: {_reason(error)}") from error


def save(model: ClipModel, folder: Path, metrics: Mapping[str, float]) -> ModelIdentity:
    """Write a model folder; `folder` exists and is empty.

    Returns:
        the identity of what was written.
    """
    files = ModelFolder(folder)
    save_tokenizer(model, folder)
    weights = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    save_file(weights, files.weights)
    identity = model.identity()
    write_json(files.manifest, ModelManifest(identity=identity, metrics=dict(metrics)))
    return identity


def _open(
    name: str,
    source: ModelSource,
    wanted: PreprocessConfig,
    *,
    require_pretrained: bool = False,
) -> ClipModel:
    try:
        architecture = _architecture(name)
        size = wanted.forced_size(architecture["vision_cfg"].get("image_size", DEFAULT_SIDE))
        module = open_clip.create_model(
            name,
            pretrained=source.pretrained,
            require_pretrained=require_pretrained,
            force_image_size=size,
            force_preprocess_cfg=wanted.forced(),
            weights_only=True,
        )
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises whatever its many loaders raise
        raise ModelError(f"model {_display_name(source)}: {_reason(error)}") from error
    if size is not None:
        architecture["vision_cfg"]["image_size"] = size
    preprocess = json.loads(json.dumps(module.visual.preprocess_cfg))
    return ClipModel(module.eval(), tokenize, architecture, preprocess, source)


def _architecture(name: str) -> dict[str, Any]:
    known = name if ":" in name else name.replace("/", "-")  # as open_clip takes ViT-B/32
    architecture: dict[str, Any] = get_model_config(known)
    told = (architecture or {}).get("text_cfg", {}).get("tokenizer_kwargs") or {}
    if told.get("trust_remote_code"):  # which transformers would do, from files beside the weights
        raise ModelError("its tokenizer asks to run code of its own (trust_remote_code)")
    return architecture


def open_tokenizer(folder: Path, expected: ModelIdentity) -> Tokenizer:
    """The tokenizer that `save_tokenizer` left in a folder.

    Raises:
        ModelError: it cannot be opened, or is not that of the model `expected`.
    """
    name = f"local-dir:{folder.resolve()}"
    try:
        _architecture(name)
        tokenize: Tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # as in `_open`
        raise ModelError(f"{folder}: its tokenizer {_reason(error)}") from error
    if digest(_describe_tokenizer(tokenize)) != expected.tokenizer:
        raise ModelError(f"{folder}: its tokenizer is not that of {expected}; export it again")
    return tokenize


def save_tokenizer(model: ClipModel, folder: Path) -> None:
    """Write what describes a model and its tokenizer, without weights."""
    config = {"model_cfg": model.architecture, "preprocess_cfg": model.preprocess}
    ModelFolder(folder).config.write_text(json.dumps(config, indent=1), encoding="utf-8")
    if hasattr(model.tokenize, "save_pretrained"):
        model.tokenize.save_pretrained(str(folder))


def _require_no_export(folder: Path) -> None:
    if (folder / TOWER_FILE).is_file():
        raise ModelError(f"{folder}: one tower of an exported folder; give {folder.parent}")
    if any(folder.glob(f"*/{TOWER_FILE}")):
        raise ModelError(
            f"{folder}: an exported folder, which has no weights for torch; use --backend onnx, "
            "or give the model that it was exported from"
        )


def _check_name(name: str) -> None:
    if name.startswith("hf-hub:"):
        return
    known = open_clip.list_models()
    if name.replace("/", "-") in known:
        return
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ModelError(
        f"model '{name}': neither an open_clip model name nor a model folder (a folder with "
        f"open_clip_config.json){hint}"
    )


def _check_pretrained(source: ModelSource) -> None:
    if source.name.startswith("hf-hub:"):
        return
    name = source.name.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = f"a weights file or one of {', '.join(tags) or 'no tags'}"
    if not source.pretrained:
        raise ModelError(
            f"model '{source.name}' has no weights: add --pretrained, {known}, or give a model "
            "folder"
        )
    if source.pretrained not in tags and not Path(source.pretrained).is_file():
        raise ModelError(f"--pretrained {source.pretrained}: no such file or tag; give {known}")
    if source.pretrained in tags:
        _require_activations(name, source.pretrained)


def _require_activations(name: str, tag: str) -> None:
    """Weights that were trained with QuickGELU give wrong vectors without it."""
    quick = f"{name}-quickgelu"
    if get_pretrained_cfg(name, tag).get("quick_gelu") and quick in open_clip.list_models():
        raise ModelError(
            f"model '{name}': the weights '{tag}' were trained with QuickGELU, and its vectors "
            f"would be wrong; give --model {quick}"
        )


def _reason(error: Exception) -> str:
    told = " ".join(str(error).split())
    if "Weights only load failed" in told:
        return (
            "its weights file holds more than tensors, and opening that could run code; "
            "convert it to safetensors where you trust it"
        )
    if "Failed to download" in told:
        return (
            "its weights cannot be fetched from the Hugging Face hub, which this machine does not "
            "reach; fetch them elsewhere, and give --pretrained FILE or a model folder"
        )
    return f"cannot be loaded ({told[:300]})"


def _read_architecture(file: Path) -> dict[str, Any]:
    try:
        tree = read_tree(file)
    except DamagedError as error:
        raise InputError(str(error)) from None
    wanted = {"embed_dim", "vision_cfg", "text_cfg"}
    if not wanted <= tree.keys():
        raise InputError(f"{file}: expected open_clip's model_cfg with {sorted(wanted)}")
    return tree


def _display_name(source: ModelSource) -> str:
    name = Path(source.name).name if Path(source.name).exists() else source.name
    return f"{name}/{Path(source.pretrained).name}" if source.pretrained else name


def _digest_weights(module: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _describe_tokenizer(tokenize: Tokenizer) -> dict[str, Any]:
    names = ("context_length", "vocab_size", "clean_fn", "reduction_fn", "strip_sep_token")
    described = {name: _plain(getattr(tokenize, name, None)) for name in names}
    return {"kind": type(tokenize).__name__} | described


def _plain(value: Any) -> Any:
    return getattr(value, "__name__", value)
