"""Samples without pixels or text leave no row, but a reason."""

import pytest
import torch

from clipray import clip
from clipray.dataset import find_shards
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.prepare import PartSettings
from clipray.training.features import FeatureReader, join
from clipray.training.peers import CPU
from tests.drawing import write_folder


@pytest.fixture(scope="module")
def opened(model):
    return clip.load(ModelSource(name=str(model)))


@pytest.fixture
def batches(tmp_path):
    """Three batches of two; of the first nothing is usable, of the second one."""
    photos = write_folder(tmp_path / "photos", count=6)
    files = sorted(photos.rglob("*.png"))
    files[0].write_bytes(b"no picture")
    files[1].with_suffix(".txt").write_text("  ", encoding="utf-8")
    files[2].with_suffix(".txt").unlink()
    (shard,) = find_shards([str(photos)]).shards
    entries = shard.list().entries
    return [entries[start : start + 2] for start in range(0, 6, 2)]


def features(opened, kind, batches):
    settings = PartSettings(("image",), batch_size=2)
    reader = FeatureReader(opened, CPU, settings, pixel_reader(opened.preprocess))
    with torch.no_grad():
        made = getattr(reader, kind)(
            opened.module, lambda sample: sample.columns["caption"] or "", batches
        )
        return list(made)


def test_pairs_need_both(opened, batches):
    found = features(opened, "pairs", batches)
    assert [len(batch.texts) for batch in found] == [0, 1, 2]
    assert [told.split(": ")[0][-8:] for told in found[0].rejected] == ["0000.png", "0002.png"]
    assert found[0].rejected[1].endswith(": no text")
    whole = join(found)
    assert whole.images.shape == whole.captions.shape == (3, 32)
    assert len(whole.rejected) == 3
    torch.testing.assert_close(whole.images.norm(dim=1), torch.ones(3))
    assert found[1].loss == 0  # one pair has nothing to be confused with
    assert whole.loss == found[2].loss > 0


def test_images_stand_alone(opened, batches):
    whole = join(features(opened, "images", batches))
    assert whole.images.shape == (5, 32)
    assert whole.texts[:2] == ["", ""]
    assert whole.captions.shape == (0, 32)
    assert len(whole.rejected) == 1
