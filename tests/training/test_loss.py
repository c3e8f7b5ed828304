"""Alone they are open_clip's losses; two ranks have the loss and gradients of the whole batch."""

import open_clip
import pytest
import torch
import torch.distributed as dist
from open_clip.loss import SigLipLoss
from pydantic import ValidationError
from torch import multiprocessing
from torch.nn.functional import normalize

from clipray.training.loss import Features, Loss, LossConfig, contrastive_loss, siglip_loss

DIM, BATCH, SCALE, BIAS = 16, 12, 20.0, -10.0
WORLD = 2
RIGHT = {
    "local": LossConfig(),
    "full": LossConfig(local_loss=False),
    "siglip": LossConfig(name="siglip"),
}
CONSTANT = LossConfig(local_loss=False, gather_with_grad=False)


def towers():
    """A pair of tiny towers with everything that a gradient can reach."""
    torch.manual_seed(0)
    parts = {"image": torch.nn.Linear(8, DIM), "text": torch.nn.Linear(6, DIM)}
    module = torch.nn.ModuleDict(parts).double()
    module.scale = torch.nn.Parameter(torch.tensor(SCALE, dtype=torch.float64))
    module.bias = torch.nn.Parameter(torch.tensor(BIAS, dtype=torch.float64))
    return module


def samples():
    generator = torch.Generator().manual_seed(1)
    shapes = (BATCH, 8), (BATCH, 6)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def run(loss, images, texts):
    """The loss and the gradients of all that it reaches."""
    module = towers()
    features = normalize(module["image"](images), dim=-1), normalize(module["text"](texts), dim=-1)
    value = loss(Features(*features, module.scale, module.bias))
    value.backward()
    return [value.detach().clone(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("local", open_clip.ClipLoss()),
        ("full", open_clip.ClipLoss()),
        ("siglip", SigLipLoss()),
    ],
)
def test_alone_it_equals_open_clip(name, theirs):
    expected = run(lambda features: theirs(*features.tensors), *samples())
    torch.testing.assert_close(run(Loss(RIGHT[name]), *samples()), expected)


def test_matching_pairs_have_a_small_loss():
    eye = torch.eye(8)
    assert contrastive_loss(eye, eye, torch.tensor(50.0)) < 1e-6
    assert contrastive_loss(eye, eye.roll(1, 0), torch.tensor(50.0)) > 10
    scale, bias = torch.tensor(50.0), torch.tensor(-25.0)
    assert siglip_loss(eye, eye, scale, bias) < 1e-6
    assert siglip_loss(eye, eye.roll(1, 0), scale, bias) > 10


def test_a_wrong_pair_of_options_is_refused():
    with pytest.raises(ValidationError, match="wrong gradient"):
        LossConfig(gather_with_grad=False)


def _rank(rank, world, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    mine = [rows.chunk(world)[rank] for rows in samples()]
    found = {name: run(Loss(config), *mine) for name, config in [*RIGHT.items(), ("c", CONSTANT)]}
    for tensor in (tensor for tensors in found.values() for tensor in tensors):
        dist.all_reduce(tensor)
        tensor.div_(world)  # as DDP does
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found, averaged over ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(_rank, (WORLD, folder / "meet", folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", RIGHT)
def test_ranks_together_equal_the_whole_batch(ranks, name):
    for found in ranks:
        torch.testing.assert_close(found[name], run(Loss(RIGHT[name]), *samples()))


def test_without_grad_the_features_learn_half_at_two_ranks(ranks):
    loss, scale, bias, *features = run(Loss(CONSTANT), *samples())
    expected = [loss, scale, bias, *(gradient / WORLD for gradient in features)]
    for found in ranks:
        torch.testing.assert_close(found["c"], expected)


@pytest.mark.parametrize("name", RIGHT)
def test_a_weight_multiplies_the_loss_and_its_gradients(name):
    plain, *gradients = run(Loss(RIGHT[name]), *samples())
    weighted = run(Loss(RIGHT[name].model_copy(update={"weight": 0.25})), *samples())
    torch.testing.assert_close(weighted, [plain * 0.25, *(0.25 * given for given in gradients)])
