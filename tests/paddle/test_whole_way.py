"""The two files from data to answers, with no more changed than paths, and a model that is tiny."""

import json
import shutil

import pytest

from clipray.cli import main
from clipray.training.metrics import read_metrics
from tests.drawing import drawings, write_shards
from tests.paddle.galleries import FILE
from tests.paddle.leaves import CLIP_YAML
from tests.paddle.test_commands import SMALL, paths

pytestmark = pytest.mark.soak

EPOCHS = 120


def run(capsys, command, file, **given):
    """What a command prints, a list of what stands in each line."""
    options = [part for key, value in given.items() for part in ("-o", f"{key}={value}")]
    capsys.readouterr()
    code = main(["paddle", command, "-c", str(file), *options])
    out = capsys.readouterr().out
    assert code == 0, out
    return out


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Train and eval splits, 30 pictures, their captions, a new picture with its caption."""
    home = tmp_path_factory.mktemp("home")
    write_shards(home / "mscoco" / "train", 300)
    write_shards(home / "mscoco" / "eval")
    (home / "tiny.json").write_text(json.dumps(SMALL))
    (home / "photos").mkdir()
    for number, drawing in enumerate(drawings(31)):
        (home / "photos" / f"{number:02d}.png").write_bytes(drawing.png)
    (home / "photos" / "30.png").rename(home / "new.png")
    captions = [drawing.caption for drawing in drawings(31)]
    (home / "texts.txt").write_text("\n".join(captions[:30]), encoding="utf-8")
    (home / "new.txt").write_text(captions[30], encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def trained(home, ray_session):
    """Trained and exported as CLIP.yaml says."""
    given = [f"{key}={value}" for key, value in paths(home).items()]
    options = [part for each in given for part in ("-o", each)]
    assert main(["paddle", "train", "-c", str(CLIP_YAML), *options]) == 0
    for tower in ("image", "text"):
        where = [f"Global.save_inference_dir={home / tower}", f"Arch.clip={tower}"]
        more = [part for each in where for part in ("-o", each)]
        assert main(["paddle", "export", "-c", str(CLIP_YAML), *options, *more]) == 0
    return home


def test_training_took_all_epochs_and_learnt(trained):
    lines = read_metrics(trained / "output" / "model" / "metrics.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.8 * losses[0]
    evaluated = [line for line in lines if "clip_val_loss" in line]
    assert len(evaluated) == EPOCHS
    assert evaluated[-1]["image_to_text_R@1"] > evaluated[0]["image_to_text_R@1"]


@pytest.mark.parametrize("method", ["HNSW32", "IVF", "Flat"])
def test_indices_are_built_asked_and_changed(trained, capsys, tmp_path, method):
    settings = {
        "Global.inference_image_encoder_dir": trained / "image",
        "Global.inference_text_encoder_dir": trained / "text",
        "Global.infer_imgs": trained / "photos",
        "Global.texts": trained / "texts.txt",
        "IndexProcess.image_index_dir": tmp_path / "clip_image",
        "IndexProcess.text_index_dir": tmp_path / "clip_text",
        "IndexProcess.index_method": method,
    }

    def predict(mode, **changes):
        return run(capsys, "predict", FILE, **(settings | {"Global.mode": mode} | changes))

    def asked(mode, **changes):
        return [json.loads(line) for line in predict(mode, **changes).splitlines()]

    predict("image_index_build")
    predict("text_index_build")
    photos = sorted(map(str, (trained / "photos").iterdir()))
    assert asked("image-to-image") == [[photo] for photo in photos]
    for mode, key in (("text-to-image", "Global.texts"), ("image-to-text", "Global.infer_imgs")):
        answers = asked(mode, **{"IndexProcess.return_k": 3})
        assert len(answers) == 30
        assert all(len(found) <= 3 for found in answers), key
        assert answers == searched(capsys, trained, tmp_path, mode)
    new = {"Global.infer_imgs": trained / "new.png", "Global.texts": trained / "new.txt"}
    query = {"IndexProcess.score_thres": -1, "IndexProcess.return_k": 31, **new}
    for operation, there in (("append", True), ("remove", False)):
        change = {"IndexProcess.index_operation": operation, **new}
        predict("image_index_build", **change)
        predict("text_index_build", **change)
        (images,) = asked("image-to-image", **query)
        (texts,) = asked("image-to-text", **query)
        assert (str(trained / "new.png") in images) == there
        assert ((trained / "new.txt").read_text() in texts) == there
        assert len(images) == len(set(images)) == (31 if there else 30)
    shutil.rmtree(tmp_path / "clip_image")


def searched(capsys, home, indices, mode):
    """The same answers by `clipray search`, three at a threshold of 0.5."""
    if mode == "text-to-image":
        queries = [("--text", line) for line in (home / "texts.txt").read_text().splitlines()]
        index = indices / "clip_image"
    else:
        queries = [("--image", str(path)) for path in sorted((home / "photos").iterdir())]
        index = indices / "clip_text"
    found = []
    for query in queries:
        capsys.readouterr()
        base = ["search", "--index", str(index), "-k", "3", "--threshold", "0.5", "--json"]
        assert main([*base, *query]) == 0
        found.append([match["key"] for match in json.loads(capsys.readouterr().out)["matches"]])
    return found
