"""The law: the sequence of global batches follows from (seed, epoch), not from the workers."""

import logging
import os
import shutil
import signal
import tarfile
import threading
from itertools import islice
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clipray.errors import ClipRayError, ConfigError, ImageError, InputError
from clipray.images import decode
from clipray.training.corpus import Corpus
from clipray.training.loader import Loader, LoaderConfig
from clipray.training.plan import Plan
from tests.drawing import drawings, write_folder, write_member, write_shards

CAPTION = {"caption": 1.0}


@pytest.fixture(scope="module")
def corpus(shards):
    return Corpus.survey([str(shards)], CAPTION)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Eight shards of five, one of them empty; every third image is none, every fourth text."""
    root = tmp_path_factory.mktemp("spoilt")
    for shard in range(8):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for number, drawing in enumerate(drawings(40)[shard * 5 : shard * 5 + 5]):
                bad_image, bad_text = number % 3 == shard % 3, number % 4 == 1
                write_member(tar, f"{number}.png", b"?" if bad_image else drawing.png)
                write_member(tar, f"{number}.txt", b" " if bad_text else drawing.caption.encode())
    tarfile.open(root / "00008.tar", "w").close()
    return Corpus.survey([str(root)], CAPTION)


def pixels(data):
    return np.asarray(decode(data)).transpose(2, 0, 1)


class Fatal:
    """Kills its process at the ninth image."""

    def __init__(self):
        self.calls = 0

    def __call__(self, data):
        self.calls += 1
        if self.calls == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return pixels(data)


def tokenize(texts):
    """Texts as numbers that tell them apart."""
    return torch.tensor([[len(text), sum(text.encode())] for text in texts])


def loader(corpus, *, read=pixels, rank=0, world=1, weights=None, window=32, size=8, **options):
    config = LoaderConfig(batch_size=size, **options)
    plan = Plan(corpus.counts, size, 0, weights=weights, window=window)
    return Loader(corpus, config, plan, 0, rank=rank, world=world, pixels=read, tokenize=tokenize)


def batches(corpus, epoch=0, start=0, **options):
    return list(loader(corpus, **options).epoch(epoch, start))


def rows(found):
    """Images, tokens and seeds of all batches."""
    return [torch.cat([getattr(b, name) for b in found]) for name in ("images", "tokens", "seeds")]


def assert_equal(found, expected):
    assert [batch.order for batch in found] == [batch.order for batch in expected]
    for mine, other in zip(found, expected, strict=True):
        for name in ("images", "tokens", "seeds"):
            assert torch.equal(getattr(mine, name), getattr(other, name)), name


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("data", ["corpus", "spoilt"])
def test_ranks_together_give_the_same_global_batches(data, world, request):
    corpus = request.getfixturevalue(data)
    alone = batches(corpus, 2)
    shares = [batches(corpus, 2, rank=rank, world=world) for rank in range(world)]
    assert len(alone) == corpus.samples // 8
    for whole, *parts in zip(alone, *shares, strict=True):
        assert {part.order for part in parts} == {whole.order}
        assert sum(part.replaced for part in parts) == whole.replaced
        for mine, other in zip(rows(parts), rows([whole]), strict=True):
            assert torch.equal(mine, other)


def test_shapes_and_types(corpus):
    first = batches(corpus)[0]
    assert (first.images.shape, first.images.dtype) == ((8, 3, 48, 48), torch.uint8)
    assert (first.seeds.shape, first.seeds.dtype) == ((8,), torch.int64)
    assert first.tokens.shape == (8, 2)


@pytest.mark.parametrize(
    "options", [{"threads": 4}, {"cache_mb": 0}, {"threads": 1, "cache_mb": 1}, {"processes": 2}]
)
def test_threads_processes_and_cache_change_nothing(spoilt, options):
    assert_equal(batches(spoilt, 1, **options), batches(spoilt, 1))


@pytest.mark.parametrize("processes", [0, 1])
def test_an_epoch_goes_on_from_any_step(spoilt, processes):
    whole = batches(spoilt, 3)
    assert_equal(batches(spoilt, 3, 2, processes=processes), whole[2:])
    assert batches(spoilt, 3, len(whole), processes=processes) == []


def test_few_lists_at_hand_change_nothing(corpus):
    assert_equal(batches(corpus, shuffle_shards=1, window=3, cache_mb=0), batches(corpus))


def test_order_tells_epochs_apart(corpus):
    orders = [batch.order for epoch in (0, 1) for batch in batches(corpus, epoch)]
    assert len(set(orders)) == len(orders)


def test_a_sample_seen_twice_in_an_epoch_is_drawn_anew(corpus):
    found = batches(corpus, weights=[1.0, 2.0, 0.0], size=4, window=1)
    images, _, seeds = rows(found)
    assert len(seeds) == 48
    assert len({image.numpy().tobytes() for image in images}) == 32
    assert len(seeds.unique()) == 48


def test_images_and_texts_stay_together(corpus):
    known = {
        pixels(drawing.png).tobytes(): tokenize([drawing.caption])[0].tolist()
        for drawing in drawings()
    }
    for batch in batches(corpus, size=10):
        for image, tokens in zip(batch.images, batch.tokens, strict=True):
            assert known[image.numpy().tobytes()] == tokens.tolist()


@pytest.mark.parametrize(("cache", "reads"), [(512, 40), (0, 120)])
def test_the_cache_saves_decoding(corpus, cache, reads):
    count, lock = [0], threading.Lock()

    def counted(data):
        with lock:
            count[0] += 1
        return pixels(data)

    made = loader(corpus, read=counted, cache_mb=cache)
    for epoch in range(3):
        list(made.epoch(epoch))
    assert count[0] == reads


@pytest.mark.parametrize("processes", [0, 1])
def test_bad_samples_are_replaced_counted_and_told_once(tmp_path, caplog, processes):
    photos = write_folder(tmp_path / "photos", count=8)
    (photos / "odd" / "0003.png").write_bytes(b"not a picture")
    (photos / "even" / "0002.txt").write_bytes(b" \n")
    made = loader(Corpus.survey([str(photos)], CAPTION), size=4, processes=processes)
    with caplog.at_level(logging.WARNING):
        found = [batch for epoch in (0, 1) for batch in made.epoch(epoch)]
    assert sum(batch.replaced for batch in found) == made.replaced == 4
    for epoch in (found[:2], found[2:]):
        images, _, seeds = rows(epoch)
        assert len(images) == 8
        assert len(seeds.unique()) == len({image.numpy().tobytes() for image in images}) == 6
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == [
        "photos/even/0002.png: left out, no text in column caption",
        "photos/odd/0003.png: left out, not a readable image: UnidentifiedImageError",
    ]


def test_the_nearest_good_sample_before_a_bad_one_takes_its_place(corpus):
    (places,) = islice(Plan(corpus.counts, 40, 0).batches(0), 1)
    good = batches(corpus, size=40)[0]
    bad = {good.images[place].numpy().tobytes() for place in (0, 1, 7)}

    def read(data):
        found = pixels(data)
        if found.tobytes() in bad:
            raise OSError("gone")
        return found

    found = batches(corpus, size=40, read=read)[0]
    chosen = [39, 39, *range(2, 7), 6, *range(8, 40)]
    assert len(places) == 40
    assert found.replaced == 3
    for name in ("images", "tokens", "seeds"):
        assert torch.equal(getattr(found, name), getattr(good, name)[chosen])


@pytest.mark.parametrize("error", [ImageError("no picture: at all"), OSError("gone")])
def test_a_global_batch_of_bad_samples_only_stops_the_run(corpus, error):
    def refuse(data):
        raise error

    with pytest.raises(InputError, match="none of the 8 samples of a batch can be used, such as"):
        batches(corpus, rank=1, world=2, read=refuse)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_shard_that_vanishes_stops_the_run(tmp_path, processes):
    root = write_shards(tmp_path / "data", 40, 5)
    corpus = Corpus.survey([str(root)], CAPTION)
    (root / "00003.tar").unlink()
    with pytest.raises(InputError, match=r"^\S+00003.tar: cannot be read"):
        batches(corpus, processes=processes)
    shutil.rmtree(root)
    with pytest.raises(InputError, match="cannot be read"):
        batches(corpus, processes=processes)


def test_a_decode_process_that_is_killed_stops_the_run(corpus):
    found = loader(corpus, read=Fatal(), processes=1, size=4).epoch(0)
    with pytest.raises(ClipRayError, match="a decode process ended"):
        list(found)


def test_processes_stay_for_all_epochs_and_end_with_the_loader(corpus):
    others = running()  # that are ending
    made = loader(corpus, processes=2, size=4)
    first = made.epoch(0)
    next(first)
    processes = running() - others
    assert len(processes) == 2
    first.close()  # in the middle of an epoch
    found = [batch.order for batch in made.epoch(1)]
    assert running() - others == processes
    assert found == [batch.order for batch in loader(corpus, size=4).epoch(1)]
    del made, first
    assert not running() - others


def running():
    return {process.pid for process in active_children()}


def test_decode_processes_do_not_touch_the_generator_of_the_model(corpus):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    batches(corpus, processes=1)
    assert torch.equal(torch.rand(2), expected)


def test_captions_are_drawn_by_weight_and_anew_each_epoch(shards):
    captions = {"caption": 3.0, "url": 1.0, "none": 5.0}
    corpus = Corpus.survey([str(shards)], captions)
    urls = [
        (tokens[:, 0] == len("file:000000000")) & (tokens[:, 1] < 1000)
        for epoch in range(25)
        for tokens in [batches(corpus, epoch, size=40, captions=captions)[0].tokens]
    ]
    share = torch.stack(urls).float().mean()
    assert 0.2 < share < 0.3
    again = [batches(corpus, 7, size=40, captions=captions) for _ in range(2)]
    assert_equal(*again)


def test_a_batch_without_equal_slices_is_refused(corpus):
    with pytest.raises(ConfigError, match="10 cannot be split evenly on 4 workers"):
        loader(corpus, size=10, world=4)


@pytest.mark.parametrize("captions", [{}, {"caption": 0}, {"caption": -1}, {"a": float("inf")}])
def test_weights_are_positive(captions):
    with pytest.raises(ValidationError):
        LoaderConfig(captions=captions)
