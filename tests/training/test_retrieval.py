"""open_clip's figures, and none that a broken model could shine with."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from clipray.training import retrieval
from clipray.training.peers import Peers
from clipray.training.retrieval import ranks, retrieval_metrics
from tests.threads import on_ranks

COUNT, DIM = 200, 16


def features(noise=1.0):
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(COUNT, DIM, generator=generator)
    texts = images + noise * torch.randn(COUNT, DIM, generator=generator)
    return normalize(images, dim=-1), normalize(texts, dim=-1)


def pair_ranks(queries, candidates, peers=Peers()):  # noqa: B008  frozen
    return ranks(queries, candidates, torch.arange(len(queries)), peers)


def test_metrics_equal_open_clips():
    theirs = pytest.importorskip("open_clip_train.train")
    images, texts = features()
    found = retrieval_metrics(pair_ranks(images, texts), pair_ranks(texts, images))
    expected = theirs.get_clip_metrics(images, texts, torch.tensor(30.0))
    assert found.keys() == expected.keys()
    assert found == pytest.approx({name: float(value) for name, value in expected.items()})
    assert 0.1 < found["image_to_text_R@1"] < 0.9


def test_ranks_are_those_of_sorting():
    queries, candidates = features()
    targets = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))[:50]
    order = (-(queries[:50] @ candidates.T)).argsort(dim=1, stable=True)
    expected = (order == targets[:, None]).nonzero()[:, 1]
    found = ranks(queries[:50], candidates, targets, Peers())
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cells", [1, 3 * COUNT, 7 * COUNT + 5])
def test_chunks_change_nothing(monkeypatch, cells):
    images, texts = features()
    whole = pair_ranks(images, texts)
    monkeypatch.setattr(retrieval, "CELLS", cells)
    assert torch.equal(pair_ranks(images, texts), whole)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_of_a_run_share_the_chunks(monkeypatch, world):
    monkeypatch.setattr(retrieval, "CELLS", 30 * COUNT)
    images, texts = features()
    whole = pair_ranks(images, texts)
    shared = on_ranks(world, lambda peers: pair_ranks(images, texts, peers))
    assert all(torch.equal(found, whole) for found in shared)


def test_a_collapsed_model_is_as_good_as_chance():
    same = torch.ones(COUNT, DIM)
    found = pair_ranks(same, same)
    assert found.tolist() == list(range(COUNT))
    assert retrieval_metrics(found, found)["text_to_image_R@1"] == 1 / COUNT


def test_of_twins_only_the_first_is_found():
    texts = torch.eye(4)[[0, 1, 1, 2]]
    assert pair_ranks(torch.eye(4)[[0, 1, 1, 2]], texts).tolist() == [0, 0, 1, 0]


def test_features_that_are_no_numbers_find_nothing():
    images, texts = features(noise=0)
    broken = torch.full_like(images, torch.nan)
    assert set(pair_ranks(broken, texts).tolist()) == {COUNT - 1}
    texts[:3] = torch.nan
    assert pair_ranks(images, texts)[3:].tolist() == [3] * (COUNT - 3)


def test_the_median_is_a_whole_rank_and_counts_from_1():
    places = torch.from_numpy(np.array([0, 1, 4, 9]))
    found = retrieval_metrics(places, torch.zeros(4, dtype=torch.int64))
    assert found["image_to_text_median_rank"] == 3
    assert found["image_to_text_mean_rank"] == 4.5
    assert found["image_to_text_R@5"] == 0.75
    assert found["text_to_image_mean_rank"] == 1
