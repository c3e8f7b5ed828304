"""The law: a sample's pixels follow from (seed, epoch, index), not from where it is computed."""

import pytest
import torch
from pydantic import ValidationError

from clipray.training.augment import AugmentConfig, augment, sample_seeds

STRONG = AugmentConfig(
    rotate=20,
    scale=0.2,
    shift=0.1,
    shear=8,
    brightness=0.3,
    contrast=0.3,
    saturation=0.5,
    flip=0.5,
)


def pictures(count=8, height=24, width=32):
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def seeds(count, seed=3, epoch=2):
    return sample_seeds(seed, epoch, torch.arange(count))


def test_same_seeds_same_pixels():
    assert torch.equal(augment(pictures(), seeds(8), STRONG), augment(pictures(), seeds(8), STRONG))


def test_neither_place_in_batch_nor_split_over_ranks_matters():
    whole = augment(pictures(), seeds(8), STRONG)
    order = torch.tensor([5, 0, 7, 2, 4, 6, 1, 3])
    parts = [augment(pictures()[part], seeds(8)[part], STRONG) for part in order.split(3)]
    assert torch.equal(torch.cat(parts), whole[order])


def test_type_and_shape_are_kept_and_the_source_is_not_touched():
    source = pictures()
    result = augment(source, seeds(8), STRONG)
    assert result.dtype == torch.uint8
    assert result.shape == source.shape
    assert torch.equal(source, pictures())
    assert not torch.equal(result, source)


def test_no_strength_no_change():
    assert torch.equal(augment(pictures(), seeds(8), AugmentConfig()), pictures())


def test_empty_batch():
    assert augment(pictures(0), seeds(0), STRONG).shape == (0, 3, 24, 32)


def test_a_warp_too_small_to_see_gives_back_the_picture():
    tiny = AugmentConfig(rotate=1e-6, saturation=1e-6)
    assert torch.equal(augment(pictures(), seeds(8), tiny), pictures())


def test_flip_mirrors_left_and_right():
    always = augment(pictures(), seeds(8), AugmentConfig(flip=1))
    assert torch.equal(always, pictures().flip(3))


def test_flip_probability():
    source = pictures(1000, 4, 4)
    result = augment(source, seeds(1000), AugmentConfig(flip=0.25))
    flipped = (result == source.flip(3)).flatten(1).all(1).float().mean()
    assert 0.2 < flipped < 0.3


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_what_moves_in_has_the_fill_level(fill):
    plain = torch.full((50, 3, 16, 16), fill, dtype=torch.uint8)
    moving = AugmentConfig(rotate=40, shift=0.4, scale=0.4, shear=20, fill=fill)
    assert torch.equal(augment(plain, seeds(50), moving), plain)


def test_shift_moves_by_at_most_its_fraction_of_the_side():
    source = torch.full((200, 3, 32, 64), 255, dtype=torch.uint8)
    source[:, :, 16, 32] = 0
    dark = 255 - augment(source, seeds(200), AugmentConfig(shift=0.25))[:, 0].float()
    columns, rows = torch.arange(64.0), torch.arange(32.0)
    weight = dark.sum((1, 2))
    moved_x = (dark.sum(1) * columns).sum(1) / weight - 32
    moved_y = (dark.sum(2) * rows).sum(1) / weight - 16
    assert moved_x.abs().max() <= 16.1
    assert moved_y.abs().max() <= 8.1
    assert moved_x.min() < -12
    assert moved_x.max() > 12


def test_a_turn_keeps_lengths_in_a_wide_picture():
    source = torch.full((100, 3, 32, 64), 255, dtype=torch.uint8)
    source[:, :, 8:24, 24:40] = 0  # a square in the middle
    ink = (255 - augment(source, seeds(100), AugmentConfig(rotate=180))[:, 0].float()) / 255
    assert ((ink.sum((1, 2)) - 256).abs() < 6).all()
    assert ink[:, :16].sum((1, 2)).sub(128).abs().max() < 6


def test_colour_changes_keep_grey_grey_and_stay_in_bounds():
    grey = torch.arange(0, 256, 16, dtype=torch.uint8).view(1, 1, 4, 4).expand(50, 3, 4, 4)
    colours = AugmentConfig(brightness=0.5, contrast=0.5, saturation=1)
    result = augment(grey, seeds(50), colours).int()
    assert (result.amax(1) - result.amin(1)).max() <= 1
    assert result.min() == 0
    assert result.max() == 255


def test_saturation_alone_keeps_brightness():
    source = pictures().clamp(96, 160)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    result = augment(source, seeds(8), AugmentConfig(saturation=0.5))
    assert ((result * luma).sum(1) - (source * luma).sum(1)).abs().max() < 1
    assert not torch.equal(result, source)


def test_seeds_differ_by_run_epoch_and_sample():
    indices = torch.arange(500)
    drawn = [sample_seeds(run, epoch, indices) for run in range(4) for epoch in range(4)]
    assert torch.cat(drawn).unique().numel() == 16 * 500
    assert sample_seeds(-1, 0, indices).dtype == torch.int64


def test_seeds_are_fixed_for_ever():
    assert sample_seeds(0, 0, torch.tensor([0, 1])).tolist() == [
        2558736989570252433,
        4764156602392020899,
    ]


def test_strengths_are_spread_evenly():
    source = torch.full((4000, 3, 1, 1), 100, dtype=torch.uint8)
    level = augment(source, seeds(4000), AugmentConfig(brightness=0.5))[:, 0].float()
    assert level.min() <= 51
    assert level.max() >= 149
    assert abs(level.mean() - 100) < 2
    assert abs(level.std() - 100 / 12**0.5) < 2


@pytest.mark.parametrize(
    ("batch", "numbers"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_wrong_shapes_and_types_are_named(batch, numbers):
    with pytest.raises(ValueError, match="expected"):
        augment(batch, numbers, STRONG)


@pytest.mark.parametrize("wrong", [{"rotate": -1}, {"flip": 2}, {"scale": 1}, {"turn": 3}])
def test_wrong_strengths_are_refused(wrong):
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)
