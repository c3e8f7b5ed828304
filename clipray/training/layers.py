"""Which layer of its tower a parameter belongs to, told by open_clip's names.

A tower is what lies before its blocks (layer 0), the blocks, and what lies after them (the top).
Rates are not known here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from torch import nn

from clipray.errors import ConfigError

_CONTAINERS = r"(?:visual\.|trunk\.|text\.|transformer\.|encoder\.)*"

_BEFORE = re.compile(
    rf"""{_CONTAINERS}(?:
        conv1 | bn1 | conv_stem | stem | patch_embed | norm_pre | ln_pre            # images
        | class_embedding | cls_token | reg_token | mask_token | pos_embed | rel_pos_bias
        | token_embedding | positional_embedding | cls_emb                          # texts
        | embeddings | embed_tokens | shared
    )(?:\.|$) | visual\.(?:conv|bn)[23]\.""",
    re.VERBOSE,
)
_BLOCK = re.compile(
    rf"{_CONTAINERS}(?:(?:resblocks|blocks?|stages|layers?|h)[._](\d+)|layer(\d+))\."
)

_POSITIONS = re.compile(r"(?:^|\.)(?:positional_embedding|pos_embed)$")


def layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """The learning rate of every parameter as a share of the peak rate.

    Layer-wise decay (Clark et al. 2020, ELECTRA, arXiv:2003.10555; Bao et al. 2021, BEiT,
    arXiv:2106.08254): `decay` to the power of the number of layers above, in the same tower.

    Args:
        names: of all parameters of an open_clip model, frozen ones too.
        decay: 0 < decay ≤ 1; 1 gives 1 everywhere and asks for no names that are known.

    Raises:
        ConfigError: a tower has no blocks that are known.
    """
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    towers = groupby(sorted(names, key=_tower), _tower)
    layers = {name: depth for tower, mine in towers for name, depth in _layers(tower, list(mine))}
    return {name: decay ** layers[name] for name in names}


def most_tokens(module: nn.Module) -> int:
    """Length of the longest sequence that a tower attends over, by its learned positions; or 0."""
    named = module.named_parameters()
    lengths = [p.numel() // p.shape[-1] for name, p in named if _POSITIONS.search(name)]
    return max(lengths, default=0)


def _tower(name: str) -> str:
    if name in ("logit_scale", "logit_bias"):
        return ""
    return "image" if name.startswith("visual.") else "text"


def _layers(tower: str, names: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Each name with the number of layers above it."""
    if not tower:
        return [(name, 0) for name in names]
    blocks = {name: block for name in names if (block := _block(name)) is not None}
    if not blocks:
        raise ConfigError(
            f"optim.layer_decay: no layers are known in the {tower} tower of this model (its "
            f"parameters are called {names[0]} and the like); leave the option out"
        )
    return [(name, _above(name, blocks)) for name in names]


def _above(name: str, blocks: Mapping[str, int]) -> int:
    numbers = sorted(set(blocks.values()))
    if name in blocks:
        return len(numbers) - numbers.index(blocks[name])
    return len(numbers) + 1 if _BEFORE.match(name) else 0


def _block(name: str) -> int | None:
    found = None if _BEFORE.match(name) else _BLOCK.match(name)
    return int(found[1] or found[2]) if found else None
