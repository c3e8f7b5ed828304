"""PaddleClas's list of transforms as open_clip's preprocessing."""

import numpy as np
import pytest

from clipray.config import Config, parse
from clipray.errors import ConfigError
from clipray.paddle.tower import source_of
from clipray.paddle.transforms import Transform, preprocess_of

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
NORMALIZE = {"NormalizeImage": {"scale": "1.0/255.0", "mean": MEAN, "std": STD, "order": ""}}
CHW = {"ToCHWImage": None}


class Listed(Config):
    ops: tuple[Transform, ...]


def read(*ops):
    return preprocess_of(parse(Listed, {"ops": list(ops)}, "file").ops, "ops")


def resize(**keys):
    return {"ResizeImage": keys}


def crop(size):
    return {"CropImage": {"size": size}}


def test_the_list_for_training_says_all_but_the_padding():
    op = resize(size=224, interpolation="bicubic", backend="pil")
    assert read(op, NORMALIZE, CHW) == {
        "size": [224, 224],
        "resize_mode": "squash",
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
    }


def test_one_side_keeps_the_shape_and_two_squash():
    short = read(resize(resize_short=224), crop(224), NORMALIZE, CHW)
    assert (short["size"], short["resize_mode"]) == ([224, 224], "shortest")
    assert "interpolation" not in short  # stays the model's
    box = read(resize(size=[64, 32]), crop([64, 32]), NORMALIZE, CHW)  # width, height
    assert (box["size"], box["resize_mode"]) == ([32, 64], "squash")


def test_no_list_says_nothing():
    assert read() == {}


@pytest.mark.parametrize(
    "scale", ["1/255", " 1.0 / 255.0 ", 0.00392156862745098, "3.92156862745098e-3"]
)
def test_a_scale_is_a_number_or_a_fraction(scale):
    op = {"NormalizeImage": NORMALIZE["NormalizeImage"] | {"scale": scale}}
    assert read(resize(size=8), op, CHW)["mean"] == MEAN


def test_another_scale_is_the_same_with_other_numbers():
    whole = {"scale": 1.0, "mean": [value * 255 for value in MEAN], "std": [v * 255 for v in STD]}
    found = read(resize(size=8), {"NormalizeImage": whole}, CHW)
    np.testing.assert_allclose((found["mean"], found["std"]), (MEAN, STD))


@pytest.mark.parametrize("order", ["chw", None])
def test_normalising_behind_the_channels_is_the_same(order):
    op = {"NormalizeImage": NORMALIZE["NormalizeImage"] | {"order": order}}
    assert read(resize(size=8), CHW, op) == read(resize(size=8), NORMALIZE, CHW)


@pytest.mark.parametrize(
    ("ops", "match"),
    [
        ((NORMALIZE, resize(size=8), CHW), "ops: found NormalizeImage, ResizeImage, ToCHWImage; "),
        ((resize(size=8), CHW), "ops: found ResizeImage, ToCHWImage; expected"),
        ((resize(size=8), CHW, CHW, NORMALIZE), "; expected ResizeImage, CropImage where"),
        ((resize(resize_short=8), NORMALIZE, CHW), "resize_short: found 8 and no CropImage"),
        ((resize(resize_short=9), crop(8), NORMALIZE, CHW), "found 8 x 8 behind .* to 9 x 9"),
        ((resize(size=[8, 6]), crop(8), NORMALIZE, CHW), "found 8 x 8 behind .* to 8 x 6"),
        ((resize(size=8), CHW, NORMALIZE), "order: found '' behind ToCHWImage, expected 'chw'"),
        ((resize(size=8, resize_short=8), NORMALIZE, CHW), "exactly one of size, resize_short"),
        ((resize(size=8, backend="cv2"), NORMALIZE, CHW), "backend: Input should be 'pil'"),
        ((resize(size=8, interpolation="area"), NORMALIZE, CHW), "'bicubic' or 'bilinear'"),
        ((resize(size=8), {"NormalizeImage": {"mean": MEAN, "std": [0, 1, 1]}}, CHW), "std.0"),
        ((resize(size=8), {"NormalizeImage": None}, CHW), "NormalizeImage has no keys; it needs"),
        (({"ResizeImage": {"size": 8}, "ToCHWImage": None}, NORMALIZE), "mapping with one key"),
        (({"ResizeImages": {}},), "key 'ops.0.ResizeImages', did you mean 'ResizeImage'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(ops, match):
    with pytest.raises(ConfigError, match=match):
        read(*ops)


@pytest.mark.parametrize(
    "scale", ["1/0", "255 / x", "", "__import__('os')", "-1/255", "nan", "1e999"]
)
def test_what_is_no_scale_is_refused(scale):
    op = {"NormalizeImage": NORMALIZE["NormalizeImage"] | {"scale": scale}}
    with pytest.raises(ConfigError, match="scale"):
        read(resize(size=8), op, CHW)


def test_a_name_may_have_its_tag_behind_a_slash():
    source = source_of("ViT-B-32/laion2b_s34b_b79k")
    assert (source.name, source.pretrained) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert source_of("ViT-B/32").name == "ViT-B/32"
    assert source_of("./none/model").pretrained is None
