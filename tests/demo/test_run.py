"""The demo, on few emoji: every step for real, and the model kept for the next run."""

import socket

import pytest
from PIL import Image
from ray import serve

from clipray.demo.run import DemoConfig, demo
from clipray.errors import OutputError
from clipray.index import Index


@pytest.fixture
def config(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return DemoConfig(output=tmp_path / "demo", emoji=80, epochs=3, port=port)


@pytest.mark.usefixtures("ray_session")
def test_the_whole_way_twice(config):
    report = demo(config)
    serve.shutdown()
    assert report.exit_code == 0
    assert report.summary().splitlines()[-1].startswith("demo ok: text_to_image_R@5=")
    assert report.recall.queries == len(Index.open(config.output / "index-images")) > 60
    assert len(Index.open(config.output / "index-texts").manifest.shards) == 2
    for kind in ("text to image", "image to image", "image to text"):
        assert kind in report.table
    assert Image.open(report.sheet).width > 800
    trained = (config.output / "model/clipray.json").stat().st_mtime_ns
    again = demo(config)
    serve.shutdown()
    assert (config.output / "model/clipray.json").stat().st_mtime_ns == trained
    assert again.recall.metrics == report.recall.metrics


@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_the_real_demo_finds_nine_in_ten(config):
    report = demo(DemoConfig(output=config.output, port=config.port))
    serve.shutdown()
    assert report.recall.queries > 1_800
    assert report.recall.metrics["text_to_image_R@5"] >= 0.90


def test_a_folder_of_other_things_is_not_touched(config, photos):
    before = sorted(photos.rglob("*"))
    with pytest.raises(OutputError, match="holds other things"):
        demo(config.model_copy(update={"output": photos}))
    assert sorted(photos.rglob("*")) == before
