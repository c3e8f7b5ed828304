"""clipray's own reading, decoding and writing, with the model replaced by a slice; without Ray.

Run as a module: SHARDS OUTPUT MODEL [fast].
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipray import clip
from clipray.dataset import find_shards
from clipray.embeddings import EmbeddingsFolder
from clipray.encoder_options import Decode
from clipray.manifest import ModelSource
from clipray.part import PartPlan, Workshop, embed_shard
from clipray.pixels import Pixels, pixel_reader
from clipray.prepare import PartSettings
from clipray.torch_encoder import Vectors

DIM = 512


class Slice:
    """Decodes as ever; the vector is a slice of the pixels, which the encoder would normalise."""

    def __init__(self, model: clip.ClipModel, decode: Decode = "exact") -> None:
        self.identity = model.identity()
        self.pixels = pixel_reader(model.preprocess, decode)

    def gather(self, pixels: Sequence[Pixels]) -> Pixels:
        return np.stack(pixels)

    def encode_images(self, pixels: Sequence[Pixels]) -> Vectors:
        return np.asarray(pixels).reshape(len(pixels), -1)[:, :DIM].astype(np.float32) / 255


def main() -> None:
    shards, output, model, *decode = sys.argv[1:]
    encoder = Slice(clip.load(ModelSource(name=model)), *decode)
    shop = Workshop(PartSettings(("image",)), EmbeddingsFolder(Path(output)), encoder)
    for number, shard in enumerate(find_shards([shards]).shards):
        embed_shard(PartPlan(number, shard), shop)


if __name__ == "__main__":
    main()
