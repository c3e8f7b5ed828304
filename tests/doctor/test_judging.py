"""What is made of facts, which are given here as they may be found."""

from dataclasses import replace

import pytest

from clipray.doctor import access, faiss_build, gpu, machine, ports, sharing, survey, versions
from clipray.doctor.access import Access
from clipray.doctor.faiss_build import Build
from clipray.doctor.gpu import Seen
from clipray.doctor.machine import GIB, Disk, Machine
from clipray.doctor.ports import Ports
from clipray.doctor.probe import Clock
from clipray.doctor.survey import Answer
from clipray.doctor.versions import Versions
from clipray.nodes import Node

HAS = {"python": "3.11.9", "clipray": "0.1.0", "torch": "2.8.0+cu128", "faiss-gpu": "1.15.1"}
INSTALLED = Versions(HAS, ("torch>=2.6", "faiss-gpu>=1.15"))
SOUND = Machine(
    cpus=8,
    flags=frozenset({"avx2", "avx512f"}),
    memory=64 * GIB,
    available=60 * GIB,
    files=(1024, 65536),
    shm=Disk("shared memory", "/dev/shm", 32 * GIB, 32 * GIB),
    disks=(Disk("work", "/data", 500 * GIB, 400 * GIB),),
)
H100 = Seen(2, "580.1", "12.8", ("H100", "H100"), bf16=True, ray=2, faiss=2)
FAISS = Build("1.15.1", ("OPTIMIZE", "AVX2", "AVX512"), gpu=True, flags=SOUND.flags)
QUIET = Ports(frozenset(), haproxy=False, binary=True)
OPEN = Access("", 3, "10.0.0.5:8265", 200)


def said(findings):
    """Levels but for what is fine, and all lines."""
    found = list(findings)
    levels = [one.level for one in found if one.level != "ok"]
    return levels, "\n".join(f"{one.found} → {one.advice}" for one in found)


def installed(**changes):
    changed = {name.replace("_", "-"): version for name, version in changes.items()}
    return replace(INSTALLED, installed=HAS | changed)


@pytest.mark.parametrize(
    ("facts", "levels", "words"),
    [
        (INSTALLED, [], "torch 2.8.0+cu128"),
        (installed(torch="2.4.1"), ["problem"], "torch 2.4.1, expected >=2.6"),
        (installed(torch=None), ["problem"], "pip install 'torch>=2.6'"),
        (installed(faiss_cpu="1.12"), ["problem"], "faiss-cpu and faiss-gpu are both installed"),
        (installed(faiss_cpu="1.12", faiss_gpu=None), ["note"], "faiss-cpu 1.12 in place of"),
        (installed(faiss_gpu=None), ["problem"], "faiss-gpu is missing"),
        (replace(INSTALLED, asked=None), ["note"], "runs from a folder"),
    ],
)
def test_versions_are_compared_with_what_is_asked_for(facts, levels, words):
    found = said(versions.judge(facts))
    assert found[0] == levels
    assert words in found[1]


def shm(free):
    return Disk("shared memory", "/dev/shm", free, free)


@pytest.mark.parametrize(
    ("change", "levels", "words"),
    [
        ({}, [], "without bf16, so fp32"),
        ({"flags": frozenset({"amx_bf16"})}, ["note"], "--precision bf16 halves"),
        ({"flags": frozenset({"avx512_vnni"})}, ["note"], "--backend onnx --precision int8"),
        ({"memory": 3 * GIB, "available": 2 * GIB}, ["warning"], "want 4 GiB"),
        ({"available": 1 * GIB}, ["warning"], "kills tasks at 95 %"),
        ({"shm": shm(64 << 20)}, ["problem"], "64 MiB free of 64 MiB; not even"),
        ({"shm": shm(4 * GIB)}, ["warning"], "a node takes 19.2 GiB: docker run --shm-size"),
        ({"shm": None}, ["note"], "slower"),
        ({"files": (1024, 1024)}, ["warning"], "Ray wants 65536"),
        ({"files": (1024, -1)}, [], "1024 of a process, at most unlimited"),
        ({"disks": (Disk("work", "/d", 900 * GIB, GIB),)}, ["problem"], "work: 1.0 GiB free"),
        ({"disks": (Disk("work", "/d", 900 * GIB, 9 * GIB),)}, ["warning"], "95 % full"),
    ],
)
def test_a_machine_is_told_what_it_lacks(change, levels, words):
    found = said(machine.judge(replace(SOUND, **change)))
    assert found[0] == levels
    assert words in found[1]


@pytest.mark.parametrize(
    ("seen", "levels", "words"),
    [
        (Seen(), [], "none, so everything"),
        (H100, [], "H100, H100; driver 580.1, torch for CUDA 12.8"),
        (replace(H100, torch=(), cuda=None), ["problem"], "built without CUDA"),
        (replace(H100, torch=()), ["problem"], "look at nvidia-smi"),
        (replace(H100, torch=(), hidden=""), ["warning"], "CUDA_VISIBLE_DEVICES is ''"),
        (replace(H100, bf16=False), ["note"], "--precision fp16"),
        (replace(H100, ray=0), ["warning"], "--num-gpus=2"),
        (replace(H100, faiss=0), ["note"], "install faiss-gpu"),
        (replace(H100, faiss=1), ["note"], "Faiss can use 1, torch 2"),
    ],
)
def test_all_must_see_the_same_gpus(seen, levels, words):
    found = said(gpu.judge(seen))
    assert found[0] == levels
    assert words in found[1]


