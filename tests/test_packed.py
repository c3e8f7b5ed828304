"""Rearranged towers give the features of open_clip's own."""

import open_clip
import pytest
import torch
from torch.nn.functional import cosine_similarity

from clipray import packed, texts

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 3}


def made(vision=None, text=None, **options):
    """A small CLIP whose weights are large enough for every part to count."""
    torch.manual_seed(0)
    module = open_clip.CLIP(24, VISION | (vision or {}), TEXT | (text or {}), **options).eval()
    for weight in module.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.1)
    return module


def tokens(*lengths):
    """Texts of these lengths; the end of a text is the highest number."""
    rows = torch.zeros((len(lengths), 16), dtype=torch.long)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(1, 98, (length,))
        row[length - 1] = 99
    return rows


def images(count=3):
    return torch.randn((count, 3, 32, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"ls_init_value": 0.5},
        {"pool_type": "eos", "eos_id": 99},
        {"proj_type": "none", "width": 24},
        {"proj_bias": True},
    ],
)
@pytest.mark.parametrize("lengths", [(5,), (16,), (1, 16, 3, 3, 2, 16), (4, 4)])
def test_texts_without_padding(text, lengths):
    module, given = made(text=text), tokens(*lengths)
    with torch.inference_mode():
        found, expected = packed.text_tower(module)(given), module.encode_text(given)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.5}, {"no_ln_pre": True}])
@pytest.mark.parametrize("quick", [False, True])
def test_images(vision, quick):
    module = made(vision, quick_gelu=quick)
    with torch.inference_mode():
        found, expected = packed.image_tower(module)(images()), module.encode_image(images())
    assert torch.allclose(found, expected, atol=1e-4)
    assert type(packed.image_tower(module)) is packed._ImageTower


@pytest.mark.parametrize(
    "vision",
    [{"pool_type": "avg"}, {"attentional_pool": True}, {"layers": [1, 1, 1, 1], "width": 8}],
)
def test_towers_of_another_make_run_as_they_are(vision):
    module = made(vision)
    assert packed.image_tower(module) == module.encode_image
    whole = made(text={"no_causal_mask": True, "pool_type": "last"})
    given = tokens(5, 9)
    with torch.inference_mode():
        assert torch.equal(packed.text_tower(whole)(given), whole.encode_text(given))


def test_half_weights_move_a_vector_only_a_little():
    module, given = made(), tokens(5, 9, 16)
    with torch.inference_mode():
        expected = module.encode_text(given), module.encode_image(images())
        module = module.bfloat16()
        found = packed.text_tower(module)(given), packed.image_tower(module)(images().bfloat16())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is torch.bfloat16
        assert cosine_similarity(one.float(), other).min() > 0.999


def test_it_also_runs_where_onednn_is_missing(monkeypatch):
    module, given = made(), tokens(5, 9)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.inference_mode():
        found = packed.text_tower(module)(given)
        assert torch.allclose(found, texts.tower(module)(given), atol=1e-4)
