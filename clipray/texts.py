"""Texts to features: bounded input, and no work on the padding behind a text.

A causal tower that pools at the end-of-text token never looks past it, so cutting the context to
the longest text of a batch changes nothing but the time. Tokenizers, images and devices are not
known here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

MAX_CHARACTERS = 2_000  # a 20 KB word held open_clip's tokenizer for 8.5 s


def clean(text: str) -> str:
    """Cut to what a tokenizer takes in bounded time, without lone surrogates."""
    return text[:MAX_CHARACTERS].encode("utf-8", errors="replace").decode()


def encode(module: nn.Module, tokens: Tensor) -> Tensor:
    """Features of the text tower, not normalised.

    Args:
        module: any of open_clip's models.
        tokens: (n, context length) int64.

    Returns:
        (n, dim), equal to `module.encode_text(tokens)` up to rounding.
    """
    if not is_cuttable(module):
        features: Tensor = module.encode_text(tokens)  # type: ignore[operator]
        return features
    longest = int(find_ends(module)(tokens).max()) + 1
    return encode_cut(module, tokens[:, :longest])


def tower(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """`encode` of one model."""
    return partial(encode, module)


def is_cuttable(module: Any) -> bool:
    """Whether nothing behind the end-of-text token counts."""
    causal = isinstance(module, open_clip.CLIP) and module.attn_mask is not None
    return causal and module.text_pool_type in ("argmax", "eos")


def find_ends(module: Any) -> Callable[[Tensor], Tensor]:
    """How a cuttable tower finds the end of each text: tokens (n, length) → places (n,) int64."""
    if module.text_pool_type == "argmax":
        return lambda tokens: tokens.argmax(dim=-1)
    return lambda tokens: (tokens == module.text_eos_id).int().argmax(dim=-1)


def encode_cut(module: Any, tokens: Tensor) -> Tensor:
    """As `encode`, of a cuttable tower and tokens that reach to the end of the longest text."""
    length = tokens.shape[1]
    dtype = module.transformer.get_cast_dtype()
    x = module.token_embedding(tokens).to(dtype)  # (n, length, width)
    x = x + module.positional_embedding[:length].to(dtype)
    x = module.transformer(x, attn_mask=module.attn_mask[:length, :length])
    x = module.ln_final(x)
    pooled = text_global_pool(x, tokens, module.text_pool_type, eos_token_id=module.text_eos_id)
    projection = module.text_projection
    if projection is None:
        return torch.as_tensor(pooled)
    return torch.as_tensor(
        projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    )
