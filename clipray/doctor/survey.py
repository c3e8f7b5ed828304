"""A running cluster: its nodes, what they have, and whether they agree."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray import serve

from clipray import nodes
from clipray.doctor import access, machine, sharing, versions
from clipray.doctor.connection import UnreachableError, connected
from clipray.doctor.finding import Finding, note, ok, problem, warning
from clipray.doctor.machine import Machine
from clipray.doctor.probe import Clock, answers, clock, probes
from clipray.doctor.sharing import probe_file
from clipray.doctor.versions import Versions
from clipray.errors import ClipRayError
from clipray.nodes import LABEL, Node

SKEW_S = 1.0  # with more, times in manifests and logs of several nodes mislead


@dataclass(frozen=True)
class Answer:
    """What a node said.

    Attributes:
        versions: installed there.
        machine: what it has.
        clock: against this machine's.
    """

    versions: Versions
    machine: Machine
    clock: Clock | Exception


def check(address: str, places: Sequence[str]) -> Iterator[Finding]:
    """Connect to a cluster and look at it.

    Args:
        address: as RAY_ADDRESS has it.
        places: folders or URIs that all nodes should share.
    """
    try:
        with connected(address):
            yield from survey(places)
    except UnreachableError as error:
        yield error.finding


def survey(places: Sequence[str]) -> Iterator[Finding]:
    """Look at the cluster that this process is connected to.

    Args:
        places: folders or URIs that all nodes should share.
    """
    alive = sorted(nodes.present(), key=lambda node: node.name)
    yield from judge_names(alive)
    yield from access.judge(access.collect(len(alive)))
    yield from judge_service(_applications())
    with probes(alive) as actors:
        facts = answers(actors, lambda actor: actor.facts.remote())
        failed = {node: said for node, said in facts.items() if isinstance(said, Exception)}
        yield from (_silent(node, failed[node.id]) for node in alive if node.id in failed)
        heard = [node for node in alive if node.id not in failed]
        found = {}
        for node in heard:
            installed, has = facts[node.id]
            found[node.id] = Answer(installed, has, clock(actors[node.id]))
        yield from judge_nodes(heard, found)
        for place in places:
            yield from _shared(place, heard, {node.id: actors[node.id] for node in heard})


def judge_names(alive: Sequence[Node]) -> Iterator[Finding]:
    """Whether every node has a name of its own."""
    counts = Counter(node.name for node in alive)
    cpus, gpus = sum(node.cpus for node in alive), sum(node.gpus for node in alive)
    told = ", ".join(counts)
    yield ok("nodes", f"{len(alive)} alive with {cpus:g} CPUs and {gpus:g} GPUs: {told}")
    for name, count in counts.items():
        if count > 1:
            yield problem(
                "nodes",
                f"{count} go by the name '{name}'; shards and replicas cannot be kept on one",
                f"start each with its own: ray start --labels {LABEL}=NAME",
            )
    if not any(node.cpus for node in alive):
        yield note("nodes", "none with CPUs", "jobs wait until an autoscaler, or you, bring some")


def judge_nodes(heard: Sequence[Node], found: Mapping[str, Answer]) -> Iterator[Finding]:
    """Whether they are alike, and what one of them lacks."""
    by_name = {_name(node, heard): found[node.id] for node in heard}
    told = list(versions.differences({name: said.versions for name, said in by_name.items()}))
    yield from told or [ok("versions", f"the same on {len(heard)} nodes")]
    for name, said in by_name.items():
        yield from (one.on(name) for one in machine.judge(said.machine) if one.advice)
    for node in heard:
        yield from _gpus(node, found[node.id].machine)
    yield from judge_clocks({name: said.clock for name, said in by_name.items()})


def judge_clocks(clocks: Mapping[str, Clock | Exception]) -> Iterator[Finding]:
    """Whether they go alike."""
    fine = 0
    for name, read in clocks.items():
        if isinstance(read, Exception):
            yield warning("clock", f"node '{name}': {_line(read)}", "look at that node; ask again")
        elif abs(read.ahead) > SKEW_S + read.unsure:
            which = "ahead" if read.ahead > 0 else "behind"
            told = f"node '{name}': {abs(read.ahead):.1f} s {which} (± {read.unsure:.3f} s)"
            yield warning("clock", told, "run chrony or ntpd on all machines")
        else:
            fine += 1
    if fine:
        yield ok("clock", f"within {SKEW_S:g} s on {fine} nodes")


def judge_service(applications: Mapping[str, str]) -> Iterator[Finding]:
    """Whether all applications of Serve run."""
    for name, status in applications.items():
        if status == "RUNNING":
            yield ok("service", f"'{name}' runs")
        else:
            yield warning("service", f"'{name}' is {status}", "serve status says why")


def _applications() -> dict[str, str]:
    """Status of all by name; asking starts nothing."""
    return {name: str(one.status.value) for name, one in serve.status().applications.items()}


def _gpus(node: Node, has: Machine) -> Iterator[Finding]:
    if has.gpus > node.gpus:
        found = f"node '{node.name}': its driver has {has.gpus} GPUs, Ray counts {node.gpus:g}"
        yield warning("GPU", found, f"start it with --num-gpus={has.gpus}")


def _shared(place: str, heard: Sequence[Node], actors: Mapping[str, object]) -> Iterator[Finding]:
    try:
        with probe_file(place) as file:
            seen = answers(actors, lambda actor: actor.look.remote(place, file.name, file.content))
    except (ClipRayError, OSError) as error:
        yield sharing.unwritable(place, error)
        return
    told = {node.id: _line(said) if isinstance(said := seen[node.id], Exception) else said
            for node in heard}  # fmt: skip
    yield from sharing.judge(place, {_name(node, heard): told[node.id] for node in heard})


def _silent(node: Node, error: Exception) -> Finding:
    return problem(
        "nodes",
        f"node '{node.name}' ({node.address}) does not answer: {_line(error)}",
        "see its Ray logs; clipray must be installed there in the version of this machine",
    )


def _name(node: Node, among: Sequence[Node]) -> str:
    """The name of a node; with its id where it is not the only one of that name."""
    alone = sum(other.name == node.name for other in among) == 1
    return node.name if alone else f"{node.name} ({node.id[-8:]})"


def _line(error: Exception) -> str:
    """What says most about a failure: the last line of a remote traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
