"""Which method is taken and why, and which Faiss index a name stands for."""

import faiss
import pytest

from clipray.errors import ConfigError
from clipray.index.manifest import SearchSettings
from clipray.index.method import (
    EXACT_UP_TO,
    FLAT,
    GRAPH_LISTS,
    choose,
    default_settings,
    graph_of,
    inverted_of,
    new_index,
)

MILLION = 1_000_000
DIM = 32


@pytest.mark.parametrize(
    ("dim", "rows", "shards", "memory", "recall", "method", "why"),
    [
        (512, EXACT_UP_TO, 1, None, 0.95, FLAT, "20000 rows: an exact scan is cheap"),
        (512, EXACT_UP_TO, 8, None, 0.95, FLAT, "20000 rows: an exact scan is cheap"),
        (512, EXACT_UP_TO + 1, 1, None, 0.95, "IVF141,PQ128x4fs", "20001 rows a shard: 4-bit"),
        (512, EXACT_UP_TO + 1, 8, None, 0.95, "IVF141,PQ128x4fs", "2501 rows a shard: 4-bit"),
        (512, 50_000, 50, None, 0.95, FLAT, "1000 rows a shard: an exact scan is cheap"),
        (512, 50_001, 50, None, 0.95, "IVF223,PQ128x4fs", "1001 rows a shard: 4-bit"),
        (512, 100 * MILLION, 1, None, 1.0, FLAT, "recall 1 needs an exact scan"),
        (512, MILLION, 1, None, 0.9, "IVF1000,PQ128x4fs", "at recall 0.9; 69 MiB a shard"),
        (512, MILLION, 4, None, 0.9, "IVF1000,PQ128x4fs", "at recall 0.9; 17 MiB a shard"),
        (512, MILLION, 1, 60 << 20, 0.9, "IVF1000,PQ64x4fs", "codes of 8 dimensions"),
        (512, MILLION, 1, 25 << 20, 0.9, "IVF1000,PQ32x4fs", "codes of 16 dimensions"),
        (512, MILLION, 1, 1 << 20, 0.9, "IVF1000,PQ32x4fs", "the 1 MiB allowed: use more shards"),
        (512, MILLION, 20, 1 << 20, 0.9, "IVF1000,PQ32x4fs", "50000 rows a shard"),
        (1000, MILLION, 1, 70 << 20, 0.9, "IVF1000,PQ125x4fs", "codes of 8 dimensions"),
        (12, MILLION, 1, None, 0.9, "IVF1000,PQ3x4fs", "codes of 4 dimensions"),
        (30, MILLION, 1, None, 0.9, "IVF1000,SQ8", "30 dimensions fit no PQ"),
        (4, GRAPH_LISTS**2 - 1, 1, None, 0.9, "IVF16383,PQ1x4fs", "at recall 0.9"),
        (4, GRAPH_LISTS**2, 1, None, 0.9, "IVF16384_HNSW32,PQ1x4fs", "at recall 0.9"),
    ],
)
def test_auto_takes_what_fits_and_says_why(dim, rows, shards, memory, recall, method, why):
    choice = choose(dim, rows, shards, memory, recall)
    assert choice.method == method
    assert why in choice.why


@pytest.mark.parametrize("dim", [4, 12, 30, 32, 512, 768, 1152])
def test_faiss_can_make_what_auto_takes(dim):
    for rows in (EXACT_UP_TO + 1, MILLION, GRAPH_LISTS**2):
        index = new_index(choose(dim, rows, 1, None, 0.95).method, dim, rows)
        assert (index.d, index.ntotal, index.metric_type) == (dim, 0, faiss.METRIC_INNER_PRODUCT)


def test_ivf_takes_its_lists_from_the_rows():
    assert new_index("IVF", DIM, 10_000).nlist == 400
    assert new_index("IVF", DIM, 3).nlist == 3
    assert new_index("IVF", DIM, 0).nlist == 1


@pytest.mark.parametrize(
    "method", ["HNWS32", "", "PQ7", "LSH", "IMI2x4,Flat", "IDMap,Flat", "IDMap2,HNSW32", "NSG32"]
)
def test_an_unusable_method_is_a_wrong_option(method):
    with pytest.raises(ConfigError, match=f"method '{method}'"):
        new_index(method, DIM, 100)


@pytest.mark.parametrize(
    ("method", "lists", "is_graph", "rescore"),
    [
        ("HNSW32", 0, True, 1),
        ("HNSW32_SQfp16", 0, True, 10),
        ("PCA16,HNSW32", 0, True, 10),
        ("IVF", 400, False, 1),
        ("IVF64,Flat", 64, False, 1),
        ("PCA16,IVF64,Flat", 64, False, 10),
        ("OPQ8_16,IVF64,PQ8x4fs", 64, False, 10),
        ("IVF64_HNSW32,PQ8x4fs", 64, False, 10),
        ("IVF64,SQ8,RFlat", 64, False, 10),
        ("IVF64,RaBitQ", 64, False, 10),
        ("IVF3,Flat", 3, False, 1),
        ("PQ8x4fs", 0, False, 10),
        ("SQ8", 0, False, 10),
        ("RaBitQ", 0, False, 10),
    ],
)
def test_what_is_inside_decides_the_first_settings(method, lists, is_graph, rescore):
    index = new_index(method, DIM, 10_000)
    inverted = inverted_of(index)
    assert (inverted.nlist if inverted else 0) == lists
    assert (graph_of(index) is not None) == is_graph
    nprobe = max(1, round(lists / 8)) if lists else SearchSettings().nprobe
    assert default_settings(index) == SearchSettings(nprobe=nprobe, rescore=rescore)
