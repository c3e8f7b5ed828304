"""clipray's own reading, decoding and writing, with the model replaced by a slice; without Ray.

Run as a module: SHARDS OUTPUT MODEL [fast].
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import Normalize

from clipray import clip
from clipray.dataset import find_shards
from clipray.embeddings import EmbeddingsFolder
from clipray.encoder import Pixels, TorchEncoder, Vectors
from clipray.manifest import ModelSource
from clipray.part import PartPlan, Workshop, embed_shard
from clipray.prepare import PartSettings

DIM = 512


class Slice:
    """Decodes and normalises as ever; the vector is a slice of that."""

    def __init__(self, model: clip.ClipModel, *decode: str) -> None:
        real = TorchEncoder(model, torch.device("cpu"), torch.float32, *decode)
        self.identity, self.pixels = real.identity, real.pixels
        self._normalise = Normalize(model.preprocess["mean"], model.preprocess["std"], inplace=True)

    def encode_images(self, pixels: Sequence[Pixels]) -> Vectors:
        batch = torch.from_numpy(np.stack(pixels)).float().div_(255)
        return self._normalise(batch).flatten(1)[:, :DIM].numpy()


def main() -> None:
    shards, output, model, *decode = sys.argv[1:]
    encoder = Slice(clip.load(ModelSource(name=model)), *decode)
    shop = Workshop(PartSettings(("image",)), EmbeddingsFolder(Path(output)), encoder)
    for number, shard in enumerate(find_shards([shards]).shards):
        embed_shard(PartPlan(number, shard), shop)


if __name__ == "__main__":
    main()
