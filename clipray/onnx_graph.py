"""A tower of a model as an ONNX file.

Normalisation of the pixels and of the vectors are part of the graph, and the batch may be of any
size. Folders and manifests are not known here.
"""

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipray.clip import ClipModel
from clipray.ending import Ending
from clipray.pixels import Normaliser
from clipray.texts import encode_cut, ending_of

MAX_FILE_BYTES = 1_900_000_000  # protobuf ends at 2 GiB; weights beyond go to a file beside
MAX_BATCH = 65_536

Dimensions = Mapping[int, Any]


def write_image_graph(model: ClipModel, path: Path, dtype: torch.dtype) -> None:
    """Pixels (n, 3, H, W) uint8 → vectors (n, dim) float32 of unit length."""
    height, width = np.broadcast_to(model.preprocess["size"], 2).tolist()
    example = torch.zeros((2, 3, height, width), dtype=torch.uint8)
    graph = _ImageGraph(_converted(model.module, dtype), model.preprocess, dtype)
    _write(graph, "pixels", example, {0: _batch()}, path)


def write_text_graph(model: ClipModel, path: Path, dtype: torch.dtype) -> None:
    """Tokens (n, length) int64 → vectors (n, dim) float32 of unit length.

    The length is any up to the model's context where texts may be cut, else the whole context.
    """
    ending = ending_of(model.module)
    tokens = model.tokenize(["a", "a b c"])  # (2, context length)
    example = ending.cut(tokens) if ending else tokens
    length = {1: torch.export.Dim("length", min=2, max=tokens.shape[1])} if ending else {}
    graph = _TextGraph(_converted(model.module, dtype), ending)
    _write(graph, "tokens", example, {0: _batch()} | length, path)


def quantise(path: Path, target: Path) -> None:
    """Matrix products in 8 bits, activations scaled as they come; `path` is in fp32.

    Weights keep to 7 bits: with 8, processors without VNNI overflow.
    """
    logging.getLogger().disabled, before = True, logging.getLogger().disabled
    try:
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=len(files_of(path)) > 1,
        )
    finally:
        logging.getLogger().disabled = before


def files_of(path: Path) -> list[Path]:
    """An ONNX file, and the file of its weights if it has one."""
    return sorted(path.parent.glob(f"{path.name}*"))


class _ImageGraph(nn.Module):
    def __init__(self, module: Any, preprocess: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self._module, self._dtype = module, dtype
        self._normalise = Normaliser(preprocess, torch.device("cpu"))

    def forward(self, pixels: Tensor) -> Tensor:
        features = self._module.encode_image(self._normalise(pixels).to(self._dtype))
        return normalize(features.float(), dim=-1)


class _TextGraph(nn.Module):
    def __init__(self, module: Any, ending: Ending | None) -> None:
        super().__init__()
        self._module, self._ending = module, ending

    def forward(self, tokens: Tensor) -> Tensor:
        if self._ending:
            features = encode_cut(self._module, tokens)
        else:
            features = self._module.encode_text(tokens)
        return normalize(features.float(), dim=-1)


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module if dtype is torch.float32 else copy.deepcopy(module).to(dtype)


def _batch() -> Any:
    return torch.export.Dim("n", min=1, max=MAX_BATCH)


def _write(
    graph: nn.Module, name: str, example: Tensor, dimensions: Dimensions, path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own insides
        program: Any = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=(dimensions,),
            input_names=[name],
            output_names=["vectors"],
            verbose=False,
        )
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(path, external_data=size > MAX_FILE_BYTES)
    _strip(path)


def _strip(path: Path) -> None:
    """Remove the exporter's notes on where in which source file each node comes from."""
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, model.graph):
        del part.metadata_props[:]
    onnx.save(model, path)
