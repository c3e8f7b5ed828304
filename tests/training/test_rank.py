"""The law of a run: cut off anywhere and begun again, it is the run that was never cut off."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from upath import UPath

from clipray.errors import ClipRayError, ConfigError, InputError, OutputError
from clipray.manifest import ModelFolder, ModelManifest, read_json
from clipray.training import loader
from clipray.training.checkpoints import MANIFEST, CheckpointConfig, Checkpoints
from clipray.training.corpus import Corpus
from clipray.training.evaluation import EvaluationConfig
from clipray.training.loader import LoaderConfig
from clipray.training.logbook import LogConfig
from clipray.training.metrics import METRICS_FILE, read_metrics
from clipray.training.optim import OptimConfig
from clipray.training.peers import Peers
from clipray.training.rank import Job, run_rank
from clipray.training.run_folder import RunFolder
from clipray.training.trainer import Trainer
from tests.conftest import ARCHITECTURE
from tests.training.told import CutOffError, Told
from tests.training.towers import VIT

STEPS = 9  # three epochs of 40 samples in batches of 12


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A model whose rows know nothing of the others in a batch, as batch norms do."""
    path = tmp_path_factory.mktemp("vit") / "vit.json"
    path.write_text(json.dumps(ARCHITECTURE | {"vision_cfg": VIT}), encoding="utf-8")
    return path


@pytest.fixture
def job(architecture):
    def make(every_steps=2, **options):
        given = {
            "epochs": 3,
            "precision": "fp32",
            "loader": LoaderConfig(batch_size=12),
            "optim": OptimConfig(lr=3e-3),
            "checkpoints": CheckpointConfig(every_steps=every_steps),
            "log": LogConfig(every_steps=1, tensorboard=False),
        }
        return Job(**({"model": str(architecture)} | given | options))

    return make


@pytest.fixture(scope="module")
def corpus(shards):
    return Corpus.survey((str(shards),), {"caption": 1.0})


def lines_of(folder):
    lines = [line for line in read_metrics(folder / METRICS_FILE) if "loss" in line]
    return [{name: line[name] for name in ("step", "loss", "order", "lr", "grad_norm")}
            for line in lines]  # fmt: skip


ALONE = Peers()


def live(folder, job, corpus, told=None, peers=ALONE):
    return run_rank(job, corpus, RunFolder(folder), peers, told or Told())


def weights(folder, step=STEPS):
    return load_file(ModelFolder(folder / "checkpoints" / f"step-{step:08d}").weights)


def assert_same(folder, other):
    assert lines_of(folder) == lines_of(other)
    ours, theirs = weights(folder), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("after", [4, 5, 6])
@pytest.mark.parametrize("ending", ["stop_after", "die_after"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_was_not(tmp_path, job, corpus, after, ending):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    live(whole, job(), corpus)
    told = Told(**{ending: after})
    if ending == "die_after":
        with pytest.raises(CutOffError):
            live(cut, job(), corpus, told)
    else:
        outcome = live(cut, job(), corpus, told)
        assert (outcome.step, outcome.stopped) == (after, True)
    again = Told()
    assert live(cut, job(), corpus, again).step == STEPS
    assert again.steps[0] == (after + 1 if ending == "stop_after" else (after - 1) // 2 * 2 + 1)
    assert_same(cut, whole)


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"precision": "fp16"}, {"accumulate": 3}])
def test_all_state_comes_back(tmp_path, job, corpus, options):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    live(whole, job(**options), corpus)
    live(cut, job(**options), corpus, Told(stop_after=4))
    live(cut, job(**options), corpus)
    assert_same(cut, whole)


def test_a_finished_run_makes_no_more_steps(tmp_path, job, corpus):
    live(tmp_path, job(), corpus)
    told = Told()
    assert live(tmp_path, job(), corpus, told).step == STEPS
    assert not told.steps


