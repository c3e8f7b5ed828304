"""Find images by text, text by images and images by images, on Ray.

Four verbs, four folders: `train` writes a model folder, `embed` an embeddings folder, `index` an
index folder, `serve` answers from it. The verbs meet only on disk.

Floors, imports only go down:

6. `cli`
5. `demo`; `serve`, `evaluate`
4. `train`, `embed`, `index`, `client`, over `cluster` (the one place that starts Ray)
3. `loader`, `encoder`, `shard`
2. `clip`, `dataset`, `segment`, `loss`, `optim`
1. `manifest`, `images`, `query`, `augment`, `tar`
0. `errors`, `config`, `matches`, `storage`
"""

__version__ = "0.1.0"
