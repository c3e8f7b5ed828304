"""Layers are told by the names that open_clip, timm and Hugging Face give their parameters."""

import pytest

from clipray.errors import ConfigError
from clipray.training.layers import layer_scales, most_tokens
from tests.training.towers import TIMM, VIT, create, trained

TEXT = ["token_embedding.weight", "transformer.resblocks.0.ln_1.bias", "ln_final.weight"]
TOWERS = {
    "open_clip ViT": [
        ["visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight"],
        ["visual.transformer.resblocks.0.attn.in_proj_weight"],
        ["visual.transformer.resblocks.1.ln_1.weight", "visual.transformer.resblocks.1.ls_1.gamma"],
        ["visual.ln_post.bias", "visual.proj", "visual.attn_pool.query"],
    ],
    "open_clip ResNet": [
        ["visual.conv1.weight", "visual.bn1.bias", "visual.conv3.weight", "visual.bn3.weight"],
        ["visual.layer1.0.conv1.weight"],
        ["visual.layer2.3.downsample.0.weight", "visual.layer2.0.bn1.weight"],
        ["visual.attnpool.positional_embedding", "visual.attnpool.c_proj.weight"],
    ],
    "timm ViT": [
        ["visual.trunk.cls_token", "visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.bias"],
        ["visual.trunk.blocks.0.mlp.fc1.weight"],
        ["visual.trunk.blocks.1.norm1.bias"],
        ["visual.trunk.norm.weight", "visual.trunk.attn_pool.latent", "visual.head.proj.weight"],
    ],
    "timm ConvNeXt": [
        ["visual.trunk.stem.0.weight"],
        ["visual.trunk.stages.0.blocks.2.gamma"],
        ["visual.trunk.stages.1.downsample.0.weight", "visual.trunk.stages.1.blocks.0.norm.bias"],
        ["visual.trunk.head.norm.weight", "visual.head.proj.weight"],
    ],
    "timm EfficientNet": [
        ["visual.trunk.conv_stem.weight", "visual.trunk.bn1.weight"],
        ["visual.trunk.blocks.0.0.conv_dw.weight"],
        ["visual.trunk.blocks.1.1.bn2.weight"],
        ["visual.trunk.conv_head.weight", "visual.trunk.bn2.bias"],
    ],
    "BERT": [
        ["text.transformer.embeddings.word_embeddings.weight"],
        ["text.transformer.encoder.layer.0.attention.self.query.weight"],
        ["text.transformer.encoder.layer.1.output.LayerNorm.bias"],
        ["text.transformer.pooler.dense.weight", "text.proj.0.weight"],
    ],
    "T5": [
        ["text.transformer.embed_tokens.weight"],
        ["text.transformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
        ["text.transformer.block.1.layer.1.DenseReluDense.wo.weight"],
        ["text.transformer.final_layer_norm.weight", "text.proj.weight"],
    ],
    "open_clip text": [
        ["text.token_embedding.weight", "text.positional_embedding", "text.cls_emb"],
        ["text.transformer.resblocks.0.ln_1.bias"],
        ["text.transformer.resblocks.1.mlp.c_fc.weight"],
        ["text.ln_final.weight", "text.text_projection"],
    ],
}


@pytest.mark.parametrize("tower", TOWERS)
def test_what_lies_before_and_after_the_blocks_is_known(tower):
    layers = TOWERS[tower]
    scales = layer_scales([name for names in layers for name in names], 0.5)
    found = [{scales[name] for name in names} for names in layers]
    assert found == [{0.125}, {0.25}, {0.5}, {1.0}]


def test_towers_are_counted_apart_and_the_logit_scale_is_at_the_top():
    image = [name for names in TOWERS["timm ViT"] for name in names]
    scales = layer_scales([*image, *TEXT, "logit_scale", "logit_bias"], 0.5)
    assert [scales[name] for name in TEXT] == [0.25, 0.5, 1]
    assert scales["visual.trunk.cls_token"] == 0.125
    assert scales["logit_scale"] == scales["logit_bias"] == 1


@pytest.mark.parametrize(("name", "blocks"), [("test_vit", 6), ("test_convnext", 4)])
def test_towers_that_timm_makes_have_all_their_layers(tmp_path, name, blocks):
    module = create(tmp_path, TIMM | {"timm_model_name": name})
    scales = layer_scales(sorted(trained(module)), 0.5)
    found = {scale for name, scale in scales.items() if name.startswith("visual.")}
    assert found == {0.5**n for n in range(blocks + 2)}


def test_a_tower_without_known_layers_is_refused_and_needs_none_without_decay():
    names = ["visual.body.7.weight", *TEXT]
    assert set(layer_scales(names, 1).values()) == {1}
    with pytest.raises(ConfigError, match=r"image tower .*visual\.body\.7\.weight"):
        layer_scales(names, 0.9)


def test_the_longest_sequence_of_a_model_is_known(tmp_path):
    assert most_tokens(create(tmp_path / "image", VIT)) == 4 * 4 + 1
    assert most_tokens(create(tmp_path / "text", VIT | {"patch_size": 16})) == 12
