"""Find images by text, text by images and images by images, on Ray.

Four verbs, four folders: `train` writes a model folder, `embed` an embeddings folder, `index` an
index folder, `serve` answers from it. The verbs meet only on disk.

Floors, imports only go down; pyproject has the exact order:

6. `__main__`, `cli`; `commands`; `demo`, `doctor`, `pipeline` with its `steps` and `sections`
5. `serve`, `evaluate`, `paddle`, `capacity`; `search`
4. `train`, `embed`, `index`, `export`, `client`; `fleet`; `room`, `lent`, `ranks`; `nodes`, `desk`,
   `account`, and `cluster`, the one place that starts Ray
3. `part`, `training`; `rows`, `encoder`, `decode_pool`; `torch_encoder`, `onnx_encoder`,
   `onnx_graph`, `prepare`
2. `clip`, `dataset`, `query`, `embeddings`, `packed`, `probe`; `sources`, `shards`, `exported`,
   `pixels`
1. `samples`, `masks`, `duplicates`; `manifest`, `images`, `texts`, `tar`, `parquet`, `filters`,
   `report`, `tally`, `preprocess`, `encoder_options`, `ending`
0. `config`, `matches`, `storage`, `uri`, `outputs`, `forks`, `errors`

`index`, `evaluate`, `doctor`, `capacity` and `training` have floors of their own. Of `index`, all
but the commands and `index.tasks` lies below Ray, and so does `training` as a whole.
"""

__version__ = "0.1.0"
