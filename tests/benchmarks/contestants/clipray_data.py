"""clipray's own reading, decoding and writing, with the model replaced by a slice; without Ray.

Run as a module: SHARDS OUTPUT MODEL.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from clipray import clip
from clipray.dataset import find_shards
from clipray.encoder import Pixels, TorchEncoder, Vectors
from clipray.manifest import EmbeddingsFolder, ModelSource
from clipray.part import PartPlan, PartSettings, embed_shard

DIM = 512


class Slice(TorchEncoder):
    """Decodes and normalises as ever; the vector is a slice of that."""

    def encode_images(self, pixels: Sequence[Pixels]) -> Vectors:
        normal = self.normalise(torch.from_numpy(np.stack(pixels)))
        return normal.flatten(1)[:, :DIM].numpy()


def main() -> None:
    shards, output, model = sys.argv[1:]
    encoder = Slice(clip.load(ModelSource(name=model)), torch.device("cpu"), torch.float32)
    folder = EmbeddingsFolder(Path(output))
    for number, shard in enumerate(find_shards([shards]).shards):
        embed_shard(PartPlan(number, shard), PartSettings(("image",)), folder, encoder)


if __name__ == "__main__":
    main()
