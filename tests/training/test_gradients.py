"""The law: micro-batches and workers change nothing of the gradient of the global batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.amp.grad_scaler import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from clipray.errors import ConfigError
from clipray.training.gradients import Gradients
from clipray.training.locks import LockConfig, lock
from clipray.training.loss import LossConfig
from tests.training.towers import RESNET, VIT, batch, create, gradients_of

ROWS, WORLD = 8, 2
BIASED = {"init_logit_bias": -10.0, "init_logit_scale": 2.3}
KINDS = {
    "vit": (VIT, {}, LossConfig()),
    "resnet": (RESNET, {}, LossConfig()),
    "siglip": (VIT, BIASED | {"custom_text": True}, LossConfig(name="siglip")),
    "unused bias": (VIT, BIASED, LossConfig()),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of each kind; batch norms use their running statistics, which know no batch."""
    folder = tmp_path_factory.mktemp("models")
    kinds = KINDS.items()
    return {kind: create(folder / kind, vision, **o).eval() for kind, (vision, o, _) in kinds}


def run(module, config, parts=1, rows=None, **options):
    """The loss and the gradients by name."""
    options = {"precision": "fp32", "seed": 5} | options
    seed = options.pop("seed")
    gradients = Gradients(module, config, micro_batches=parts, **options)
    loss = gradients(*(batch(ROWS) if rows is None else rows), seed)
    return {"loss": loss.clone()} | gradients_of(module)


def assert_equal(found, expected, tolerance=1e-5):
    assert all(gradient is not None for gradient in expected.values())
    largest = max(gradient.abs().max() for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=tolerance * largest.item())


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing(models, kind):
    whole = run(models[kind], KINDS[kind][2])
    assert whole["logit_scale"].abs() > 1e-4
    for parts in (2, 3, 4, 8):
        assert_equal(run(models[kind], KINDS[kind][2], parts), whole)


def test_a_batch_is_not_cut_finer_than_its_rows(models):
    assert_equal(run(models["vit"], LossConfig(), 99), run(models["vit"], LossConfig()))


def test_gradients_replace_those_of_the_step_before(models):
    first = {name: tensor.clone() for name, tensor in run(models["vit"], LossConfig(), 2).items()}
    assert_equal(run(models["vit"], LossConfig(), 2), first)


def test_a_dictionary_of_features_is_understood(models):
    told = copy.deepcopy(models["siglip"])
    told.output_dict = True
    config = KINDS["siglip"][2]
    assert_equal(run(told, config, 2), run(models["siglip"], config))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_locked_tower_has_no_gradient(models, parts):
    module = copy.deepcopy(models["vit"])
    lock(module, LockConfig(image=True))
    found = run(module, LossConfig(), parts)
    assert not any(name.startswith("visual") for name in found)
    whole = run(models["vit"], LossConfig())
    assert_equal(found, {name: whole[name] for name in found})


@pytest.mark.parametrize("parts", [1, 4])
def test_dropout_follows_from_the_seed_alone(tmp_path, parts):
    module = create(tmp_path, VIT | {"patch_dropout": 0.5}).train()
    first = {name: t.clone() for name, t in run(module, LossConfig(), parts).items()}
    torch.rand(7)
    again = run(module, LossConfig(), parts)
    torch.testing.assert_close(again, first)
    assert run(module, LossConfig(), parts, seed=6)["loss"] != first["loss"]


def test_both_passes_drop_the_same(tmp_path):
    module = create(tmp_path, VIT | {"patch_dropout": 0.5}).train()
    seen = []
    module.visual.register_forward_hook(lambda _module, _in, out: seen.append(out.detach()))
    run(module, LossConfig(), 2)
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    torch.testing.assert_close(first, second)


def test_running_statistics_count_a_micro_batch_once(tmp_path):
    module = create(tmp_path, RESNET).train()
    run(module, LossConfig(), 4)
    assert module.visual.bn1.num_batches_tracked == 4
    assert module.visual.bn1.track_running_stats
    mean = module.visual.bn1.running_mean.clone()
    other = create(tmp_path, RESNET).train()
    for part in batch(ROWS)[0].chunk(4):
        other.visual(part)
    torch.testing.assert_close(mean, other.visual.bn1.running_mean)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_scaler_scales_gradients_and_not_the_loss(models, parts):
    scaler = GradScaler("cpu", init_scale=8.0)
    found = run(models["vit"], LossConfig(), parts, scaler=scaler)
    whole = run(models["vit"], LossConfig())
    torch.testing.assert_close(found.pop("loss"), whole.pop("loss"))
    assert_equal(found, {name: 8 * gradient for name, gradient in whole.items()})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_its_loss_full(models, precision):
    found = [run(models["vit"], LossConfig(), parts, precision=precision) for parts in (1, 2)]
    whole = run(models["vit"], LossConfig())
    for half in found:
        assert half["loss"].dtype == torch.float32
        assert half["loss"] != whole["loss"]
        assert_equal(half, whole, tolerance=0.1)


def test_the_fused_attention_is_left_out_where_it_is_slow(models, monkeypatch):
    asked = []

    def noted(kernels):
        asked.append(kernels)
        return sdpa_kernel(kernels)

    monkeypatch.setattr("clipray.training.gradients.sdpa_kernel", noted)
    for precision in ("fp32", "bf16"):
        run(models["vit"], LossConfig(), precision=precision)
    monkeypatch.setattr("clipray.training.gradients.FEW_TOKENS", 16)
    run(models["vit"], LossConfig(), precision="bf16")
    assert [SDPBackend.FLASH_ATTENTION in kernels for kernels in asked] == [True, False, True]


def test_siglip_needs_a_bias(models):
    with pytest.raises(ConfigError, match="init_logit_bias"):
        Gradients(models["vit"], LossConfig(name="siglip"), "fp32")


def _rank(rank, folder, models):
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    mine = tuple(rows.chunk(WORLD)[rank] for rows in batch(ROWS))
    found = {}
    for kind, module in models.items():
        wrapped = DistributedDataParallel(module)
        for parts in (1, 2, 4):
            run(wrapped, KINDS[kind][2], parts, mine)  # DDP orders its buckets anew after a step
            result = run(wrapped, KINDS[kind][2], parts, mine)
            dist.all_reduce(result["loss"])
            names = {name.removeprefix("module."): t.clone() for name, t in result.items()}
            found[kind, parts] = names | {"loss": result["loss"] / WORLD}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_equal_one_with_the_whole_batch(models, tmp_path):
    given = {kind: copy.deepcopy(module) for kind, module in models.items()}
    for module in given.values():
        module.zero_grad()
    multiprocessing.spawn(_rank, (tmp_path, given), nprocs=WORLD)
    for rank in range(WORLD):
        for (kind, _), found in torch.load(tmp_path / f"{rank}.pt").items():
            assert_equal(found, run(models[kind], KINDS[kind][2]))
