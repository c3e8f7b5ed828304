"""Jobs submitted to a cluster of a head and two worker nodes, as one types it."""

import json
import time

import pytest

from clipray.index import Index
from clipray.index.manifest import IndexFolder
from clipray.manifest import ModelFolder, ModelManifest, read_json
from tests.drawing import write_shards
from tests.heads import head

pytestmark = pytest.mark.soak

COUNT = 720
JOB_S = 600  # on a busy machine
NO_TAG = ("-o", "pretrained=null")  # the files name one, which wants the network
QUICK = (
    *NO_TAG,
    *("-o", "precision=fp32", "-o", "loader.batch_size=60", "-o", "optim.lr=3e-3"),
    *("-o", "optim.warmup_epochs=0", "-o", "log.tensorboard=false", "--workers", "2"),
)
PIPELINE = """
train:
  model: {architecture}
  workers: 2
  epochs: 30
  precision: fp32
  loader: {{batch_size: 60}}
  log: {{tensorboard: false}}
  checkpoints: {{every_steps: 20}}
embed: {{modality: both}}
image_index: {{shards: 4}}
text_index: {{shards: 4}}
evaluate: {{}}
"""


@pytest.fixture(scope="module")
def cluster():
    """The head takes no work; what is done is done on the two other nodes."""
    with head(cpus=0) as cluster:
        cluster.names = {cluster.join(cpus=2, labels={"clipray-node": n}).id: n for n in "ab"}
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder that all nodes share, with twelve shards."""
    root = tmp_path_factory.mktemp("submitted")
    write_shards(root / "SHARDS", COUNT, per_shard=60)
    return root


def where(cluster, kind, name):
    """Names of the nodes that ran what is called like this; all others are the head."""
    nodes = {node for called, node in cluster.ran(kind) if name in called}
    return {cluster.names.get(node, "head") for node in nodes if node}  # some found no work in time


def succeeded(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "succeeded" in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def embedded(cluster, data, model):
    """What the job said that made the embeddings folder EMB."""
    paths = ("--input", data / "SHARDS", "--output", data / "EMB", "--model", model)
    command = ("jobs/embed.py", "-c", "jobs/embed.yaml", *paths, *NO_TAG, "--workers", "2")
    return succeeded(cluster.submit(*command, timeout=JOB_S))


def test_embed_runs_on_the_worker_nodes(cluster, data, embedded):
    assert f"{COUNT} samples = {COUNT} rows + 0 rejected" in embedded
    assert len(list((data / "EMB/done").iterdir())) == 12
    found = where(cluster, "actors", "ShardEncoder")
    assert found
    assert found <= {"a", "b"}
    assert "pid=" not in embedded  # no other process talks into the job's log


def test_index_is_built_on_the_worker_nodes(cluster, data, embedded):
    paths = ("--embeddings", data / "EMB", "--index", data / "IDX")
    command = ("jobs/index.py", "build", "-c", "jobs/index.yaml", *paths)
    said = succeeded(cluster.submit(*command, timeout=JOB_S))
    assert f"{COUNT} image rows, Flat, 4 shards" in said
    assert len(Index.open(data / "IDX")) == COUNT
    assert where(cluster, "tasks", "_perform") == {"a", "b"}


def test_train_runs_on_the_worker_nodes(cluster, data, architecture):
    paths = ("--input", data / "SHARDS", "--output", data / "MODEL", "--model", architecture)
    command = ("jobs/train.py", "-c", "jobs/train.yaml", *paths, *QUICK, "--epochs", "2")
    said = succeeded(cluster.submit(*command, timeout=JOB_S))
    made = read_json(ModelManifest, ModelFolder(data / "MODEL").manifest)
    assert made.identity.fingerprint in said
    found = where(cluster, "actors", "TrainWorker")
    assert found
    assert found <= {"a", "b"}


def test_a_wrong_token_is_refused_before_anything_is_sent(cluster, data):
    before = jobs(cluster)
    paths = ("--input", data / "SHARDS", "--output", data / "NOT", "--model", "ViT-B-32")
    done = cluster.submit("jobs/embed.py", *paths, token="0" * 64)
    assert done.returncode == 1
    assert "Invalid authentication token" in done.stderr
    assert jobs(cluster) == before
    assert not (data / "NOT").exists()


def test_a_job_that_fails_says_why_and_with_which_code(cluster, data):
    command = ("jobs/embed.py", "-c", "jobs/embed.yaml", "--input", data / "SHARDS")
    wrong = cluster.submit(*command, "--output", data / "NOT", "--precision", "fp8")
    inside = cluster.submit(*command, "--output", "NOT")
    for done, told in ((wrong, "fp8"), (inside, "output: lies in the copy of the working dir")):
        assert done.returncode == 1  # Ray knows no other
        assert "failed with exit code 2" in done.stdout
        assert told in done.stdout
    assert not (data / "NOT").exists()


def test_what_is_shipped_is_small(cluster, embedded):
    """And clipray comes from there, whatever is installed on the nodes."""
    said = succeeded(cluster.submit("-c", "import clipray; print('from', clipray.__file__)"))
    shipped = cluster.logs.parent / "runtime_resources/working_dir_files"
    assert f"from {shipped.resolve()}/_ray_pkg_" in said
    for package in shipped.glob("_ray_pkg_*/"):
        files = [path for path in package.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") < 2 << 20
        assert {path.name for path in package.iterdir()} >= {"clipray", "jobs"}
        assert not (package / "tests").exists()


def test_a_pipeline_that_is_stopped_is_submitted_again_and_finishes(cluster, data, architecture):
    work, mine = data / "WORK", data / "mine.yaml"
    mine.write_text(PIPELINE.format(architecture=architecture))
    paths = ("--input", data / "SHARDS", "--work", work)
    command = ("jobs/pipeline.py", "-c", mine, *paths)
    options = ("--submission-id", "cut", "--no-wait")
    assert cluster.submit(*command, options=options).returncode == 0
    begun = work / "model-run/checkpoints"
    wait_for(lambda: begun.is_dir() and list(begun.glob("step-*")), cluster)
    assert cluster.job("stop", "cut").returncode == 0
    assert not (work / "model").exists()
    said = succeeded(cluster.submit(*command, timeout=JOB_S))
    assert all(f"{number}/5 " in said for number in range(1, 6))
    assert len(Index.open(work / "image-index")) == len(Index.open(work / "text-index")) == COUNT
    assert json.loads((work / "evaluation.json").read_text())["found"]["queries"] == COUNT
    steps = [json.loads(line) for line in (work / "model/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 361))
    again = succeeded(cluster.submit(*command, timeout=JOB_S))
    assert again.count("whole already, kept") >= 5
    assert IndexFolder(work / "image-index").versions() == [1]


def jobs(cluster):
    """Jobs that the cluster knows of."""
    return cluster.job("list").stdout.count("submission_id=")


def wait_for(found, cluster):
    deadline = time.monotonic() + JOB_S
    while not found():
        assert time.monotonic() < deadline, cluster.job("logs", "cut").stdout[-3000:]
        time.sleep(0.5)
