"""Which parameters decay, how the learning rate runs, and what a layer's share of it is."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from clipray.config import parse, read_yaml, to_yaml
from clipray.training.optim import OptimConfig, build_optimizer, learning_rate, set_rates
from tests.training.towers import RESNET, VIT, create, trained


def rates(steps, per_epoch=10, **options):
    config = OptimConfig(lr=1.0, **options)
    return [learning_rate(config, step, steps, per_epoch) for step in range(steps)]


def test_warm_up_is_linear_then_half_a_cosine():
    found = rates(100, warmup=0.1, end_lr=0.2)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == 1
    assert found[55] == pytest.approx(0.6)
    assert found[99] == pytest.approx(0.2, abs=1e-3)
    assert all(a >= b for a, b in pairwise(found[10:]))


def test_constant_stays():
    assert rates(10, warmup=0.2, schedule="constant") == [0.5] + [1.0] * 9


def test_warm_up_starts_where_it_is_told():
    assert rates(10, warmup=0.2, start_lr=0.5, schedule="constant")[:3] == [0.75, 1, 1]


@pytest.mark.parametrize(
    "length", [{"warmup": 0.1}, {"warmup_steps": 4}, {"warmup_epochs": 0.8}, {"warmup_epochs": 0.4}]
)
def test_the_length_of_the_warm_up_has_three_units(length):
    per_epoch = 10 if length == {"warmup_epochs": 0.4} else 5
    assert rates(40, per_epoch, **length)[:6] == pytest.approx(rates(40, warmup_steps=4)[:6])
    assert rates(40, per_epoch, **length)[3] == 1


def test_without_a_length_a_twentieth_warms_up():
    assert rates(40) == rates(40, warmup=0.05) != rates(40, warmup=0)


def test_a_warm_up_longer_than_the_run_is_a_slope():
    assert rates(4, warmup_steps=8) == [1 / 8, 2 / 8, 3 / 8, 4 / 8]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
def test_short_runs_have_rates_too(steps, warmup):
    assert all(0 < rate <= 1 and math.isfinite(rate) for rate in rates(steps, warmup=warmup))


def test_only_trained_matrices_decay():
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2)
    )
    module.scale = torch.nn.Parameter(torch.tensor(1.0))
    module[2].weight.requires_grad = False
    optimizer = build_optimizer(module, OptimConfig(weight_decay=0.3, beta1=0.8, epsilon=1e-7))
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight)]
    assert len(plain["params"]) == 5
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0)
    assert decayed["betas"] == plain["betas"] == (0.8, 0.98)
    assert decayed["eps"] == 1e-7


def test_decay_shrinks_a_matrix_without_gradient_and_nothing_else():
    module = torch.nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(module, OptimConfig(lr=0.1, weight_decay=0.5)).step()
    torch.testing.assert_close(module.weight.detach(), before[0] * 0.95)
    torch.testing.assert_close(module.bias.detach(), before[1])


def test_biases_and_norms_decay_on_request_and_the_logit_scale_never(tmp_path):
    module = create(tmp_path, VIT, init_logit_bias=-10.0)
    config = OptimConfig(decay_bias_and_norm=True, weight_decay=0.3)
    decayed, plain = build_optimizer(module, config).param_groups
    assert [id(p) for p in plain["params"]] == [id(module.logit_scale), id(module.logit_bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0)
    assert len(decayed["params"]) == len(trained(module)) - 2


@pytest.mark.parametrize(("vision", "blocks"), [(VIT, 3), (RESNET, 4)])
def test_groups_have_the_rate_of_their_layer(tmp_path, vision, blocks):
    module = create(tmp_path, vision)
    module.visual.conv1.weight.requires_grad = False
    config = OptimConfig(lr=1.0, layer_decay=0.5, warmup=0)
    optimizer = build_optimizer(module, config)
    assert set_rates(optimizer, config, 0, 10, 10) == 1
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(trained(module))
    assert rate[id(module.logit_scale)] == rate[id(module.text_projection)] == 1
    assert rate[id(module.transformer.resblocks[1].ln_1.bias)] == 0.5
    assert rate[id(module.token_embedding.weight)] == 0.5**3
    image = [rate[id(p)] for p in module.visual.parameters() if id(p) in rate]
    assert (min(image), max(image)) == (0.5 ** (blocks + 1), 1)
    assert {(g["lr_scale"], g["weight_decay"] > 0) for g in optimizer.param_groups} >= {
        (0.5**n, decays) for n in range(4) for decays in (True, False)
    }


def test_frozen_layers_count_as_layers(tmp_path):
    module = create(tmp_path, VIT)
    config = OptimConfig(layer_decay=0.5)
    module.visual.transformer.resblocks[2].requires_grad_(requires_grad=False)
    groups = build_optimizer(module, config).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(module.visual.transformer.resblocks[1].ln_1.bias)] == 0.25


def test_a_step_with_found_inf_leaves_weights_and_state_untouched(tmp_path):
    module, config = create(tmp_path, VIT), OptimConfig(lr=0.1, warmup=0)
    optimizer = build_optimizer(module, config)
    step(module, optimizer, config, 0, gradient=1.0)
    weights, state = snapshot(module, optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    step(module, optimizer, config, 1, gradient=math.nan)
    torch.testing.assert_close(snapshot(module, optimizer), (weights, state), rtol=0, atol=0)
    optimizer.found_inf = torch.tensor(0.0)
    step(module, optimizer, config, 2, gradient=1.0)
    after, state = snapshot(module, optimizer)
    assert all((after[name] != weights[name]).any() for name in weights)
    assert {values["step"].item() for values in state.values()} == {2}


def step(module, optimizer, config, number, gradient):
    set_rates(optimizer, config, number, 10, 10)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def snapshot(module, optimizer):
    return copy.deepcopy((module.state_dict(), optimizer.state_dict()["state"]))


def test_two_lengths_of_warm_up_are_refused():
    with pytest.raises(ValidationError, match="warmup_steps and warmup_epochs are both given"):
        OptimConfig(warmup_steps=3, warmup_epochs=0.0)


@pytest.mark.parametrize("given", [{}, {"warmup_steps": 3}])
def test_a_config_that_was_written_can_be_read(tmp_path, given):
    file = tmp_path / "optim.yaml"
    file.write_text(to_yaml(OptimConfig(**given)))
    assert parse(OptimConfig, read_yaml(file), "file") == OptimConfig(**given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"warmup": 1},
        {"warmup_steps": -1},
        {"beta2": 1},
        {"schedule": "linear"},
        {"layer_decay": 0},
        {"layer_decay": 1.1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        OptimConfig(**wrong)
