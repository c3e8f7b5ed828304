"""The law: the sequence of global batches follows from (seed, epoch), not from the workers."""

import logging
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clipray.dataset import find_shards
from clipray.errors import ConfigError, ImageError, InputError
from clipray.images import decode
from clipray.training.loader import Loader, LoaderConfig, Plan, with_captions
from tests.drawing import drawings, write_folder


@pytest.fixture(scope="module")
def entries(photos):
    return [entry for shard in find_shards([str(photos)]).shards for entry in shard.list().entries]


def pixels(data):
    return np.asarray(decode(data)).transpose(2, 0, 1)


def tokenize(texts):
    """Texts as numbers that tell them apart."""
    return torch.tensor([[len(text), sum(text.encode())] for text in texts])


def loader(entries, config, plan, read=pixels):
    return Loader(entries, config, plan, pixels=read, tokenize=tokenize)


def batches(entries, config, epoch, rank=0, world=1):
    plan = Plan(len(entries), config.batch_size, 0, rank, world)
    return list(loader(entries, config, plan).epoch(epoch))


def joined(ranks):
    """Global batches of the shares of all ranks."""
    return [
        [
            torch.cat(parts)
            for parts in zip(*((b.images, b.tokens, b.seeds) for b in step), strict=True)
        ]
        for step in zip(*ranks, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 10), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_an_epoch_is_a_permutation_cut_into_equal_batches(samples, share, world, seed):
    size = share * world
    if samples < size:
        with pytest.raises(ConfigError, match="do not fill one batch"):
            Plan(samples, size, seed)
        return
    whole = Plan(samples, size, seed)
    numbers = whole.epoch(3)
    assert numbers.shape == (whole.steps, size)
    assert len(set(numbers.ravel().tolist())) == numbers.size == samples - whole.dropped
    assert set(numbers.ravel().tolist()) <= set(range(samples))
    assert whole.dropped < size
    ranks = [Plan(samples, size, seed, rank, world).epoch(3) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1), numbers)


def test_epochs_and_seeds_differ_and_repeat():
    plan = Plan(50, 10, seed=1)
    np.testing.assert_array_equal(plan.epoch(4), Plan(50, 10, seed=1).epoch(4))
    assert not np.array_equal(plan.epoch(4), plan.epoch(5))
    assert not np.array_equal(plan.epoch(4), Plan(50, 10, seed=2).epoch(4))


def test_others_are_dropped_each_time():
    plan = Plan(11, 4, seed=0)
    assert (plan.steps, plan.dropped) == (2, 3)
    left_out = [frozenset(range(11)) - set(plan.epoch(n).ravel().tolist()) for n in range(8)]
    assert len(set(left_out)) > 4


def test_a_batch_without_equal_slices_is_refused():
    with pytest.raises(ConfigError, match="10 cannot be split evenly on 4 workers"):
        Plan(100, 10, 0, world=4)


def test_ranks_together_give_the_same_global_batches(entries):
    config = LoaderConfig(batch_size=8)
    alone = joined([batches(entries, config, 2)])
    assert len(alone) == 5
    assert alone[0][0].shape == (8, 3, 48, 48)
    assert alone[0][0].dtype == torch.uint8
    for world in (2, 4):
        shares = [batches(entries, config, 2, rank, world) for rank in range(world)]
        for mine, whole in zip(joined(shares), alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, whole, strict=True))


def test_threads_and_cache_change_nothing(entries):
    expected = joined([batches(entries, LoaderConfig(batch_size=8), 1)])
    for options in ({"threads": 4}, {"cache_mb": 0}, {"threads": 1, "cache_mb": 1}):
        found = joined([batches(entries, LoaderConfig(batch_size=8, **options), 1)])
        for mine, other in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_images_and_texts_stay_together(entries):
    known = {
        pixels(drawing.png).tobytes(): tokenize([drawing.caption])[0].tolist()
        for drawing in drawings()
    }
    for batch in batches(entries, LoaderConfig(batch_size=10), 0):
        for image, tokens in zip(batch.images, batch.tokens, strict=True):
            assert known[image.numpy().tobytes()] == tokens.tolist()


@pytest.mark.parametrize(("cache", "reads"), [(512, 40), (0, 120)])
def test_the_cache_saves_decoding(entries, cache, reads):
    count, lock = [0], threading.Lock()

    def counted(data):
        with lock:
            count[0] += 1
        return pixels(data)

    plan = Plan(40, 8, 0)
    made = loader(entries, LoaderConfig(batch_size=8, cache_mb=cache), plan, counted)
    for epoch in range(3):
        list(made.epoch(epoch))
    assert count[0] == reads


def test_a_bad_image_is_replaced_counted_and_told(tmp_path, caplog):
    photos = write_folder(tmp_path / "photos", count=8)
    (photos / "odd" / "0003.png").write_bytes(b"not a picture")
    (shard,) = find_shards([str(photos)]).shards
    made = loader(shard.list().entries, LoaderConfig(batch_size=4), Plan(8, 4, 0))
    with caplog.at_level(logging.WARNING):
        found = list(made.epoch(0))
    assert [batch.images.shape for batch in found] == [(4, 3, 48, 48)] * 2
    assert made.replaced == 1
    seeds = torch.cat([batch.seeds for batch in found])
    assert len(seeds.unique()) == 7
    assert "photos/odd/0003.png: left out, not a readable image" in caplog.text


def test_a_batch_of_bad_images_only_stops_the_run(entries):
    def refuse(data):
        raise ImageError("not a readable image: at all")

    made = loader(entries, LoaderConfig(batch_size=8), Plan(40, 8, 0), refuse)
    with pytest.raises(InputError, match="none of 8 images"):
        list(made.epoch(0))


def test_captions_are_drawn_by_weight_and_anew_each_epoch(shards):
    entries = [e for shard in find_shards([str(shards)]).shards for e in shard.list().entries]
    config = LoaderConfig(batch_size=40, captions={"caption": 3.0, "url": 1.0, "none": 5.0})
    urls = [
        (tokens[:, 0] == len("file:000000000")) & (tokens[:, 1] < 1000)
        for epoch in range(25)
        for tokens in [batches(entries, config, epoch)[0].tokens]
    ]
    share = torch.stack(urls).float().mean()
    assert 0.2 < share < 0.3
    again = batches(entries, config, 7)[0].tokens
    assert torch.equal(again, batches(entries, config, 7)[0].tokens)


def test_samples_without_image_or_text_are_not_trained_on(tmp_path):
    photos = write_folder(tmp_path / "photos", count=4)
    (photos / "odd" / "0003.txt").write_text("  \n")
    (photos / "even" / "0000.txt").unlink()
    (shard,) = find_shards([str(photos)]).shards
    kept = with_captions(shard.list().entries, {"caption": 1.0})
    assert [entry.key for entry in kept] == ["photos/even/0002.png", "photos/odd/0001.png"]


@pytest.mark.parametrize("captions", [{}, {"caption": 0}, {"caption": -1}, {"a": float("inf")}])
def test_weights_are_positive(captions):
    with pytest.raises(ValidationError):
        LoaderConfig(captions=captions)
