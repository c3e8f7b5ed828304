"""The text tower without its padding: the same features, and bounded input."""

import time

import open_clip
import pytest
import torch

from clipray import texts
from clipray.clip import create
from clipray.manifest import ModelSource

TEXTS = ["a ring", "a large green triangle beside a very small blue circle", "", "x " * 100]


@pytest.fixture(scope="module")
def tiny(architecture):
    return create(ModelSource(name=str(architecture)), seed=3)


@pytest.mark.parametrize("count", [1, 4])
def test_cutting_the_context_changes_nothing(tiny, count):
    tokens = tiny.tokenize(TEXTS[:count])
    with torch.inference_mode():
        cut, whole = texts.tower(tiny.module)(tokens), tiny.module.encode_text(tokens)
    assert torch.allclose(cut, whole, atol=1e-6)


def test_a_tower_that_sees_the_padding_keeps_it():
    # SigLIP pools the last token, whatever stands there.
    settings = {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    torch.manual_seed(0)
    module = open_clip.CLIP(
        8, vision, settings | {"no_causal_mask": True, "pool_type": "last"}
    ).eval()
    tokens = torch.zeros((1, 16), dtype=torch.long)
    tokens[0, :3] = torch.tensor([98, 5, 99])
    with torch.inference_mode():
        assert torch.equal(texts.tower(module)(tokens), module.encode_text(tokens))


def test_a_long_word_is_tokenized_in_bounded_time(tiny):
    began = time.monotonic()
    tiny.tokenize([texts.clean("q7" * 2_000_000)])
    assert time.monotonic() - began < 2


def test_clean_keeps_what_is_text():
    assert texts.clean("a é 🦜") == "a é 🦜"
    assert texts.clean("a\ud83db") == "a?b"
    assert len(texts.clean("x" * 5000)) == texts.MAX_CHARACTERS
