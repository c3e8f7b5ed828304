"""Fifty steps of ours and of a plain open_clip loop have the same loss at every step."""

import copy

import open_clip
import pytest
import torch
from open_clip_train.scheduler import cosine_lr

from clipray.training.gradients import Gradients
from clipray.training.loss import LossConfig
from clipray.training.optim import OptimConfig, build_optimizer, set_rates
from tests.training.towers import RESNET, VIT, batch, create

STEPS, WARM, ROWS = 50, 10, 8
CONFIG = OptimConfig(lr=1e-3, warmup_steps=WARM, weight_decay=0.2)


def ours(module, batches, micro_batches):
    optimizer = build_optimizer(module, CONFIG)
    gradients = Gradients(module, LossConfig(), "fp32", micro_batches)
    for step, rows in enumerate(batches):
        set_rates(optimizer, CONFIG, step, STEPS, STEPS)
        yield gradients(*rows, step).item()
        optimizer.step()


def theirs(module, batches):
    """open_clip's training loop, cut to what decides the weights."""
    named = list(module.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or "logit_scale" in name]
    rest = [p for name, p in named if not (p.ndim < 2 or "logit_scale" in name)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    schedule, loss = cosine_lr(optimizer, 1e-3, WARM, STEPS), open_clip.ClipLoss()
    for step, rows in enumerate(batches):
        schedule(step)
        optimizer.zero_grad()
        value = loss(*module(*rows))
        value.backward()
        yield value.item()
        optimizer.step()


@pytest.mark.parametrize(
    ("vision", "micro_batches"), [(VIT, 1), (VIT, 2), (RESNET, 1)], ids=["vit", "parts", "resnet"]
)
def test_the_losses_agree_at_every_step(tmp_path, vision, micro_batches):
    module = create(tmp_path, vision).train()
    other = copy.deepcopy(module)
    batches = [batch(ROWS, seed=step % 5) for step in range(STEPS)]
    mine = torch.tensor(list(ours(module, batches, micro_batches)))
    reference = torch.tensor(list(theirs(other, batches)))
    assert mine[-1] < mine[0] / 2
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=0)
