"""`clipray paddle predict`: inference_clip.yaml as it is, every mode and every operation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipray import uri
from clipray.config import load_config
from clipray.errors import ConfigError, InputError, MismatchError, OutputError
from clipray.index import Index
from clipray.index.history import IndexGcConfig, gc
from clipray.paddle.inference import THRESHOLDS, PredictConfig
from clipray.search import SearchConfig, search
from tests.drawing import drawings, write_shards
from tests.paddle.galleries import FILE, predict

METHODS = ("HNSW32", "IVF", "Flat")
MODES = tuple(THRESHOLDS)


def paths(pictures, numbers):
    return [str(pictures / f"all/{number:02d}.png") for number in numbers]


def test_the_file_is_accepted_word_for_word():
    config = load_config(PredictConfig, FILE)
    assert (config.encodes, config.indexed, config.threshold) == ("text", "image", 0.5)
    assert config.IndexProcess.delimiter == "\t"


def test_an_unknown_key_is_told_with_its_neighbour():
    with pytest.raises(ConfigError, match=r"unknown key 'IndexProcess.retrun_k', did you mean"):
        load_config(PredictConfig, FILE, ["IndexProcess.retrun_k=1"])
    with pytest.raises(ConfigError, match=r"ResizeImage.sise', did you mean 'size'"):
        load_config(PredictConfig, FILE, ["PreProcess.transform_ops.0.ResizeImage.sise=1"])


def test_text_to_image_prints_a_list_of_paths_that_open(run, built, pictures):
    code, out, _ = run("text-to-image")
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, len(answers)) == (0, 20)
    assert all(len(found) == 1 and Path(found[0]).is_file() for found in answers)
    right = [found == paths(pictures, [number]) for number, found in enumerate(answers)]
    assert sum(right) > 15  # the model has learnt these
    _, one, _ = run("text-to-image", **{"Global.texts": pictures / "one.txt"})
    assert one == out.splitlines()[0] + "\n"


def test_image_to_text_prints_a_list_of_texts(run, built, pictures):
    changes = {"Global.infer_imgs": pictures / "all/03.png", "IndexProcess.return_k": 20}
    _, out, _ = run("image-to-text", **changes)
    found = json.loads(out)
    assert sorted(found) == sorted(drawing.caption for drawing in drawings(20))
    assert drawings(20)[3].caption in found[:3]


def test_image_to_image_finds_the_image_itself(run, built, pictures):
    _, out, _ = run("image-to-image")
    assert [json.loads(line) for line in out.splitlines()] == [
        paths(pictures, [number]) for number in range(20)
    ]


def test_the_answers_are_those_of_clipray_search(built, pictures):
    picture, text = pictures / "all/07.png", drawings(1)[0].caption
    one = {"Global.texts": pictures / "one.txt", "Global.infer_imgs": picture}
    for mode, term, column in (
        ("text-to-image", {"text": text}, "key"),
        ("image-to-image", {"image": picture}, "key"),
        ("image-to-text", {"image": picture}, "caption"),
    ):
        (answer,) = predict(built, mode, **one, **{"IndexProcess.return_k": 7}).answers
        index = built[f"IndexProcess.{mode.rpartition('-')[2]}_index_dir"]
        told = search(SearchConfig(index=index, k=7, **term)).matches  # knows the model by itself
        assert list(answer.found) == [row[column] for row in told]
        assert answer.scores == pytest.approx([row["score"] for row in told], abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_threshold_and_k_are_obeyed_exactly(built, pictures, mode):
    one = {"Global.texts": pictures / "one.txt", "Global.infer_imgs": pictures / "all/00.png"}
    (everything,) = predict(built, mode, **one, **{"IndexProcess.return_k": 20}).answers
    scores = list(everything.scores)
    assert len(scores) == 20
    assert scores == sorted(scores, reverse=True)
    for k, threshold in ((20, scores[4]), (3, scores[4]), (20, float(np.nextafter(scores[4], 2)))):
        limits = {"IndexProcess.return_k": k, "IndexProcess.score_thres": threshold}
        (answer,) = predict(built, mode, **one, **limits).answers
        kept = [score for score in scores if score >= threshold][:k]
        assert list(answer.scores) == kept
        assert answer.found == everything.found[: len(kept)]


def test_nothing_above_the_threshold_is_an_empty_list(run, built, pictures):
    changes = {"Global.texts": pictures / "one.txt", "IndexProcess.score_thres": 1.5}
    assert run("text-to-image", **changes)[:2] == (0, "[]\n")


@pytest.mark.parametrize("mode", MODES)
def test_without_a_threshold_it_is_that_of_the_mode(built, pictures, mode):
    one = {"Global.texts": pictures / "one.txt", "Global.infer_imgs": pictures / "all/00.png"}
    limits = {"IndexProcess.return_k": 20, "IndexProcess.score_thres": None}
    (everything,) = predict(built, mode, **one, **{"IndexProcess.return_k": 20}).answers
    (answer,) = predict(built, mode, **one, **limits).answers
    expected = 0.5 if mode == "image-to-image" else 0.2
    assert list(answer.scores) == [score for score in everything.scores if score >= expected]
    (given,) = predict(built, mode, **one, **limits | {"IndexProcess.score_thres": 0.5}).answers
    assert list(given.scores) == [score for score in everything.scores if score >= 0.5]


@pytest.mark.parametrize("method", METHODS)
def test_images_come_and_go_in_every_method(settings, pictures, tmp_path, method):
    mine = settings | {
        "IndexProcess.index_method": method,
        "IndexProcess.image_index_dir": tmp_path / "i",
        "IndexProcess.return_k": 20,
    }
    some, rest = (tmp_path / f"{name}.txt" for name in ("some", "rest"))
    some.write_text("\n".join(paths(pictures, range(12))))
    rest.write_text("\n".join(paths(pictures, range(10, 20))))

    def build(operation, images):
        changes = {"IndexProcess.index_operation": operation, "Global.infer_imgs": images}
        return predict(mine, "image_index_build", **changes)

    def found():
        asked = {"Global.infer_imgs": pictures / "all/15.png"}
        (answer,) = predict(mine, "image-to-image", **asked).answers
        return list(answer.found)

    assert build("new", some).total == 12
    before = Index.open(tmp_path / "i").manifest
    assert (before.method, sorted(found())) == (method, paths(pictures, range(12)))
    report = build("append", rest)
    assert report.did == "10 rows came, 2 of them in the place of an older one"
    assert found()[0] == paths(pictures, [15])[0]
    assert sorted(found()) == paths(pictures, range(20))
    assert Index.open(tmp_path / "i").manifest.codec == before.codec
    report = build("remove", rest)
    assert (report.did, report.total) == ("10 rows removed", 10)
    assert sorted(found()) == paths(pictures, range(10))
    assert build("remove", pictures / "all/03.png").total == 9
    assert paths(pictures, [3])[0] not in found()


@pytest.mark.parametrize("method", METHODS)
def test_texts_come_and_go_in_every_method(settings, pictures, tmp_path, method):
    mine = settings | {
        "IndexProcess.index_method": method,
        "IndexProcess.text_index_dir": tmp_path / "t",
        "IndexProcess.return_k": 50,
    }
    lines = tmp_path / "lines.txt"

    def build(operation, *texts):
        lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
        changes = {"IndexProcess.index_operation": operation, "Global.texts": lines}
        return predict(mine, "text_index_build", **changes)

    def found():
        asked = {"Global.infer_imgs": pictures / "all/00.png"}
        (answer,) = predict(mine, "image-to-text", **asked).answers
        return sorted(answer.found)

    assert build("new", "a red ring", "a dog", "", "a dog", "一只猫").total == 3
    assert found() == sorted(["a dog", "a red ring", "一只猫"])
    assert build("append", "a cat\tof mine", "a dog").total == 4
    assert found() == sorted(["a cat\tof mine", "a dog", "a red ring", "一只猫"])
    report = build("remove", "一只猫", "a cat", "a dog")
    assert report.did == "2 rows removed, 1 lines in no row, such as a cat"
    assert found() == ["a cat\tof mine", "a red ring"]


def test_a_new_index_takes_the_place_of_the_old_one_which_stays_as_a_version(
    settings, pictures, tmp_path, caplog
):
    mine = settings | {"IndexProcess.image_index_dir": tmp_path / "i"}
    predict(mine, "image_index_build")
    predict(mine, "image_index_build", **{"IndexProcess.index_operation": "append"})
    gc(IndexGcConfig(index=tmp_path / "i"))  # number 1 is free again, and not to be taken
    again = predict(mine, "image_index_build", **{"Global.infer_imgs": pictures / "all/00.png"})
    assert (again.version, again.total) == (4, 1)  # all rows were replaced: it was compacted
    assert "with 20 rows, is version 3 until `clipray index gc`" in caplog.text
    assert (len(Index.open(tmp_path / "i")), len(Index.open(tmp_path / "i", 3))) == (1, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["i"]  # no embeddings are left


def test_what_is_no_index_of_this_mode_is_left_alone(settings, built, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    mine = settings | {"IndexProcess.image_index_dir": tmp_path / "mine"}
    with pytest.raises(OutputError, match="holds something that is no index"):
        predict(mine, "image_index_build")
    texts = settings["IndexProcess.text_index_dir"]
    with pytest.raises(OutputError, match="holds an index of texts"):
        predict(settings | {"IndexProcess.image_index_dir": texts}, "image_index_build")
    for operation in ("append", "remove"):
        changes = {
            "IndexProcess.index_operation": operation,
            "IndexProcess.image_index_dir": tmp_path / "none",
        }
        with pytest.raises(InputError, match="index_operation: new builds one"):
            predict(settings, "image_index_build", **changes)


def test_append_tells_that_the_method_stays(settings, built, tmp_path, caplog):
    mine = settings | {"IndexProcess.image_index_dir": tmp_path / "i"}
    predict(mine, "image_index_build", **{"IndexProcess.index_method": "Flat"})
    predict(mine, "image_index_build", **{"IndexProcess.index_operation": "append"})
    assert "stays as it was built, with Flat, not HNSW32" in caplog.text


def test_lines_of_a_list_keep_their_labels(settings, pictures, tmp_path):
    listed = tmp_path / "list.txt"
    mine = settings | {
        "Global.infer_imgs": listed,
        "IndexProcess.delimiter": " ; ",
        "IndexProcess.image_index_dir": tmp_path / "i",
    }
    first, second = paths(pictures, [0, 1])
    listed.write_text(f"{first} ; ring\n{first} ; red\n{second}\n{tmp_path}/none.png ; gone\n")
    report = predict(mine, "image_index_build")
    assert (report.total, report.exit_code) == (3, 3)
    assert report.rejected == {"cannot be read": 1}
    labels = Index.open(tmp_path / "i").column("label")
    assert labels == {f"{first} ; ring": "ring", f"{first} ; red": "red", second: None}
    asked = {"Global.infer_imgs": first, "IndexProcess.return_k": 3}
    (answer,) = predict(mine, "image-to-image", **asked).answers
    assert list(answer.found) == [first, first, second]
    listed.write_text(f"{first} ; red\n{second} ; red\n")
    gone = predict(mine, "image_index_build", **{"IndexProcess.index_operation": "remove"})
    assert gone.did.startswith("1 rows removed, 1 lines in no row")


def test_paths_are_shown_as_they_were_given(settings, pictures, tmp_path, monkeypatch):
    mine = settings | {"IndexProcess.image_index_dir": tmp_path / "i", "IndexProcess.return_k": 20}
    monkeypatch.chdir(pictures)
    predict(mine, "image_index_build", **{"Global.infer_imgs": "./all/"})
    asked = {"Global.infer_imgs": str(pictures / "all/05.png")}
    (answer,) = predict(mine, "image-to-image", **asked).answers
    assert answer.found[0] == "all/05.png"
    monkeypatch.chdir(tmp_path)  # from where that leads nowhere
    (answer,) = predict(mine, "image-to-image", **asked).answers
    assert answer.found[0] == str(pictures / "all/05.png")
    gone = {"IndexProcess.index_operation": "remove", "Global.infer_imgs": "all/05.png"}
    assert predict(mine, "image_index_build", **gone).did == "1 rows removed"


def test_shards_of_img2dataset_are_images_as_well(settings, pictures, tmp_path):
    folder = write_shards(tmp_path / "train", 20)
    mine = settings | {
        "Global.infer_imgs": folder,
        "IndexProcess.image_index_dir": tmp_path / "i",
    }
    assert predict(mine, "image_index_build").total == 20
    asked = {"Global.infer_imgs": pictures / "all/17.png"}
    (answer,) = predict(mine, "image-to-image", **asked).answers
    assert list(answer.found) == [f"{folder}/000010001"]
    answers = predict(mine, "image-to-image").answers  # shards as queries
    assert [answer.query for answer in answers] == [answer.found[0] for answer in answers]
    assert _found_remotely(mine, folder, tmp_path.name) == [answer.found for answer in answers]
    remove = {"IndexProcess.index_operation": "remove"}
    assert predict(mine, "image_index_build", **remove).total == 0


def _found_remotely(settings, folder, name):
    """What the same shards find, as queries behind a URI, in batches that end within a shard."""
    store = uri.at(f"memory://{name}/train")
    store.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        (store / path.name).write_bytes(path.read_bytes())
    asked = {"Global.infer_imgs": str(store), "Global.batch_size": 3}
    return [answer.found for answer in predict(settings, "image-to-image", **asked).answers]


def test_a_sample_that_comes_again_in_another_shard_is_told(settings, tmp_path):
    folder = write_shards(tmp_path / "train", 20)
    for suffix in (".tar", "_stats.json"):
        shutil.copy(folder / f"00001{suffix}", folder / f"00002{suffix}")
    mine = settings | {"Global.infer_imgs": folder}
    report = predict(mine, "image_index_build", **{"IndexProcess.image_index_dir": tmp_path / "i"})
    assert (report.total, report.rejected, report.exit_code) == (20, {"repeated key": 4}, 3)
    assert "rejected 4: repeated key" in report.summary()


def test_a_query_that_is_no_image_is_told_and_the_others_are_answered(run, built, tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"none")
    changes = {"Global.infer_imgs": tmp_path}
    code, _, err = run("image-to-image", **changes)
    assert (code, "a.png: " in err) == (2, True)
    (tmp_path / "b.png").write_bytes(drawings(1)[0].png)
    code, out, _ = run("image-to-image", **changes)
    first, second = map(json.loads, out.splitlines())
    assert (code, first, len(second)) == (3, [], 1)
    assert "a.png: not a readable image" in caplog.text


def test_a_mode_tells_what_it_lacks(settings, built):
    images = settings["IndexProcess.image_index_dir"]
    with pytest.raises(
        ConfigError, match=r"Global.infer_imgs is missing; mode image-to-text needs"
    ):
        predict(settings, "image-to-text", **{"Global.infer_imgs": None})
    with pytest.raises(MismatchError, match="holds images, and mode image-to-text looks for texts"):
        predict(settings, "image-to-text", **{"IndexProcess.text_index_dir": images})
    with pytest.raises(InputError, match="no such file; expected one with a text a line"):
        predict(settings, "text-to-image", **{"Global.texts": "nowhere.txt"})
