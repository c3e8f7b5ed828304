"""Which parameters decay, and how the learning rate runs."""

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from clipray.training.optim import OptimConfig, build_optimizer, learning_rate


def rates(steps, **options):
    config = OptimConfig(lr=1.0, **options)
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_warm_up_is_linear_then_half_a_cosine():
    found = rates(100, warmup=0.1, end_lr=0.2)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == 1
    assert found[55] == pytest.approx(0.6)
    assert found[99] == pytest.approx(0.2, abs=1e-3)
    assert all(a >= b for a, b in pairwise(found[10:]))


def test_constant_stays():
    assert rates(10, warmup=0.2, schedule="constant") == [0.5] + [1.0] * 9


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


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"warmup": 1}, {"beta2": 1}, {"schedule": "linear"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        OptimConfig(**wrong)
