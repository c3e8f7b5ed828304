"""Two exported towers, drawings and their captions, and both indices over them, made once."""

from dataclasses import replace

import pytest

from clipray import clip
from clipray.cli import main
from clipray.export import ExportConfig, export
from clipray.manifest import ModelSource
from tests.drawing import drawings
from tests.paddle.galleries import FILE, overrides, predict


@pytest.fixture(scope="session")
def squashing(tmp_path_factory, model):
    """The tiny CLIP, which has its pictures as inference_clip.yaml says: squashed."""
    folder = tmp_path_factory.mktemp("squashing") / "model"
    folder.mkdir()
    plain = clip.load(ModelSource(name=str(model)))
    clip.save(replace(plain, preprocess={**plain.preprocess, "resize_mode": "squash"}), folder, {})
    return folder


@pytest.fixture(scope="session")
def towers(squashing):
    """Its two towers, each exported alone."""
    for tower in ("image", "text"):
        output = squashing.parent / tower
        export(ExportConfig(model=str(squashing), output=output, towers=tower, samples=4))
    return squashing.parent


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """20 drawings in `all`, their captions in `texts.txt`, the first of them in `one.txt`."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "all").mkdir()
    for number, drawing in enumerate(drawings(20)):
        (root / f"all/{number:02d}.png").write_bytes(drawing.png)
    lines = "".join(f"{drawing.caption}\n" for drawing in drawings(20))
    (root / "texts.txt").write_text(lines, encoding="utf-8")
    (root / "one.txt").write_text(drawings(1)[0].caption, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def settings(towers, pictures, tmp_path_factory):
    """Paths, and what the tiny model is smaller in than the one of the file."""
    root = tmp_path_factory.mktemp("indices")
    return {
        "Global.infer_imgs": pictures / "all",
        "Global.texts": pictures / "texts.txt",
        "Global.inference_image_encoder_dir": towers / "image",
        "Global.inference_text_encoder_dir": towers / "text",
        "Global.embedding_size": 32,
        "Global.cpu_num_threads": 1,
        "Global.enable_benchmark": False,
        "PreProcess.transform_ops.0.ResizeImage.size": 32,
        "PreProcess.transform_ops.1.CropImage.size": 32,
        "IndexProcess.embedding_size": 32,
        "IndexProcess.image_index_dir": root / "clip_image",
        "IndexProcess.text_index_dir": root / "clip_text",
        "IndexProcess.score_thres": -1,
    }


@pytest.fixture(scope="session")
def built(settings):
    """The same, with both indices in their places."""
    for mode in ("image_index_build", "text_index_build"):
        assert predict(settings, mode).exit_code == 0
    return settings


@pytest.fixture
def run(settings, capsys):
    """The command as it is typed; exit code, what it printed, what it said."""

    def run(mode, **changes):
        given = [part for each in overrides(settings, mode, **changes) for part in ("-o", each)]
        capsys.readouterr()
        code = main(["paddle", "predict", "-c", str(FILE), *given])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