def test_the_average_of_the_weights_is_the_result(tmp_path, job, corpus):
    live(tmp_path / "plain", job(), corpus)
    live(tmp_path / "average", job(ema=0.9), corpus)
    assert lines_of(tmp_path / "plain") == lines_of(tmp_path / "average")
    plain, average = weights(tmp_path / "plain"), weights(tmp_path / "average")
    assert not torch.equal(plain["visual.conv1.weight"], average["visual.conv1.weight"])


def test_the_newest_checkpoint_that_is_damaged_is_passed_over(tmp_path, job, corpus, caplog):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    live(whole, job(), corpus)
    live(cut, job(), corpus, Told(stop_after=5))
    state = cut / "checkpoints" / "step-00000005" / "training.pt"
    state.write_bytes(state.read_bytes()[:-1])
    told = Told()
    with caplog.at_level(logging.WARNING):
        live(cut, job(), corpus, told)
    assert "step-00000005 is damaged" in caplog.text
    assert "going on from the checkpoint of step 4" in caplog.text
    assert told.steps[0] == 5
    assert_same(cut, whole)


def test_other_data_is_refused(tmp_path, job, corpus, photos):
    live(tmp_path, job(), corpus, Told(stop_after=4))
    other = Corpus.survey((str(photos),), {"caption": 1.0})
    with pytest.raises(ConfigError, match="its data has changed since step 4"):
        live(tmp_path, job(), other)


def test_a_node_that_goes_away_leaves_one_checkpoint(tmp_path, job, corpus, monkeypatch):
    monkeypatch.setattr("clipray.training.rank.PREEMPTION_LOOK_S", 0)
    live(tmp_path, job(every_steps=None), corpus, Told(gone_after=4))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", f"step-{STEPS:08d}"]


def test_time_makes_checkpoints_too(tmp_path, job, corpus):
    often = CheckpointConfig(every_minutes=1e-9, keep=99)
    live(tmp_path, job(checkpoints=often), corpus)
    assert len(list((tmp_path / "checkpoints").iterdir())) == STEPS


def test_evaluations_are_logged_and_choose_the_result(tmp_path, job, corpus, shards):
    best = CheckpointConfig(every_epochs=1, keep=1, best="text_to_image_mean_rank",
                            lower_is_better=True)  # fmt: skip
    evaluated = job(evaluation=EvaluationConfig(input=(str(shards),)), checkpoints=best)
    live(tmp_path, evaluated, corpus)
    found = [line for line in read_metrics(tmp_path / METRICS_FILE) if "clip_val_loss" in line]
    assert [line["epoch"] for line in found] == [0, 1, 2]
    ranks = [line["text_to_image_mean_rank"] for line in found]
    with Checkpoints(tmp_path / "checkpoints", best).result() as (folder, manifest):
        assert manifest.metrics["text_to_image_mean_rank"] == min(ranks)
        told = read_json(ModelManifest, ModelFolder(folder).manifest)
        assert told.metrics == manifest.metrics


def test_gradients_that_are_not_finite_are_skipped_and_ten_end_the_run(tmp_path, job, corpus):
    wild = OptimConfig(lr=1e30, warmup=0, schedule="constant")
    with pytest.raises(ClipRayError, match="not finite in 10 steps"):
        live(tmp_path, job(optim=wild, epochs=9), corpus)
    lines = [line for line in read_metrics(tmp_path / METRICS_FILE) if "loss" in line]
    assert len(lines) < 20


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_reason(tmp_path, job, corpus):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OutputError, match="a checkpoint cannot be written"):
        live(tmp_path, job(), corpus)


def test_the_run_says_what_it_ran_on(tmp_path, job, corpus):
    live(tmp_path, job(epochs=1), corpus)
    assert '"torch": "' in (tmp_path / "environment.json").read_text()


def test_a_run_can_live_in_a_store(tmp_path, job, corpus):
    live(tmp_path / "whole", job(), corpus)
    store = UPath(f"memory://runs/{tmp_path.name}")
    live(store, job(), corpus, Told(stop_after=5))
    assert sorted(path.parent.name for path in store.rglob(MANIFEST))[-1] == "step-00000005"
    told = Told()
    live(store, job(), corpus, told)
    assert told.steps[0] == 6
    (tmp_path / METRICS_FILE).write_bytes((store / METRICS_FILE).read_bytes())
    assert lines_of(tmp_path) == lines_of(tmp_path / "whole")


