"""CLIP's two transformers rearranged for inference on a CPU: the same vectors for less work.

Weights lie as oneDNN wants them, texts are laid end to end without padding, and the last block
computes only what is pooled. Towers of another make are not known here; they run as they are.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from clipray import texts
from clipray.ending import Ending

Tower = Callable[[Tensor], Tensor]
Groups = Sequence[tuple[int, int]]  # how many sequences of which length lie one after the other


def image_tower(module: Any) -> Tower:
    """Normalised pixels (n, 3, H, W) → features (n, dim), not of unit length."""
    visual = module.visual
    plain = type(visual) is VisionTransformer and visual.attn_pool is None
    if plain and visual.pool_type == "tok" and _is_plain(visual.transformer):
        return _ImageTower(visual)
    return module.encode_image  # type: ignore[no-any-return]


def text_tower(module: Any) -> Tower:
    """Tokens (n, context length) int64 → features (n, dim), not of unit length."""
    ending = texts.ending_of(module)
    if ending and _is_plain(module.transformer):
        return _TextTower(module, ending)
    return texts.tower(module)


class _ImageTower:
    def __init__(self, visual: Any) -> None:
        self._patches, self._before, self._after = visual.conv1, visual.ln_pre, visual.ln_post
        self._first = visual.class_embedding
        self._positions = visual.positional_embedding
        self._blocks = _Stack(visual.transformer, is_causal=False)
        self._projection = visual.proj

    def __call__(self, pixels: Tensor) -> Tensor:
        x = self._patches(pixels).flatten(2).transpose(1, 2)  # (n, patches, width)
        count, length = len(x), x.shape[1] + 1
        first = self._first.expand(count, 1, -1)
        x = self._before(torch.cat([first, x], dim=1) + self._positions)
        pooled = torch.arange(0, count * length, length)
        x = self._blocks(x.flatten(0, 1), [(count, length)], pooled)
        return torch.as_tensor(_project(self._after(x), self._projection))


class _TextTower:
    def __init__(self, module: Any, ending: Ending) -> None:
        self._ending = ending
        self._embedding = module.token_embedding
        self._positions = module.positional_embedding
        self._blocks = _Stack(module.transformer, is_causal=True)
        self._after, self._projection = module.ln_final, module.text_projection

    def __call__(self, tokens: Tensor) -> Tensor:
        lengths, order = (self._ending.find(tokens) + 1).sort()
        place = torch.arange(tokens.shape[1]).expand_as(tokens)
        inside = place < lengths[:, None]
        # Rows are the tokens of all texts, shortest text first.
        x = self._embedding(tokens[order][inside]) + self._positions[place[inside]]
        groups = [(count, length) for length, count in Counter(lengths.tolist()).items()]
        x = self._after(self._blocks(x, groups, lengths.cumsum(0) - 1))
        return _project(x, self._projection)[order.argsort()]


class _Stack:
    """All blocks of a transformer; (rows, width) goes in, the pooled rows come out."""

    def __init__(self, transformer: Any, *, is_causal: bool) -> None:
        *most, last = (_Block(block) for block in transformer.resblocks)
        self._most, self._last, self._is_causal = most, last, is_causal

    def __call__(self, x: Tensor, groups: Groups, pooled: Tensor) -> Tensor:
        for block in self._most:
            x = block(x, groups, is_causal=self._is_causal)
        return self._last.pool(x, groups, pooled)


class _Block:
    def __init__(self, block: Any) -> None:
        attention, width = block.attn, block.attn.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        self._before, self._scale = block.ln_1, block.ls_1
        self._query = _pack(weight[:width], bias[:width])
        self._key_value = _pack(weight[width:], bias[width:])
        self._out = _pack(attention.out_proj.weight, attention.out_proj.bias)
        self._mlp_before, self._mlp_scale = block.ln_2, block.ls_2
        self._up = _pack(block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        self._act = block.mlp.gelu
        self._down = _pack(block.mlp.c_proj.weight, block.mlp.c_proj.bias)
        self._heads = attention.num_heads

    def __call__(self, x: Tensor, groups: Groups, *, is_causal: bool) -> Tensor:
        y = self._before(x)
        return self._finish(x, self._attend(self._query(y), y, groups, groups, is_causal=is_causal))

    def pool(self, x: Tensor, groups: Groups, pooled: Tensor) -> Tensor:
        """Only the rows `pooled`: one of each sequence, one that sees all of it."""
        y = self._before(x)
        single = [(count, 1) for count, _ in groups]
        attended = self._attend(self._query(y[pooled]), y, single, groups, is_causal=False)
        return self._finish(x[pooled], attended)

    def _attend(
        self, query: Tensor, y: Tensor, asking: Groups, groups: Groups, *, is_causal: bool
    ) -> Tensor:
        keys, values = self._key_value(y).chunk(2, dim=-1)
        split = zip(
            self._split(query, asking),
            self._split(keys, groups),
            self._split(values, groups),
            strict=True,
        )
        attended = (scaled_dot_product_attention(*qkv, is_causal=is_causal) for qkv in split)
        return self._out(torch.cat([a.transpose(1, 2).flatten(2).flatten(0, 1) for a in attended]))

    def _split(self, x: Tensor, groups: Groups) -> list[Tensor]:
        parts = torch.split(x, [count * length for count, length in groups])
        shapes = ((count, length, self._heads, -1) for count, length in groups)
        return [p.reshape(s).transpose(1, 2) for p, s in zip(parts, shapes, strict=True)]

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self._scale(attended)
        y = self._down(self._act(self._up(self._mlp_before(x))))
        return torch.as_tensor(x + self._mlp_scale(y))


def _is_plain(transformer: Any) -> bool:
    return all(
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and block.attn.in_proj_bias is not None
        for block in transformer.resblocks
    )


def _project(pooled: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return pooled
    projected = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return torch.as_tensor(projected)


def _pack(weight: Tensor, bias: Tensor) -> Tower:
    weight, bias = weight.detach().contiguous(), bias.detach().contiguous()
    if not _has_packed_linear(weight.dtype):
        return lambda x: linear(x, weight, bias)
    ops: Any = torch.ops.mkldnn  # what torch.compile makes of a frozen linear layer
    packed = ops._reorder_linear_weight(weight, None)
    return lambda x: ops._linear_pointwise(x, packed, bias, "none", [], "")


def _has_packed_linear(dtype: torch.dtype) -> bool:
    backend, ops = torch.backends.mkldnn, torch.ops.mkldnn
    if not backend.is_available():  # type: ignore[no-untyped-call]
        return False
    known = hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")
    if dtype is torch.bfloat16:
        return known and bool(ops._is_mkldnn_bf16_supported())
    return known and dtype is torch.float32
