"""`clipray doctor`: look at everything, and say what to do."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Thread

from pydantic import Field

from clipray.config import Config
from clipray.doctor.finding import Finding, note, problem
from clipray.report import DONE, FAILED, Report

LOCAL_S = 30.0  # of a check; torch takes seconds to be imported, a dead network disk forever
CLUSTER_S = 120.0

LOCAL = {
    "versions": "clipray.doctor.versions",
    "machine": "clipray.doctor.machine",
    "GPU": "clipray.doctor.gpu",
    "Faiss": "clipray.doctor.faiss_build",
    "ports": "clipray.doctor.ports",
}
INDEX, CLUSTER, SHARING = "clipray.doctor.index", "clipray.doctor.survey", "clipray.doctor.sharing"
STORAGE = "shared storage"

Check = Callable[[], Iterator[Finding]]


class DoctorConfig(Config):
    """Look at this machine, and at the cluster that runs, and say what to do.

    Exit code 1 when there is a problem.
    """

    address: str | None = Field(
        None, description="cluster to look at, HOST:PORT of its head; by default $RAY_ADDRESS"
    )
    path: tuple[str, ...] = Field(
        (), description="folder or URI that all nodes should see; may be repeated"
    )
    index: tuple[str, ...] = Field(
        (), description="index folder or URI that should open; may be repeated"
    )


class DoctorReport(Report):
    """What was found."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 where there is a problem."""
        return FAILED if any(one.level == "problem" for one in self.findings) else DONE

    def summary(self) -> str:
        """One line for each, what to do below it, and the counts."""
        lines = [line for one in self.findings for line in _lines(one)]
        counts = Counter(one.level for one in self.findings)
        told = ", ".join(
            f"{counts[level]} {level}{'s' * (counts[level] != 1)}"
            for level in ("problem", "warning", "note")
        )
        return "\n".join([*lines, told])


def doctor(config: DoctorConfig) -> DoctorReport:
    """Run all checks, one after the other; none stops the others."""
    found = [one for name, module in LOCAL.items() for one in _attempted(name, module)]
    found += [one for given in config.index for one in _attempted("index", INDEX, given)]
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address:
        asked = address, config.path
        found += _attempted("cluster", CLUSTER, *asked, seconds=CLUSTER_S)
    else:
        advice = "set RAY_ADDRESS or --address to the head's HOST:6379 to look at one"
        found.append(note("cluster", "none: commands start a Ray of their own", advice))
        found += [one for place in config.path for one in _attempted(STORAGE, SHARING, place)]
    return DoctorReport(findings=tuple(found))


def _attempted(
    name: str, module: str, *arguments: object, seconds: float = LOCAL_S
) -> list[Finding]:
    """What the check of a module finds; that it cannot even be imported is a finding as well."""
    return attempted(name, lambda: import_module(module).check(*arguments), seconds)


def attempted(name: str, check: Check, seconds: float) -> list[Finding]:
    """What a check finds; that it raises, or does not end in time, is a finding as well.

    It runs in a thread that may be left behind: what hangs in the kernel cannot be ended.
    """
    said: SimpleQueue[Finding | None] = SimpleQueue()
    Thread(target=_run, args=(name, check, said), daemon=True).start()
    found = []
    try:
        while (one := said.get(timeout=seconds)) is not None:
            found.append(one)
    except Empty:
        advice = "look for a network disk, driver or cluster that hangs"
        found.append(problem(name, f"no answer for {seconds:g} s", advice))
    return found


def _run(name: str, check: Check, said: "SimpleQueue[Finding | None]") -> None:
    try:
        for finding in check():
            said.put(finding)
    except Exception as error:  # noqa: BLE001  another package's; what it is called says most
        told = (str(error).strip().splitlines() or [""])[-1]
        advice = "nothing of this could be looked at; mend what the line says"
        said.put(problem(name, f"{type(error).__name__}: {told}", advice))
    said.put(None)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.level:8} {finding.check}: {finding.found}"
    if finding.advice:
        yield f"{'':8}   → {finding.advice}"
