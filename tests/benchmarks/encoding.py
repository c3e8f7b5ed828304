"""What texts, images and image files cost, against open_clip run eagerly.

`python -m tests.benchmarks.encoding` measures interleaved, in CPU time, and writes a dated table.
Without --model the weights are random: that changes no time, but cosines of trained weights are
those that count. Tokenising is part of both sides, decoding of neither.
"""

import argparse
import logging
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

from clipray import __version__, clip
from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.export import ExportConfig, export
from clipray.manifest import ModelSource
from clipray.pixels import Normaliser, pixel_reader
from clipray.probe import drawn_pictures
from tests.test_images import encoded
from tests.test_pixels import photo

CAPTIONS = (
    "a photo of a brown dog running over fresh snow",
    "two children playing football in the park at dusk",
    "red vintage car parked on the street",
    "a bowl of soup with bread and green herbs on top",
    "old stone bridge over a quiet river",
    "the skyline of a big city at night seen from a hill",
    "a cat sleeping on a blue sofa",
    "fresh vegetables on a wooden market stall in the morning sun",
) * 4
SIZES = ((256, 256), (341, 256), (640, 480), (1600, 1200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; ViT-B-32, random, if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or random_model(Path(scratch) / "model")
        ours = open_all(folder, Path(scratch) / "exported")
        lines = [*header(args), *sections(folder, ours, args)]
    name = f"encoding_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.md"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))  # noqa: T201


def random_model(folder: Path) -> Path:
    folder.mkdir()
    clip.save(clip.create(ModelSource(name="ViT-B-32"), seed=0), folder, {})
    return folder


def open_all(model: Path, folder: Path):
    """Encoders by precision; int8 is run by ONNX Runtime, and so is `onnx`, in fp32."""
    export(ExportConfig(model=str(model), output=folder, precision=("fp32", "int8"), samples=16))
    torch_way, onnx_way = ModelSource(name=str(model)), ModelSource(name=str(folder))
    options = EncoderOptions(device="cpu")
    changed = lambda precision: options.model_copy(update={"precision": precision})  # noqa: E731
    return {
        "clipray fp32": open_encoder(torch_way, changed("fp32")),
        "clipray bf16": open_encoder(torch_way, changed("bf16")),
        "clipray onnx fp32": open_encoder(onnx_way, changed("fp32")),
        "clipray onnx int8": open_encoder(onnx_way, changed("int8")),
    }


def sections(folder: Path, ours, args):
    plain = clip.load(ModelSource(name=str(folder)))
    half = replace(plain, module=open_clip.create_model(f"local-dir:{folder}").bfloat16().eval())
    theirs = {"open_clip fp32": plain, "open_clip bf16 weights": half}
    for count, repeats in ((1, 8), (32, 1)):
        runs = text_runs(theirs, ours, CAPTIONS[:count])
        yield from table(f"Texts, a batch of {count}", runs, args.rounds, repeats)
    pixels = drawn_pictures(args.images, pixel_reader(plain.preprocess))
    runs = image_runs(theirs, ours, pixels)
    yield from table(f"Images, a batch of {len(pixels)}", runs, args.rounds)
    encode = ours["clipray fp32"].encode_images
    for size in SIZES:
        title = f"JPEG files, 8 of {size[0]} × {size[1]}"
        runs = reader_runs(plain.preprocess, size)
        yield from table(title, runs, 3 * args.rounds, judge=encode)


def text_runs(theirs, ours, texts):
    runs = {name: partial(eager_texts, model, texts) for name, model in theirs.items()}
    whole = {name: encoder for name, encoder in ours.items() if "int8" not in name}
    return runs | {name: partial(encoder.encode_texts, texts) for name, encoder in whole.items()}


def image_runs(theirs, ours, pixels):
    runs = {name: partial(eager_images, model, pixels) for name, model in theirs.items()}
    return runs | {name: partial(encoder.encode_images, pixels) for name, encoder in ours.items()}


def reader_runs(preprocess, size):
    files = [encoded(photo(*size, seed), "JPEG", quality=88) for seed in range(8)]
    read = lambda reader: [reader(data) for data in files]  # noqa: E731
    return {
        f"decode {way}": partial(read, pixel_reader(preprocess, way)) for way in ("exact", "fast")
    }


def eager_texts(model: clip.ClipModel, texts):
    with torch.inference_mode():
        return normalize(model.module.encode_text(model.tokenize(texts)).float(), dim=-1).numpy()


def eager_images(model: clip.ClipModel, pixels):
    with torch.inference_mode():
        batch = Normaliser(model.preprocess, torch.device("cpu"))(
            torch.from_numpy(np.stack(pixels))
        )
        batch = batch.to(model.module.logit_scale.dtype)
        return normalize(model.module.encode_image(batch).float(), dim=-1).numpy()


def table(title: str, runs, rounds: int, repeats: int = 1, judge=lambda found: found):
    """One line a way; the first is what the others are compared with."""
    expected, *_ = vectors = [judge(run()) for run in runs.values()]
    taken = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            for _ in range(repeats):
                run()
            taken[name].append(1e3 * (time.process_time() - began) / repeats)
    first, *_ = taken.values()
    yield from (
        f"## {title}",
        "",
        "| way | least cosine | CPU ms, median | min | max | times faster, median | min | max |",
        "|---|---|---|---|---|---|---|---|",
    )
    for (name, ms), found in zip(taken.items(), vectors, strict=True):
        faster = [one / other for one, other in zip(first, ms, strict=True)]
        cosine = (expected * found).sum(axis=1).min()
        yield (
            f"| {name} | {cosine:.5f} | {statistics.median(ms):.1f} | "
            f"{min(ms):.1f} | {max(ms):.1f} | {statistics.median(faster):.2f} | "
            f"{min(faster):.2f} | {max(faster):.2f} |"
        )
    yield ""


def header(args: argparse.Namespace) -> list[str]:
    model = args.model.name if args.model else "ViT-B-32, random weights"
    return [
        f"# Encoding on a CPU, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}, torch {torch.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}, open_clip {open_clip.__version__}, Pillow "
        f"{Image.__version__}, Python {platform.python_version()}, {platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}), {args.threads} thread; {model}; "
        f"{args.rounds} interleaved rounds, CPU time. open_clip runs eagerly at its full context "
        "of 77; the texts are captions of 6 to 12 words, tokenising included.",
        "",
    ]


if __name__ == "__main__":
    main()
