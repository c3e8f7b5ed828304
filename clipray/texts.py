"""Texts to features: bounded input, and no work on the padding behind a text.

A causal tower that pools at the end-of-text token never looks past it, so cutting the context to
the longest text of a batch changes nothing but the time. Tokenizers, images and devices are not
known here.
"""

from collections.abc import Callable
from typing import Any

import open_clip
import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from clipray.ending import Ending

MAX_CHARACTERS = 2_000  # a 20 KB word held open_clip's tokenizer for 8.5 s


def clean(text: str) -> str:
    """Cut to what a tokenizer takes in bounded time, without lone surrogates."""
    return text[:MAX_CHARACTERS].encode("utf-8", errors="replace").decode()


def ending_of(module: Any) -> Ending | None:
    """That of one of open_clip's models; None where the whole context counts."""
    causal = isinstance(module, open_clip.CLIP) and module.attn_mask is not None
    if not causal or module.text_pool_type not in ("argmax", "eos"):
        return None
    return Ending(pool=module.text_pool_type, token=module.text_eos_id)


def tower(module: Any) -> Callable[[Tensor], Tensor]:
    """The text tower, without work on the padding behind the longest text.

    What is returned takes tokens (n, context length) int64 and gives features (n, dim), not
    normalised, equal to those of `module.encode_text` up to rounding.
    """
    ending = ending_of(module)
    if ending is None:
        return module.encode_text  # type: ignore[no-any-return]
    return lambda tokens: encode_cut(module, ending.cut(tokens))


def encode_cut(module: Any, tokens: Tensor) -> Tensor:
    """Features of a tower with an ending, from tokens that reach to the end of the longest text."""
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
