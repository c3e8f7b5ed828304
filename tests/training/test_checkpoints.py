"""A checkpoint is whole or it is none; the newest whole one is found, wherever it lies."""

import pytest
from upath import UPath

from clipray.errors import OutputError
from clipray.training.checkpoints import MANIFEST, CheckpointConfig, Checkpoints


def fill(text):
    def write(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "state").write_text(text)

    return write


@pytest.fixture(params=["local", "store"])
def root(request, tmp_path):
    return tmp_path / "run" if request.param == "local" else UPath(f"memory://{tmp_path.name}")


@pytest.fixture
def make(root):
    return lambda **options: Checkpoints(root, CheckpointConfig(**options))


def newest(checkpoints):
    with checkpoints.newest() as found:
        return found and ((found[0] / "inner" / "state").read_text(), found[1].step)


def names(root):
    return sorted(path.parent.name for path in root.rglob(MANIFEST))


def save(checkpoints, *steps, **metrics):
    for step in steps:
        checkpoints.save(step, "data", metrics, fill(f"state {step}"))


def test_the_newest_is_found(make):
    checkpoints = make()
    assert newest(checkpoints) is None
    save(checkpoints, 9, 10)
    assert newest(checkpoints) == ("state 10", 10)
    with checkpoints.newest() as (_, manifest):
        assert manifest.data == "data"


def test_old_ones_go(make, root):
    save(make(keep=2), 1, 2, 3, 4)
    assert names(root) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize(("lower", "kept"), [(False, 2), (True, 1)])
def test_the_best_stays_and_is_the_result(make, root, lower, kept):
    checkpoints = make(keep=1, best="R@5", lower_is_better=lower)
    for step, value in enumerate((0.1, 0.9, 0.5, 0.6)):
        save(checkpoints, step + 1, **{"R@5": value})
    assert names(root) == [f"step-{kept:08d}", "step-00000004"]
    with checkpoints.result() as (folder, _):
        assert (folder / "inner" / "state").read_text() == f"state {kept}"
    assert newest(checkpoints) == ("state 4", 4)


def test_a_metric_that_nobody_measured_leaves_the_newest_as_the_result(make):
    checkpoints = make(best="R@5")
    save(checkpoints, 1, 2)
    with checkpoints.result() as (_, manifest):
        assert manifest.step == 2


@pytest.mark.parametrize("fault", ["changed", "cut", "missing", "no manifest", "torn manifest"])
def test_one_that_is_damaged_is_passed_over_aloud(make, root, caplog, fault):
    checkpoints = make()
    save(checkpoints, 1, 2)
    state, manifest = (root / "step-00000002" / name for name in ("inner/state", MANIFEST))
    if fault == "changed":
        state.write_text("STATE 2")
    elif fault == "cut":
        state.write_text("state")
    elif fault == "missing":
        state.unlink()
    elif fault == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:20])
    assert newest(checkpoints) == ("state 1", 1)
    assert "step-00000002 is damaged" in caplog.text
    save(checkpoints, 2)
    assert newest(checkpoints) == ("state 2", 2)


def test_a_manifest_cannot_name_files_elsewhere(make, root, caplog):
    checkpoints = make()
    save(checkpoints, 1)
    manifest = root / "step-00000001" / MANIFEST
    manifest.write_text(manifest.read_text().replace("inner/state", "../outside"))
    assert newest(checkpoints) is None
    assert "outside of it" in caplog.text


def test_one_that_could_not_be_written_leaves_nothing(make, root):
    def fail(folder):
        fill("half")(folder)
        raise OutputError("no more room")

    checkpoints = make()
    save(checkpoints, 1)
    with pytest.raises(OutputError):
        checkpoints.save(2, "data", {}, fail)
    assert newest(checkpoints) == ("state 1", 1)
    assert names(root) == ["step-00000001"]