@pytest.mark.parametrize(
    ("change", "levels", "words"),
    [
        ({}, [], "Faiss 1.15.1: OPTIMIZE AVX2 AVX512"),
        ({"options": ("AVX2",)}, ["note"], "has AVX512 as well"),
        ({"options": ("GENERIC",)}, ["warning"], "not for AVX2"),
        ({"options": ("GENERIC",), "flags": frozenset()}, [], "GENERIC"),
        ({"gpu": False}, ["note"], "install faiss-gpu"),
    ],
)
def test_faiss_should_use_what_the_processor_has(change, levels, words):
    found = said(faiss_build.judge(replace(FAISS, **change)))
    assert found[0] == levels
    assert words in found[1]


@pytest.mark.parametrize(
    ("change", "levels", "words"),
    [
        ({}, [], "8000 is free"),
        ({"taken": frozenset({8000})}, ["note"], "--port"),
        ({"haproxy": True}, ["warning"], "8404 and 9101"),
        ({"haproxy": True, "binary": False}, ["problem"], "without the binary"),
    ],
)
def test_ports_of_a_service(change, levels, words):
    found = said(ports.judge(replace(QUIET, **change)))
    assert found[0] == levels
    assert words in found[1]


@pytest.mark.parametrize(
    ("change", "levels", "words"),
    [
        ({}, ["problem"], "10.0.0.5:8265 (reachable from other machines) asks for no token"),
        ({"status": 401}, [], "asks for a token"),
        ({"dashboard": "127.0.0.1:8265"}, ["problem"], "on loopback"),  # but the nodes are not
        ({"dashboard": "127.0.0.1:8265", "nodes": 1}, ["warning"], "all users here"),
        ({"status": None, "mode": "token"}, ["warning"], "does not answer"),
        ({"dashboard": None}, ["note", "problem"], "who reaches the cluster runs code"),
        ({"dashboard": None, "mode": "token"}, ["note"], "RAY_AUTH_MODE=token"),
        ({"dashboard": None, "mode": "disabled", "nodes": 1}, ["note", "note"], "'disabled'"),
    ],
)
def test_strangers_must_be_asked_for_a_token(change, levels, words):
    found = said(access.judge(replace(OPEN, **change)))
    assert found[0] == levels
    assert words in found[1]


def node(name, number=0, gpus=0.0, cpus=4.0):
    return Node(name, f"{number:032x}", f"10.0.0.{number}", cpus, gpus, labelled=True)


@pytest.mark.parametrize(
    ("names", "cpus", "levels", "words"),
    [
        ("ab", 4, [], "2 alive with 8 CPUs and 0 GPUs: a, b"),
        ("aba", 4, ["problem"], "2 go by the name 'a'"),
        ("a", 0, ["note"], "none with CPUs"),
    ],
)
def test_every_node_needs_a_name_of_its_own(names, cpus, levels, words):
    found = said(survey.judge_names([node(name, cpus=cpus) for name in names]))
    assert found[0] == levels
    assert words in found[1]


def test_a_node_is_named_that_differs_from_the_others():
    alive = [node("a", 1), node("b", 2, gpus=1), node("b", 3)]
    there = Answer(INSTALLED, SOUND, Clock(0.2, 0.001))
    answers = {
        alive[0].id: there,
        alive[1].id: replace(there, machine=replace(SOUND, gpus=2), versions=installed(torch="3")),
        alive[2].id: replace(there, machine=replace(SOUND, available=0), clock=Clock(-9.0, 0.01)),
    }
    levels, told = said(survey.judge_nodes(alive, answers))
    assert levels == ["problem", "warning", "warning", "warning"]
    assert "torch is 2.8.0+cu128 on a, b (00000003); 3 on b (00000002)" in told
    assert "node 'b (00000003)': 64.0 GiB, 0.0 GiB available" in told
    assert "node 'b': its driver has 2 GPUs, Ray counts 1" in told
    assert "9.0 s behind (± 0.010 s)" in told


@pytest.mark.parametrize(
    ("clock", "levels"),
    [
        (Clock(0.9, 0.0), []),
        (Clock(1.5, 0.0), ["warning"]),
        (Clock(1.5, 0.8), []),  # the answer took too long to tell
        (TimeoutError("silent"), ["warning"]),
    ],
)
def test_clocks_go_alike_as_far_as_can_be_told(clock, levels):
    assert said(survey.judge_clocks({"a": clock}))[0] == levels


@pytest.mark.parametrize(
    ("seen", "levels", "words"),
    [
        ({"a": None, "b": None}, [], "2 nodes see what is written here"),
        ({"a": None, "b": "no such folder"}, ["problem"], "1 of 2 nodes do not see it: node 'b'"),
        ({"a": "read only"}, ["warning"], "cannot be written on a"),
    ],
)
def test_storage_is_shared_by_all_or_those_are_named_that_do_not_see_it(seen, levels, words):
    found = said(sharing.judge("/shared", seen))
    assert found[0] == levels
    assert words in found[1]


def test_an_application_that_does_not_run_is_told():
    levels, told = said(survey.judge_service({"clipray": "RUNNING", "other": "DEPLOY_FAILED"}))
    assert levels == ["warning"]
    assert "'other' is DEPLOY_FAILED" in told
