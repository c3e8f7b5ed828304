"""fp32 open_clip, as its README shows it: what every contestant's vectors are compared with.

Run by the peers' Python: SHARDS OUTPUT WEIGHTS. Writes vectors that are not rounded to float16.
"""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import torch
import webdataset as wds
from PIL import Image
from plain_loop import save  # it stands beside this file


@torch.inference_mode()
def main() -> None:
    shards, output, weights = sys.argv[1:]
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=weights)
    keys, vectors = [], []
    tars = sorted(str(path) for path in Path(shards).glob("*.tar"))
    for batch in wds.WebDataset(tars, shardshuffle=False).batched(64, collation_fn=list):
        images = [preprocess(Image.open(BytesIO(sample["jpg"]))) for sample in batch]
        keys += [sample["__key__"] for sample in batch]
        vectors.append(model.eval().encode_image(torch.stack(images), normalize=True).numpy())
    save(Path(output), keys, np.concatenate(vectors))


if __name__ == "__main__":
    main()
