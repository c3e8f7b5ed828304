"""CLIP.yaml as PaddleClas has it: each of its keys decides something, warns, or is refused."""

import logging
import shutil

import pytest

from clipray.config import load_config
from clipray.errors import ConfigError, UsageError
from clipray.paddle import export, infer, train
from clipray.paddle.notes import Notes
from tests.drawing import write_shards
from tests.paddle.leaves import CLIP_YAML, leaves, value_at

LOSS, TRAIN, EVAL = "Loss.{}.0.ContrastiveLoss", "DataLoader.Train", "DataLoader.Eval"
RESIZE, NORMALIZE = "dataset.transform.0.ResizeImage", "dataset.transform.1.NormalizeImage"

# Key: the value that it is given, what that decides, and how it comes out.
DECIDES = {
    "Global.checkpoints": ("{root}/went", "run", "{root}/went"),
    "Global.pretrained_model": ("laion2b_e16", "pretrained", "laion2b_e16"),
    "Global.output_dir": ("{root}/other", "output", "{root}/other/model"),
    "Global.device": ("gpu", "gpu", "True"),
    "Global.save_interval": ("5", "checkpoints.every_epochs", "5"),
    "Global.eval_during_train": ("False", "evaluation.input", "()"),
    "Global.eval_interval": ("4", "evaluation.every_epochs", "4"),
    "Global.epochs": ("7", "epochs", "7"),
    "Global.print_batch_step": ("20", "log.every_steps", "20"),
    "Global.use_visualdl": ("True", "log.tensorboard", "True"),
    "Arch.name": ("CLIP_vit_base_patch16_224_with_TextEncoder", "model", "ViT-B-16"),
    f"{LOSS.format('Train')}.weight": ("0.5", "loss.weight", "0.5"),
    "Optimizer.beta1": ("0.8", "optim.beta1", "0.8"),
    "Optimizer.beta2": ("0.98", "optim.beta2", "0.98"),
    "Optimizer.epsilon": ("1e-6", "optim.epsilon", "1e-06"),
    "Optimizer.weight_decay": ("0.2", "optim.weight_decay", "0.2"),
    "Optimizer.layerwise_decay": ("0.7", "optim.layer_decay", "0.7"),
    "Optimizer.filter_bias_and_bn": ("False", "optim.decay_bias_and_norm", "True"),
    "Optimizer.lr.learning_rate": ("1e-3", "optim.lr", "0.001"),
    "Optimizer.lr.eta_min": ("1e-5", "optim.end_lr", "1e-05"),
    "Optimizer.lr.warmup_epoch": ("2", "optim.warmup_epochs", "2.0"),
    "Optimizer.lr.warmup_start_lr": ("1e-7", "optim.start_lr", "1e-07"),
    f"{TRAIN}.dataset.root_path": ("{root}/twin", "input", "('{root}/twin/train',)"),
    f"{TRAIN}.dataset.split": ("eval", "input", "('{root}/data/eval',)"),
    f"{TRAIN}.sampler.batch_size": ("16", "loader.batch_size", "16"),
    f"{TRAIN}.loader.num_workers": ("1", "loader.processes", "1"),
    f"{EVAL}.dataset.root_path": ("{root}/twin", "evaluation.input", "('{root}/twin/eval',)"),
    f"{EVAL}.dataset.split": ("train", "evaluation.input", "('{root}/data/train',)"),
    f"{EVAL}.sampler.batch_size": ("32", "evaluation.batch_size", "32"),
    f"{EVAL}.loader.num_workers": ("3", "loader.threads", "3"),
}
DECIDES_EXPORT = {
    "Global.save_inference_dir": ("{root}/onnx", "output", "{root}/onnx"),
    "Arch.clip": ("image", "towers", "image"),
}
# What training always does is asked for in another way, or decides nothing.
WARNS = {
    f"{LOSS.format('Train')}.margin": ("2.0", "softmax over the batch"),
    f"{LOSS.format('Eval')}.margin": ("2.0", "softmax over the batch"),
    f"{LOSS.format('Eval')}.weight": ("0.5", "told without a weight"),
    f"{TRAIN}.sampler.drop_last": ("False", "other samples each epoch"),
    f"{TRAIN}.sampler.shuffle": ("False", "always shuffles"),
    f"{TRAIN}.loader.use_shared_memory": ("False", "in shared memory"),
    f"{EVAL}.sampler.drop_last": ("True", "takes every sample"),
    f"{EVAL}.sampler.shuffle": ("True", "changes no metric"),
    f"{EVAL}.loader.use_shared_memory": ("False", "in shared memory"),
}
REFUSED = {
    "Global.image_shape": ("[3, 64, 64]", "the transforms make pictures of size"),
    f"{LOSS.format('Train')}.embedding_size": ("256", "have 512 numbers"),
    f"{LOSS.format('Eval')}.embedding_size": ("256", "have 512 numbers"),
    f"{LOSS.format('Train')}.is_text_image_pairs": ("False", "should be True"),
    f"{LOSS.format('Eval')}.is_text_image_pairs": ("False", "should be True"),
    "Optimizer.name": ("Momentum", "should be 'AdamW'"),
    "Optimizer.lr.name": ("Step", "should be 'Cosine'"),
    f"{TRAIN}.{RESIZE}.size": ("64", "one way to make pictures ready"),
    f"{TRAIN}.{RESIZE}.interpolation": ("bilinear", "one way to make pictures ready"),
    f"{TRAIN}.{NORMALIZE}.mean": ("[0.5, 0.5, 0.5]", "one way to make pictures ready"),
    f"{TRAIN}.{NORMALIZE}.std": ("[0.5, 0.5, 0.5]", "one way to make pictures ready"),
    f"{EVAL}.{RESIZE}.size": ("64", "one way to make pictures ready"),
    f"{EVAL}.{RESIZE}.interpolation": ("bilinear", "one way to make pictures ready"),
    f"{EVAL}.{NORMALIZE}.mean": ("[0.5, 0.5, 0.5]", "one way to make pictures ready"),
    f"{EVAL}.{NORMALIZE}.std": ("[0.5, 0.5, 0.5]", "one way to make pictures ready"),
} | {
    f"{split}.{key}": (value, key.rpartition(".")[2])
    for split in (TRAIN, EVAL)
    for key, value in {
        "dataset.name": "ImageNet",
        f"{RESIZE}.backend": "no such",
        f"{NORMALIZE}.scale": "no such",
        f"{NORMALIZE}.order": "no such",
        "dataset.transform.2.ToCHWImage": "[1]",
        "sampler.name": "PKSampler",
    }.items()
}  # fmt: skip
REFUSED_EXPORT = {
    "Global.export_shape": ("[78]", r"at most \[77\] tokens"),
    "Global.export_type": ("float32", "tokens as int64"),
}
TABLES = (DECIDES, DECIDES_EXPORT, WARNS, REFUSED, REFUSED_EXPORT)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data with two splits, twice, and a run."""
    root = tmp_path_factory.mktemp("paddle")
    for folder in ("train", "eval"):
        write_shards(root / "data" / folder, 4)
    shutil.copytree(root / "data", root / "twin")
    (root / "went").mkdir()
    (root / "went" / "train.yaml").write_text("{}")
    return root


@pytest.fixture
def read(root):
    """The file as it is, but for paths and what else is asked for."""

    def read(kind, overrides):
        paths = [f"{split}.dataset.root_path={root}/data" for split in (TRAIN, EVAL)]
        given = ["Global.pretrained_model=null", *paths, *overrides]
        return load_config(kind, CLIP_YAML, [text.format(root=root) for text in given])

    return read


@pytest.fixture
def translated(read):
    def translate(*overrides, workers=1):
        return train.translate(read(train.PaddleTrainConfig, overrides), workers, Notes())

    return translate


@pytest.fixture
def exported(read):
    def translate(*overrides):
        tag = "Global.pretrained_model=laion2b_e16"
        config = read(export.PaddleExportConfig, (tag, *overrides))
        return export.translate(config, Notes())

    return translate


@pytest.mark.parametrize(
    ("kind", "run"),
    [(train.PaddleTrainConfig, train.train), (infer.PaddleInferConfig, infer.infer),
     (export.PaddleExportConfig, export.export)],
)  # fmt: skip
def test_the_file_is_accepted_word_for_word_and_weights_of_paddle_are_told(kind, run):
    assert load_config(kind, CLIP_YAML).Optimizer.epsilon == 1e-8
    config = load_config(kind, CLIP_YAML, [f"Global.infer_imgs={__file__}"])
    with pytest.raises(ConfigError, match=r"ViT-B-32\.pdparams.*laion2b_s34b_b79k.*\.safetensors"):
        run(config)


def test_every_key_of_the_file_is_in_one_of_the_tables():
    told = [key for table in TABLES for key in table]
    assert sorted(told) == sorted(leaves(CLIP_YAML))


@pytest.mark.parametrize("key", DECIDES)
def test_what_a_key_decides(translated, root, key):
    value, path, expected = (text.format(root=root) for text in DECIDES[key])
    assert str(value_at(translated(), path)) != expected
    assert str(value_at(translated(f"{key}={value}"), path)) == expected


@pytest.mark.parametrize("key", DECIDES_EXPORT)
def test_what_a_key_decides_of_an_export(exported, root, key):
    value, path, expected = (text.format(root=root) for text in DECIDES_EXPORT[key])
    assert str(value_at(exported(), path)) != expected
    assert str(value_at(exported(f"{key}={value}"), path)) == expected


@pytest.mark.parametrize("key", WARNS)
def test_what_decides_nothing_is_told_once(translated, caplog, key):
    value, why = WARNS[key]
    with caplog.at_level(logging.WARNING, "clipray.paddle"):
        translated(f"{key}={value}")
    (told,) = [text for text in caplog.messages if text.startswith(f"{key}: ")]
    assert why in told


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_be_is_refused(translated, key):
    value, why = REFUSED[key]
    with pytest.raises(ConfigError, match=why):
        translated(f"{key}={value}")


@pytest.mark.parametrize("key", REFUSED_EXPORT)
def test_what_cannot_be_exported_is_refused(exported, key):
    value, why = REFUSED_EXPORT[key]
    with pytest.raises(ConfigError, match=why):
        exported(f"{key}={value}")


def test_what_the_file_asks_for_and_training_does_anyway_is_no_warning(translated, caplog):
    quiet = (f"{TRAIN}.sampler.drop_last=True", f"{EVAL}.sampler.shuffle=False",
             f"{EVAL}.sampler.batch_size=64")  # fmt: skip
    with caplog.at_level(logging.WARNING, "clipray.paddle"):
        translated(*quiet)
    assert {text.partition(":")[0].rpartition(".")[2] for text in caplog.messages} == {"margin"}


def test_one_pair_a_batch_has_no_loss_which_is_told(translated, caplog):
    translated()
    assert "DataLoader.Eval.sampler.batch_size: is 1, and clip_val_loss then 0" in caplog.text
    caplog.clear()
    translated(f"{EVAL}.sampler.batch_size=2")
    assert "clip_val_loss" not in caplog.text


def test_an_export_takes_shorter_texts_and_pictures_without_tokens(exported, caplog):
    with caplog.at_level(logging.WARNING, "clipray.paddle"):
        exported("Global.export_shape=[40]")
        exported("Arch.clip=image", "Global.export_shape=[3, 224, 224]")
    assert [text.partition(",")[2] for text in caplog.messages] == [
        " a text tower takes texts of any length up to the model's 77 tokens",
        " an image tower takes pictures of Global.image_shape",
        " an image tower takes pixels in 8 bits, as they are",
    ]


def test_the_transforms_and_the_shape_become_the_preprocessing(translated):
    own = translated().preprocess
    assert (own.size, own.resize_mode, own.interpolation) == ((224, 224), "squash", "bicubic")
    assert own.mean == (0.48145466, 0.4578275, 0.40821073)
    size = [f"{split}.{RESIZE}.size=64" for split in (TRAIN, EVAL)]
    both = [f"{split}.{NORMALIZE}.{key}=[0.5, 0.5, 0.5]"
            for split in (TRAIN, EVAL) for key in ("mean", "std")]  # fmt: skip
    made = translated(*size, *both, "Global.image_shape=[3, 64, 64]").preprocess
    assert (made.size, made.mean, made.std) == ((64, 64), (0.5,) * 3, (0.5,) * 3)


def test_a_batch_is_as_large_as_those_of_all_cards(translated, monkeypatch):
    assert translated(workers=4).loader.batch_size == 1024
    assert translated(workers=4).workers == 4
    assert train.count_workers("cpu") == 1
    for gpus in (0, 3):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        if gpus:
            assert train.count_workers("gpu") == gpus
        else:
            with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
                train.count_workers("gpu")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Global.epoch=3", "unknown key 'Global.epoch', did you mean 'epochs'"),
        ("Optimizer.lr.warm_up_epoch=3", "did you mean 'warmup_epoch'"),
        (f"{LOSS.format('Train')}.weigth=3", "did you mean 'weight'"),
        (f"{TRAIN}.sampler.batchsize=3", "did you mean 'batch_size'"),
        ("Loss.Train.1.ContrastiveLoss.weight=3", "expected a place in a list of 1"),
        ("Global.device=xpu", "should be 'cpu' or 'gpu'"),
        ("Global.checkpoints={root}/data", "expected the folder of a run"),
        ("Global.checkpoints=out/latest.pdparams", "weights of PaddlePaddle"),
        ("Global.pretrained_model=best_model", "no file and no model folder.*laion2b_s34b_b79k"),
        ("Arch.name=CLIP_vit_base_patch32", "neither an open_clip model name"),
        (f"{TRAIN}.dataset.split=valid", r"expected a folder .*/valid or shards .*/valid\*\.tar"),
        (f"{TRAIN}.dataset.root_path=./mscoco", "no such folder"),
        ("DataLoader.Eval=null", "DataLoader.Eval: is missing"),
        ("DataLoader=null", "DataLoader"),
    ],
)
def test_a_mistake_is_told_by_its_key(translated, given, told):
    with pytest.raises(UsageError, match=told):
        translated(given)


def test_a_split_may_be_what_shards_are_called(translated, root, tmp_path):
    for shard in sorted((root / "data" / "train").iterdir()):
        shutil.copy(shard, tmp_path / f"train{shard.name}")
    flat = (f"{TRAIN}.dataset.root_path={tmp_path}", f"{TRAIN}.dataset.split=")
    assert translated(flat[0]).input == (f"{tmp_path}/train*.tar",)
    assert translated(*flat).input == (str(tmp_path),)
