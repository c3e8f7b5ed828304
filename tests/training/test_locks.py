"""What open_clip's locks freeze, tower by tower, and which wishes are refused."""

import pytest
import torch
from open_clip.factory import load_checkpoint
from pydantic import ValidationError
from safetensors.torch import save_file

from clipray.errors import ConfigError
from clipray.training.locks import LockConfig, lock
from tests.training.towers import RESNET, TIMM, VIT, batch, create, trained

# open_clip imports from where timm no longer wants it.
pytestmark = pytest.mark.filterwarnings("ignore:Importing from timm:FutureWarning")

TEXT_OF_CLIP = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_proj")


@pytest.fixture
def make(tmp_path):
    return lambda vision=VIT, **options: create(tmp_path / "model", vision, **options)


def locked(module, **options):
    lock(module, LockConfig(**options))
    return trained(module)


@pytest.mark.parametrize("custom", [False, True])
def test_nothing_asked_nothing_locked(make, custom):
    module = make(custom_text=custom)
    assert locked(module) == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("vision", [VIT, RESNET])
def test_a_locked_image_tower_trains_no_part_of_it(make, vision, custom):
    module = make(vision, custom_text=custom)
    everything = trained(module)
    found = locked(module, image=True)
    assert found == {name for name in everything if not name.startswith("visual.")}


def test_a_locked_text_tower_trains_no_part_of_it(make):
    module = make()
    everything = trained(module)
    found = locked(module, text=True)
    assert found == {name for name in everything if not name.startswith(TEXT_OF_CLIP)}
    assert found == {name for name in found if name.startswith(("visual.", "logit_scale"))}


def test_a_locked_custom_text_tower_trains_no_part_of_it(make):
    module = make(custom_text=True)
    found = locked(module, text=True)
    assert found == {name for name in found if name.startswith(("visual.", "logit_scale"))}
    assert "visual.proj" in found


def test_groups_at_the_upper_end_stay_unlocked(make):
    module = make()
    found = locked(module, image=True, image_unlocked_groups=2)
    image = {".".join(name.split(".")[1:4]) for name in found if name.startswith("visual.")}
    assert image == {
        "proj", "ln_post.weight", "ln_post.bias", "transformer.resblocks.2",
    }  # fmt: skip


@pytest.mark.parametrize(("custom", "start"), [(False, ""), (True, "text.")])
def test_text_layers_at_the_upper_end_stay_unlocked(make, custom, start):
    module = make(custom_text=custom)
    found = locked(module, text=True, text_unlocked_layers=2)
    assert {f"{start}text_projection", f"{start}ln_final.bias"} <= found
    assert f"{start}transformer.resblocks.1.ln_1.bias" in found
    assert f"{start}transformer.resblocks.0.ln_1.bias" not in found
    assert f"{start}token_embedding.weight" not in found


def test_a_timm_trunk_is_locked_and_its_projection_is_not(make):
    module = make(TIMM)
    found = {name for name in locked(module, image=True) if name.startswith("visual.")}
    assert found == {"visual.head.proj.weight"}
    found = locked(make(TIMM), image=True, image_unlocked_groups=2)
    assert {"visual.trunk.norm.bias", "visual.trunk.blocks.4.norm1.bias"} <= found
    assert "visual.trunk.blocks.3.norm1.bias" not in found


def test_frozen_statistics_stay_and_the_weights_still_fit_the_model(make, tmp_path):
    for frozen in (True, False):
        module = make(RESNET)
        lock(module, LockConfig(image=True, freeze_bn=frozen))
        module.train().visual(batch(4)[0])
        assert (module.visual.bn1.running_mean == 0).all() == frozen
        save_file(module.state_dict(), tmp_path / "weights.safetensors")
        load_checkpoint(make(RESNET), str(tmp_path / "weights.safetensors"))


def test_both_towers_leave_nothing_to_train(make):
    with pytest.raises(ConfigError, match="nothing is left to train"):
        lock(make(), LockConfig(image=True, text=True))
    assert "visual.proj" in locked(make(), image=True, text=True, image_unlocked_groups=1)


@pytest.mark.parametrize(
    ("vision", "options", "told"),
    [
        (RESNET, {"image": True, "image_unlocked_groups": 1}, "partial locking not currently"),
        (VIT, {"image": True, "image_unlocked_groups": 99}, "nothing of the tower is locked"),
        (TIMM, {"image": True, "image_unlocked_groups": 99}, "nothing of the tower is locked"),
        (VIT, {"text": True, "text_unlocked_layers": 99}, "nothing of the tower is locked"),
    ],
)
def test_what_cannot_be_locked_is_told(make, vision, options, told):
    with pytest.raises(ConfigError, match=told):
        lock(make(vision), LockConfig(**options))


def test_a_tower_without_a_lock_is_told():
    with pytest.raises(ConfigError, match=r"lock\.text: this model cannot be locked that way"):
        lock(torch.nn.Linear(2, 2), LockConfig(text=True))


@pytest.mark.parametrize(
    "wrong",
    [{"image_unlocked_groups": 1}, {"text_unlocked_layers": 1}, {"freeze_bn": True}],
)
def test_options_of_a_tower_that_is_not_locked_are_refused(wrong):
    with pytest.raises(ValidationError, match=r"lock\."):
        LockConfig(**wrong)
