"""What someone writes who knows the tools: webdataset, a DataLoader and open_clip, in one file.

Run by the peers' Python: SHARDS OUTPUT WEIGHTS WORKERS (bf16|fp32). Workers decode, resize and
batch to uint8; the main process normalises and encodes.
"""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

BATCH = 64


def main() -> None:
    shards, output, weights, workers, precision = sys.argv[1:]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights)
    model = model.to(dtype).eval()
    geometry = Compose(
        [t for t in preprocess.transforms if not isinstance(t, ToTensor | Normalize)]
    )
    normalize = next(t for t in preprocess.transforms if isinstance(t, Normalize))
    keys, vectors = [], []
    for batch_keys, pixels in batches(shards, geometry, int(workers)):
        keys += batch_keys
        vectors.append(encode(model, normalize(pixels.float().div_(255)).to(dtype)))
    save(Path(output), keys, np.concatenate(vectors))


def batches(shards, geometry, workers):
    """Keys and (n, 3, H, W) uint8."""

    def read(sample):
        image = geometry(Image.open(BytesIO(sample["jpg"])))
        return sample["__key__"], torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def collate(samples):
        names, images = zip(*samples, strict=True)
        return list(names), torch.stack(images)

    tars = sorted(str(path) for path in Path(shards).glob("*.tar"))
    dataset = wds.WebDataset(tars, shardshuffle=False, empty_check=False).map(read)
    dataset = dataset.batched(BATCH, collation_fn=collate)
    return DataLoader(dataset, batch_size=None, num_workers=workers)


@torch.inference_mode()
def encode(model, images):
    return model.encode_image(images, normalize=True).float().numpy().astype(np.float16)


def save(output, keys, vectors):
    for name in ("img_emb", "metadata"):
        (output / name).mkdir(parents=True)
    np.save(output / "img_emb" / "img_emb_0.npy", vectors)
    pq.write_table(pa.table({"image_path": keys}), output / "metadata" / "metadata_0.parquet")


if __name__ == "__main__":
    main()
