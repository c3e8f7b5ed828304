"""One rank without Ray: it learns, it repeats itself, and the recipe decides."""

import pytest
import torch

from clipray import clip
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.training.augment import AugmentConfig
from clipray.training.corpus import Corpus
from clipray.training.loader import Loader, LoaderConfig, plan_of
from clipray.training.locks import LockConfig
from clipray.training.loss import LossConfig
from clipray.training.optim import OptimConfig
from clipray.training.peers import Peers
from clipray.training.trainer import MAX_LOG_SCALE, Recipe, Trainer

STRONG = AugmentConfig(rotate=30, shift=0.2, brightness=0.4)


@pytest.fixture(scope="module")
def train(photos, architecture):
    """Run a recipe on the drawings; gives the trainer and the metrics of all steps."""
    corpus = Corpus.survey([str(photos)], {"caption": 1.0})

    def run(change=lambda model: None, **options):
        options = {"epochs": 3, "precision": "fp32", "optim": OptimConfig(lr=3e-3)} | options
        recipe = Recipe(loader=LoaderConfig(batch_size=20), **options)
        model = clip.create(ModelSource(name=str(architecture)), recipe.seed)
        change(model.module)
        plan = plan_of(corpus, recipe.loader, recipe.seed)
        trainer = Trainer(model, recipe, plan.steps, Peers())
        pixels = pixel_reader(model.preprocess)
        loader = Loader(
            corpus, recipe.loader, plan, recipe.seed, pixels=pixels, tokenize=model.tokenize
        )
        for epoch in range(recipe.epochs):
            for batch in loader.epoch(epoch):
                trainer.step(batch)
        return trainer, trainer.drain()

    return run


def losses(result):
    return [step["loss"] for step in result[1]]


def test_the_loss_goes_down(train):
    found = losses(train(epochs=12))
    assert found[-1] < 0.6 * found[0]


def test_equal_seeds_give_equal_weights_and_others_do_not(train):
    first, second = train(augment=STRONG, seed=3), train(augment=STRONG, seed=3)
    assert losses(first) == losses(second)
    assert first[0].model.identity() == second[0].model.identity()
    other = train(augment=STRONG, seed=4)
    assert losses(other) != losses(first)
    assert other[0].model.identity().weights != first[0].model.identity().weights


def test_augmentation_ends_at_its_share_of_the_steps(train):
    never, always = losses(train()), losses(train(augment=STRONG))
    assert losses(train(augment=STRONG, augment_until=0)) == never
    half = losses(train(augment=STRONG, augment_until=0.5))
    assert half[:3] == always[:3]
    assert half[3] != always[3]
    assert half[0] != never[0]


def test_steps_tell_rate_scale_and_place(train):
    trainer, steps = train(epochs=5, optim=OptimConfig(lr=1e-3, warmup=0.2))
    assert [step["step"] for step in steps] == list(range(1, 11))
    assert [step["epoch"] for step in steps] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [step["lr"] for step in steps[:3]] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert steps[-1]["lr"] < 1e-4
    assert steps[-1]["logit_scale"] == pytest.approx(trainer.raw.logit_scale.exp().item())
    assert all(step["grad_norm"] > 0 for step in steps)
    assert len({step["order"] for step in steps}) == 10


def test_the_logit_scale_stays_bounded(train):
    trainer, steps = train(optim=OptimConfig(lr=1.0, warmup=0, schedule="constant"))
    assert all(step["logit_scale"] <= 100.01 for step in steps)
    assert 0 <= trainer.raw.logit_scale.item() <= MAX_LOG_SCALE + 1e-6


def test_a_clipped_gradient_takes_another_way(train):
    assert losses(train(optim=OptimConfig(lr=3e-3, clip_grad_norm=1e-3))) != losses(train())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(train, precision):
    plain, half = losses(train(epochs=6)), losses(train(epochs=6, precision=precision))
    assert half[0] == pytest.approx(plain[0], abs=0.05)
    assert half[-1] < half[0]


def in_evaluation_mode(module):
    """Batch norms then use no statistics of the batch, which micro-batches would change."""
    module.train = lambda mode=True: module


def test_micro_batches_change_nothing(train):
    whole = losses(train(in_evaluation_mode))
    assert losses(train(in_evaluation_mode, accumulate=4)) == pytest.approx(whole, rel=1e-4)


def test_a_locked_tower_keeps_its_weights(train, architecture):
    def visual(module):
        return dict(module.visual.named_parameters())

    begun = visual(clip.create(ModelSource(name=str(architecture)), 0).module)
    free, locked = (visual(train(lock=LockConfig(image=on))[0].raw) for on in (False, True))
    assert all(torch.equal(p, begun[name]) for name, p in locked.items())
    assert not torch.equal(free["conv1.weight"], begun["conv1.weight"])


def test_siglip_learns_where_the_model_has_a_bias(train):
    def with_bias(module):
        module.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))

    found = losses(train(with_bias, epochs=12, loss=LossConfig(name="siglip")))
    assert found[-1] < 0.8 * found[0]


def test_checkpointing_and_compiling_change_nothing_but_the_cost(train):
    assert losses(train(grad_checkpointing=True)) == pytest.approx(losses(train()), rel=1e-5)
