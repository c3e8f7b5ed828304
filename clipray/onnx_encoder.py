"""An exported model, run by ONNX Runtime.

Files are compared with their checksums before they are opened; nothing in them is code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from clipray import clip, texts
from clipray.encoder_options import Decode
from clipray.errors import DamagedError, ModelError
from clipray.exported import ExportedFolder, ExportPrecision, TowerManifest
from clipray.manifest import Modality
from clipray.pixels import Pixels, pixel_reader

Vectors = NDArray[np.float32]

TOGETHER = 8  # texts of like length that a CPU runs at once: less padding, weights still shared
MOST_TOGETHER = 4096  # on a GPU


class OnnxTower:
    """One ONNX graph: an array of n inputs → (n, dim) float32 unit vectors; thread-safe.

    Args:
        path: the ONNX file.
        precision: of its weights.
        device: `cpu`, `cuda`, `cuda:1`.

    Raises:
        DamagedError: when it is no such graph.
    """

    def __init__(self, path: Path, precision: ExportPrecision, device: str = "cpu") -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _level(precision)
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised as well
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, _providers(device))
            (self._input,), (self._output,) = (
                self._session.get_inputs(),
                self._session.get_outputs(),
            )
        except Exception as error:  # ONNX Runtime raises a class of its own for each cause
            told = " ".join(str(error).split())[:300]
            raise DamagedError(f"{path}: ONNX Runtime cannot open it ({told})") from error

    def __call__(self, batch: NDArray[np.generic]) -> Vectors:
        """Run the graph."""
        vectors: Vectors
        (vectors,) = self._session.run([self._output.name], {self._input.name: batch})
        return vectors


class OnnxEncoder:
    """Images and texts to unit vectors, as `encoder.Encoder` says.

    Args:
        folder: with one tower or both.
        device: where they run.
        precision: which variant; `auto` is the most precise one. Texts run in fp32 beside int8
            images.
        decode: how image files are read.

    Raises:
        ModelError: a variant or device that is not there.
        DamagedError: a file that was changed.
    """

    def __init__(
        self,
        folder: ExportedFolder,
        device: str = "cpu",
        precision: str = "auto",
        decode: Decode = "exact",
    ) -> None:
        self._folder, self._towers = folder, folder.read()
        first = next(iter(self._towers.values()))
        self.identity = first.identity
        self.preprocess: Mapping[str, Any] = first.preprocess
        self.pixels = pixel_reader(first.preprocess, decode)
        self._run = {
            name: _open(folder, manifest, device, precision)
            for name, manifest in self._towers.items()
        }
        self._together = TOGETHER if device == "cpu" else MOST_TOGETHER
        if "text" in self._towers:
            self._ending = self._towers["text"].ending
            self._tokenize = clip.open_tokenizer(folder.tower("text").root, self.identity)

    def gather(self, pixels: Sequence[Pixels]) -> Pixels:
        """As the protocol says."""
        return np.stack(pixels)

    def encode_images(self, pixels: Sequence[Pixels] | Pixels) -> Vectors:
        """As the protocol says."""
        return self._tower("image")(pixels if isinstance(pixels, np.ndarray) else np.stack(pixels))

    def encode_texts(self, given: Sequence[str], /) -> Vectors:
        """As the protocol says."""
        run, ending = self._tower("text"), self._ending
        tokens = self._tokenize([texts.clean(text) for text in given])
        if ending is None:
            return run(tokens.numpy())
        order = ending.find(tokens).argsort()
        alike = torch.split(tokens[order], self._together)
        vectors = np.concatenate([run(ending.cut(part).numpy()) for part in alike])
        back: Vectors = vectors[order.argsort().numpy()]
        return back

    def _tower(self, name: Modality) -> OnnxTower:
        self._folder.require(name)
        return self._run[name]


def choose_device(name: str) -> str:
    """The device that `name` stands for; `auto` takes a GPU where ONNX Runtime can use one.

    Raises:
        ModelError: when it cannot be used.
    """
    offered = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if name == "auto":
        return "cuda" if offered and torch.cuda.is_available() else "cpu"
    if name == "cpu" or (name.startswith("cuda") and offered):
        return name
    raise ModelError(
        f"device '{name}': this ONNX Runtime has no provider for it; use --device cpu, or "
        "install onnxruntime-gpu for a GPU of NVIDIA"
    )


def _open(folder: ExportedFolder, manifest: TowerManifest, device: str, wanted: str) -> OnnxTower:
    files = folder.tower(manifest.tower)
    precision = files.choose(manifest, wanted)
    return OnnxTower(files.verify(manifest, precision), precision, device)


def _level(precision: ExportPrecision) -> Any:
    levels = onnxruntime.GraphOptimizationLevel
    if precision == "fp16":
        return levels.ORT_ENABLE_EXTENDED  # with all, ONNX Runtime 1.32 dies of a text tower
    return levels.ORT_ENABLE_ALL


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": number or "0"}), "CPUExecutionProvider"]
