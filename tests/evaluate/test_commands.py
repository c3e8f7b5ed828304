"""`clipray evaluate` as users call it: figures, the page, a service, exit codes."""

import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from clipray.cli import main
from clipray.encoder_options import EncoderOptions
from clipray.evaluate import EvaluateConfig, EvaluateReport, evaluate
from clipray.evaluate.page import html_page
from clipray.evaluate.verdict import HardPair
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from tests.handmade import build_index
from tests.serve.page_server import Faults, PageSearcher, page_server
from tests.test_cli import run

CPU = EncoderOptions(device="cpu", precision="fp32").model_dump()
EVIL = "<script>alert('x')</script> & \"more\" \x00 \ud800"


@pytest.fixture(scope="module")
def index(tmp_path_factory, embeddings):
    folder = tmp_path_factory.mktemp("index") / "i"
    build_index(folder, embeddings, shards=2)
    return folder


@pytest.fixture(scope="module")
def faults():
    return Faults()


@pytest.fixture(scope="module")
def url(index, encoder, faults):
    with page_server(PageSearcher({"i": [index]}, encoder, faults), faults) as url:
        yield url


@pytest.fixture(scope="module")
def reported(tmp_path_factory, index, photos):
    folder = tmp_path_factory.mktemp("report") / "r"
    evaluate(EvaluateConfig(index=index, data=(str(photos),), report=folder, **CPU))
    return folder


def test_the_service_finds_what_its_index_finds(index, url):
    found = evaluate(EvaluateConfig(index=index, url=url, **CPU))
    assert found.service.recall == found.index.recall
    assert set(found.service.recall) == {"image", "text"}
    assert all(value == 1 for recall in found.index.recall.values() for value in recall.values())
    assert (found.service.searched, found.service.strayed, found.service.version) == (1, 0, 1)
    assert found.service.latency["text"].p95_ms >= found.service.latency["text"].p50_ms > 0


def test_a_service_that_lost_a_shard_is_told_aloud(index, url, faults):
    faults.lost = True
    try:
        found = evaluate(EvaluateConfig(index=index, url=url, queries=5, **CPU))
    finally:
        faults.clear()
    assert found.service.searched == 0.5
    assert found.service.degraded > 0
    assert "from a part of the index" in found.notes[0]


def test_a_version_that_is_not_here_is_refused(capsys, tmp_path, index, url):
    shutil.copytree(index, tmp_path / "i")
    folder = IndexFolder(tmp_path / "i")
    folder.commit(folder.read().next("rollback"))
    assert evaluate(EvaluateConfig(index=folder.root, url=url, texts=False)).index.version == 1
    folder.version_file(1).unlink()
    code, _, err = run(capsys, "evaluate", "--index", folder.root, "--url", url)
    assert (code, "has no version 1" in err) == (2, True)


def test_another_name_is_refused(capsys, index, url):
    code, _, err = run(capsys, "evaluate", "--index", index, "--url", url, "--served", "other")
    assert (code, "serves i (image); expected" in err) == (2, True)


def test_captions_give_metrics_by_open_clips_names(index, encoder):
    found = evaluate(EvaluateConfig(index=index, curve=False, **CPU))
    pairs = Index.open(index).column("caption")
    vectors = encoder.encode_texts(list(pairs.values()))
    firsts = [one.items[0] for one in Index.open(index).search(vectors, 1, columns=("caption",))]
    hits = [match.key == key for match, key in zip(firsts, pairs, strict=True)]
    assert found.metrics["text_to_image_R@1"] == sum(hits) / len(hits)
    assert found.queries == len(pairs)


def test_without_texts_no_model_is_opened(index):
    found = evaluate(EvaluateConfig(index=index, texts=False, model="/no/such/model"))
    assert set(found.index.recall) == {"image"}
    assert (found.metrics, found.scores) == ({}, None)


def test_the_page_is_well_formed_and_fetches_nothing(reported):
    text = (reported / "report.html").read_text()
    page = ET.fromstring(text.partition("\n")[2])
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script|https?:", text)
    assert len(page.findall(".//svg")) == 1  # an exact index has no curve
    pictures = [image.get("src") for image in page.iter("img")]
    assert pictures
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)


def test_the_json_says_the_same_and_what_was_asked(reported, photos):
    told = json.loads((reported / "report.json").read_text())
    assert told["config"]["data"] == [str(photos)]
    assert told["versions"]["clipray"]
    assert 0.2 < told["retrieval"]["text_to_image_R@1"] <= 1
    del told["config"]
    assert EvaluateReport.model_validate(told).index.rows == 40


def test_what_captions_and_keys_say_is_only_text():
    hard = HardPair(caption=EVIL, key=EVIL, rank=2, score=0.1, rival=EVIL, rival_score=0.2)
    report = EvaluateReport(hardest=(hard,), notes=(EVIL,), rejected=(EVIL,), metrics={EVIL: 1.0})
    text = html_page(report, {EVIL: EVIL}, {})
    page = ET.fromstring(text.partition("\n")[2])
    assert "<script" not in text
    assert not list(page.iter("script"))
    assert page.find(".//p[@class='caption']").text.startswith("<script>alert('x')</script> & ")
    text.encode()


def test_pictures_that_are_gone_are_told(tmp_path, index, photos, caplog, monkeypatch):
    monkeypatch.setattr("clipray.samples.Location.read", gone)
    config = EvaluateConfig(index=index, report=tmp_path / "r", curve=False, **CPU)
    found = evaluate(config)
    assert found.hardest
    assert "pictures cannot be shown" in found.notes[0]
    assert "pictures cannot be shown" in caplog.text
    assert "no picture" in (tmp_path / "r" / "report.html").read_text()


def gone(place, limit):
    raise FileNotFoundError("gone")


def test_a_folder_with_something_in_it_is_not_written_over(capsys, tmp_path, index):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run(capsys, "evaluate", "--index", index, "--report", tmp_path)
    assert (code, "holds something already" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to evaluate: give --index"),
        (["--url", "http://127.0.0.1:9"], "--url needs --index"),
        (["--data", "x", "--embeddings", "y"], "give one of them"),
        (["--data", "x"], "need --model"),
        (["--index", "/no/such/index"], "no index folder"),
        (["--queries", "0"], "queries"),
    ],
)
def test_wrong_uses_end_with_2(capsys, arguments, told):
    code, out, err = run(capsys, "evaluate", *arguments)
    assert (code, out) == (2, "")
    assert told in err


def test_samples_left_out_end_with_3(capsys, tmp_path, photos, model):
    shutil.copytree(photos, tmp_path / "p")
    (tmp_path / "p" / "odd" / "bad.png").write_bytes(b"no picture")
    code, out, _ = run(capsys, "evaluate", "--data", tmp_path / "p", "--model", model)
    assert code == 3
    assert "1 samples left out, first p/odd/bad.png: " in out
    assert "image_to_text_R@1" in out
    assert main(["evaluate", "--data", str(photos), "--model", str(model)]) == 0
