"""Tiny open_clip models of several kinds, and batches for them."""

import json

import open_clip
import torch

TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 32, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
TIMM = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}


def create(folder, vision, *, text=TEXT, **options):
    """A model with weights from seed 0; `options` stand beside `vision_cfg` in its model_cfg."""
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text} | options
    tree = {"model_cfg": config, "preprocess_cfg": {}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    torch.manual_seed(0)
    return open_clip.create_model(f"local-dir:{folder}")


def batch(rows, seed=1):
    """(rows, 3, 32, 32) pixels and (rows, 12) tokens that end in the text's largest number."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn((rows, 3, 32, 32), generator=generator)
    tokens = torch.randint(1, 62, (rows, 12), generator=generator)
    tokens[:, -1] = 63
    return pixels, tokens


def trained(module):
    """Names of the parameters that are not frozen."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def gradients_of(module):
    """Gradients by name."""
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
