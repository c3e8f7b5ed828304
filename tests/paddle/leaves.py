"""The keys of PaddleClas's files, and what a command made of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CLIP_YAML = Path(__file__).parent / "CLIP.yaml"


def leaves(file: Path) -> list[str]:
    """All keys that have a value, with their sections and places in lists."""
    return list(_walk(yaml.safe_load(file.read_text(encoding="utf-8")), ""))


def value_at(config: Any, path: str) -> Any:
    """A value of a configuration, by names with dots."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _walk(tree: Any, path: str) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _walk(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for number, value in enumerate(tree):
            yield from _walk(value, f"{path}.{number}")
    else:
        yield path
