"""Alone it is open_clip's loss; on two ranks it has the loss and gradients of the whole batch."""

import open_clip
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn.functional import normalize

from clipray.training.loss import contrastive_loss

DIM, BATCH, SCALE = 16, 12, 20.0


def towers():
    """A pair of tiny towers with everything that a gradient can reach."""
    torch.manual_seed(0)
    parts = {"image": torch.nn.Linear(8, DIM), "text": torch.nn.Linear(6, DIM)}
    module = torch.nn.ModuleDict(parts).double()
    module.scale = torch.nn.Parameter(torch.tensor(SCALE, dtype=torch.float64))
    return module


def samples():
    generator = torch.Generator().manual_seed(1)
    shapes = (BATCH, 8), (BATCH, 6)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def loss_of(module, images, texts, loss):
    features = normalize(module["image"](images), dim=-1), normalize(module["text"](texts), dim=-1)
    return loss(*features, module.scale)


def gradients(loss, module):
    loss.backward()
    return [parameter.grad for parameter in module.parameters()]


def test_alone_it_equals_open_clip():
    ours, theirs = towers(), towers()
    mine = loss_of(ours, *samples(), contrastive_loss)
    other = loss_of(theirs, *samples(), open_clip.ClipLoss())
    torch.testing.assert_close(mine, other)
    torch.testing.assert_close(gradients(mine, ours), gradients(other, theirs))


def test_matching_pairs_have_a_small_loss():
    eye = torch.eye(8)
    assert contrastive_loss(eye, eye, torch.tensor(50.0)) < 1e-6
    assert contrastive_loss(eye, eye.roll(1, 0), torch.tensor(50.0)) > 10


def _rank(rank, world, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    module = towers()
    mine = [rows.chunk(world)[rank] for rows in samples()]
    loss = loss_of(module, *mine, contrastive_loss)
    found = [loss.detach().clone(), *gradients(loss, module)]
    for tensor in found:
        dist.all_reduce(tensor)
    torch.save([tensor / world for tensor in found], f"{results}/{rank}.pt")  # as DDP does
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2])
def test_ranks_together_equal_the_whole_batch(tmp_path, world):
    arguments = (world, tmp_path / "meet", tmp_path)
    multiprocessing.spawn(_rank, arguments, nprocs=world)
    module = towers()
    loss = loss_of(module, *samples(), contrastive_loss)
    expected = [loss.detach().clone(), *gradients(loss, module)]
    for rank in range(world):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
