"""One rank without Ray: it learns, it repeats itself, and the recipe decides."""

import pytest
import torch

from clipray import clip
from clipray.manifest import ModelSource
from clipray.training.augment import AugmentConfig
from clipray.training.corpus import Corpus
from clipray.training.loader import Loader, LoaderConfig
from clipray.training.optim import OptimConfig
from clipray.training.plan import Plan
from clipray.training.trainer import MAX_LOG_SCALE, Recipe, Trainer

STRONG = AugmentConfig(rotate=30, shift=0.2, brightness=0.4)


@pytest.fixture(scope="module")
def train(photos, architecture):
    """Run a recipe on the drawings; gives the trainer, the model and the metrics of all steps."""
    corpus = Corpus.survey([str(photos)], {"caption": 1.0})

    def run(**options):
        options = {"epochs": 3, "precision": "fp32", "optim": OptimConfig(lr=3e-3)} | options
        recipe = Recipe(loader=LoaderConfig(batch_size=20), **options)
        model = clip.create(ModelSource(name=str(architecture)), recipe.seed)
        plan = Plan(corpus.counts, 20, recipe.seed)
        trainer = Trainer(model, recipe, plan, torch.device("cpu"), lambda module: module)
        loader = Loader(
            corpus,
            recipe.loader,
            plan,
            recipe.seed,
            pixels=trainer.pixels,
            tokenize=model.tokenize,
        )
        epochs = range(recipe.epochs)
        steps = [step for epoch in epochs for step in trainer.epoch(loader.epoch(epoch))]
        return trainer, model, steps

    return run


def losses(result):
    return [step["loss"] for step in result[2]]


def test_the_loss_goes_down(train):
    trainer, _, steps = train(epochs=12)
    assert trainer.loss() < 0.6 * steps[0]["loss"]
    assert trainer.loss() == pytest.approx((steps[-1]["loss"] + steps[-2]["loss"]) / 2)


def test_equal_seeds_give_equal_weights_and_others_do_not(train):
    first, second = train(augment=STRONG, seed=3), train(augment=STRONG, seed=3)
    assert losses(first) == losses(second)
    assert first[1].identity() == second[1].identity()
    other = train(augment=STRONG, seed=4)
    assert losses(other) != losses(first)
    assert other[1].identity().weights != first[1].identity().weights


def test_augmentation_ends_at_its_share_of_the_steps(train):
    never, always = losses(train()), losses(train(augment=STRONG))
    assert losses(train(augment=STRONG, augment_until=0)) == never
    half = losses(train(augment=STRONG, augment_until=0.5))
    assert half[:3] == always[:3]
    assert half[3] != always[3]
    assert half[0] != never[0]


def test_steps_tell_rate_and_scale(train):
    _, model, steps = train(epochs=5, optim=OptimConfig(lr=1e-3, warmup=0.2))
    assert [step["step"] for step in steps] == list(range(1, 11))
    assert [step["lr"] for step in steps[:3]] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert steps[-1]["lr"] < 1e-4
    assert steps[-1]["logit_scale"] == pytest.approx(model.module.logit_scale.exp().item())


def test_the_logit_scale_stays_bounded(train):
    _, model, steps = train(optim=OptimConfig(lr=1.0, warmup=0, schedule="constant"))
    assert all(step["logit_scale"] <= 100.01 for step in steps)
    assert 0 <= model.module.logit_scale.item() <= MAX_LOG_SCALE + 1e-6


def test_a_clipped_gradient_takes_another_way(train):
    assert losses(train(optim=OptimConfig(lr=3e-3, clip_grad_norm=1e-3))) != losses(train())


def test_bf16_learns_nearly_the_same(train):
    plain, half = losses(train(epochs=6)), losses(train(epochs=6, precision="bf16"))
    assert half[0] == pytest.approx(plain[0], abs=0.05)
    assert half[-1] < half[0]
