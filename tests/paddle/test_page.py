"""jobs/paddle.md, the page for those who come from PaddleClas, leaves out no key."""

import re
from pathlib import Path

from clipray.paddle.pretrained import MODELS
from tests.paddle.leaves import CLIP_YAML, leaves

PAGE = (Path(__file__).parents[2] / "jobs" / "paddle.md").read_text(encoding="utf-8")


def test_every_key_has_a_row():
    keys = {re.sub(r"DataLoader\.(Train|Eval)", "DataLoader.*", key) for key in leaves(CLIP_YAML)}
    keys = {re.sub(r"(\.transform)\..*", r"\1", key) for key in keys}
    assert len(keys) > 40
    assert [key for key in sorted(keys) if f"`{key}`" not in PAGE] == []


def test_every_model_has_a_row():
    for theirs, ours in MODELS.items():
        assert f"| `{theirs}` | `{ours}` |" in PAGE
