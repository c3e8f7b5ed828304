"""Find images by text, text by images and images by images, on Ray.

Four verbs, four folders: `train` writes a model folder, `embed` an embeddings folder, `index` an
index folder, `serve` answers from it. The verbs meet only on disk.

Floors, imports only go down:

6. `cli`, `demo`
5. `serve`, `paddle`, `evaluate`, `search`
4. `train`, `embed`, `index`, `export`, `client`; `fleet`, `nodes`, `desk`, and `cluster`, the one
   place that starts Ray
3. `part`, `training`, `account`; `encoder`, `prepare`, `rows`; `torch_encoder`, `onnx_encoder`,
   `onnx_graph`
2. `clip`, `dataset`, `query`, `embeddings`, `packed`, `probe`
1. `sources`, `shards`, `samples`, `masks`, `exported`, `pixels`; `manifest`, `images`, `texts`,
   `tar`, `parquet`, `filters`, `report`, `tally`
0. `config`, `matches`, `storage`, `uri`, `errors`

`index` has floors of its own, from its commands down to `index.manifest`; all but the commands and
`index.tasks` lies below Ray. So has `training`, from `training.rank` down to `training.peers`, and
it lies below Ray as a whole.
"""

__version__ = "0.1.0"
