"""`clipray paddle predict`: the five modes of PaddleClas's `predictor_clip.py`.

A mode opens the one tower that it needs. That index and query are of one model is told by the
identity that both towers of a model, and every index made with them, carry.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import torch

from clipray.errors import MismatchError
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from clipray.paddle.answers import AnswersReport, Asking
from clipray.paddle.gallery import Gallery, GalleryReport
from clipray.paddle.inference import PredictConfig
from clipray.paddle.lines import find_images, find_texts, read_lines, removed_lines
from clipray.paddle.notes import Notes
from clipray.paddle.stopwatch import Stopwatch
from clipray.paddle.tower import Tower, open_tower
from clipray.paddle.transforms import preprocess_of

DECODE_THREADS = 2


def predict(config: PredictConfig) -> GalleryReport | AnswersReport:
    """Do what `Global.mode` says.

    Raises:
        ConfigError: a key is missing, or says what cannot be done.
        InputError: no such images, texts or index.
        ModelError: no such encoder.
        MismatchError: encoder, index and file do not belong together.
        OutputError: an index folder holds something else.
    """
    notes, watch = Notes(), Stopwatch()
    config.tell_meaningless(notes)
    with threads(config.Global.cpu_num_threads):
        if config.Global.mode.endswith("_index_build"):
            report: GalleryReport | AnswersReport = _build(config, notes, watch)
        else:
            report = _answer(config, notes, watch)
    if config.Global.enable_benchmark:
        device = "cuda" if config.Global.use_gpu else "cpu"
        watch.tell(f"{config.Global.mode} on {device}")
    return report


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many CPU threads inside the block, in torch, ONNX Runtime and Faiss."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    if count:
        _use(count, count)
    try:
        yield
    finally:
        _use(*before)


def _use(torchs: int, faisss: int) -> None:
    torch.set_num_threads(torchs)  # ONNX Runtime takes as many, see `onnx_encoder`
    faiss.omp_set_num_threads(faisss)


def _build(config: PredictConfig, notes: Notes, watch: Stopwatch) -> GalleryReport:
    process, modality = config.IndexProcess, config.encodes
    gallery = Gallery(
        folder=IndexFolder(_index_of(config).resolve()),
        modality=modality,
        method=process.index_method,
        batch_size=process.batch_size,
        threads=DECODE_THREADS,
        watch=watch,
    )
    given = config.given("Global", "infer_imgs" if modality == "image" else "texts")
    if process.index_operation == "remove":
        lines = (
            removed_lines(given, process.delimiter) if modality == "image" else read_lines(given)
        )
        return gallery.remove(lines)
    change = gallery.append if process.index_operation == "append" else gallery.new
    found = find_images(given, process.delimiter) if modality == "image" else find_texts(given)
    return change(found, _tower(config, notes, watch), config.options(notes))


def _answer(config: PredictConfig, notes: Notes, watch: Stopwatch) -> AnswersReport:
    process, place = config.IndexProcess, _index_of(config)
    text = config.encodes == "text"
    given = config.given("Global", "texts" if text else "infer_imgs")
    index = Index.open(place)
    if index.manifest.modality != config.indexed:
        raise MismatchError(
            f"{place}: holds {index.manifest.modality}s, and mode {config.Global.mode} looks for "
            f"{config.indexed}s"
        )
    encoder = _tower(config, notes, watch).encoder
    index.manifest.model.require(encoder.identity, f"{place}: the encoder, prepared as told,")
    asking = Asking(
        index, encoder, process.return_k, config.threshold, config.Global.batch_size, watch
    )
    if text:
        return asking.texts(read_lines(given))
    return asking.images(find_images(given, process.delimiter))


def _tower(config: PredictConfig, notes: Notes, watch: Stopwatch) -> Tower:
    """Open the tower that the mode needs.

    Raises:
        MismatchError: it has another embedding size than the file says.
    """
    key = f"inference_{config.encodes}_encoder_dir"
    place, options = config.given("Global", key), config.options(notes)
    said = preprocess_of(config.PreProcess.transform_ops, "PreProcess.transform_ops")
    with watch.stage("load"):
        tower = open_tower(place, config.encodes, options, said, f"Global.{key}")
    dim = tower.encoder.identity.dim
    for name, size in config.sizes.items():
        if size != dim:
            raise MismatchError(
                f"{name}: found {size}, but the vectors of {place} have {dim} dimensions"
            )
    return tower


def _index_of(config: PredictConfig) -> Path:
    return Path(config.given("IndexProcess", f"{config.indexed}_index_dir"))