def test_an_epoch_is_evaluated_before_its_checkpoint(tmp_path, job, corpus, shards):
    evaluated = job(every_steps=3, evaluation=EvaluationConfig(input=(str(shards),)))
    with pytest.raises(CutOffError):
        live(tmp_path, evaluated, corpus, Told(die_after=4))
    live(tmp_path, evaluated, corpus)
    found = [line for line in read_metrics(tmp_path / METRICS_FILE) if "clip_val_loss" in line]
    assert [line["step"] for line in found] == [3, 6, 9]


def live_on_ranks(peers, folder, job, corpus, told=None):
    outcome = live(folder, job, corpus, told, peers)
    return outcome.step


def test_two_ranks_live_the_same_run_as_one(tmp_path, job, vit, corpus, two_ranks):
    live(tmp_path / "one", job(model=str(vit)), corpus)
    assert two_ranks(live_on_ranks, tmp_path / "two", job(model=str(vit)), corpus) == [STEPS, STEPS]
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line["order"] for line in one] == [line["order"] for line in two]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert one[-1]["loss"] < one[0]["loss"]


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, job, vit, corpus, two_ranks):
    live(tmp_path / "whole", job(model=str(vit)), corpus)
    assert two_ranks(
        live_on_ranks, tmp_path / "cut", job(model=str(vit)), corpus, Told(stop_after=5)
    ) == [5, 5]
    told = Told()
    live(tmp_path / "cut", job(model=str(vit)), corpus, told)
    assert told.steps == [6, 7, 8, 9]
    whole, cut = lines_of(tmp_path / "whole"), lines_of(tmp_path / "cut")
    assert [line["order"] for line in cut] == [line["order"] for line in whole]
    assert [line["loss"] for line in cut] == pytest.approx(
        [line["loss"] for line in whole], rel=1e-3
    )


def poisoned(peers, folder, job, corpus):
    """Rank 1 has no finite loss in steps 3 to 5."""
    step = Trainer.step

    def poison(self, batch, waited=0.0):
        if peers.rank == 1 and 2 <= self.done < 5:
            self.raw.logit_scale.register_hook(lambda grad: grad * float("nan"))
        step(self, batch, waited)
        self.raw.logit_scale._backward_hooks = None

    Trainer.step = poison
    try:
        live(folder, job, corpus, None, peers)
    finally:
        Trainer.step = step


def test_all_ranks_skip_a_step_together(tmp_path, job, corpus, two_ranks):
    two_ranks(poisoned, tmp_path, job(), corpus)
    lines = [line for line in read_metrics(tmp_path / METRICS_FILE) if "loss" in line]
    assert [line["step"] for line in lines if line["skipped"]] == [3, 4, 5]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def without_data(peers, folder, job, corpus):
    """Rank 1 cannot read its second batch."""
    epoch = loader.Loader.epoch

    def fail(self, *arguments):
        batches = epoch(self, *arguments)
        yield next(batches)
        if peers.rank == 1:
            raise InputError("the disk of rank 1 is gone")
        yield from batches

    loader.Loader.epoch = fail
    try:
        live(folder, job, corpus, None, peers)
    except ClipRayError as error:
        return str(error)
    finally:
        loader.Loader.epoch = epoch


def test_a_rank_that_fails_alone_ends_all_with_its_reason(tmp_path, job, corpus, two_ranks):
    assert two_ranks(without_data, tmp_path, job(), corpus) == ["the disk of rank 1 is gone"] * 2


def test_only_whole_checkpoints_are_left(tmp_path, job, corpus):
    live(tmp_path, job(), corpus)
    for path in (tmp_path / "checkpoints").iterdir():
        assert (path / MANIFEST).is_file()
