"""Python and packages, as they are installed against what clipray asks for."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from clipray import __version__
from clipray.doctor.finding import Finding, note, ok, problem

FAISS = ("faiss-cpu", "faiss-gpu")
SHOWN = ("ray", "torch", "torchvision", "open_clip_torch", "pyarrow", *FAISS)
MUST_AGREE = ("clipray", "python", "ray", "torch", "open_clip_torch", "faiss-cpu", "faiss-gpu")


@dataclass(frozen=True)
class Versions:
    """Of one machine.

    Attributes:
        installed: by the names of `python`, `clipray` and all packages; None where missing.
        asked: clipray's requirements on this machine, as pyproject writes them; None where it
            runs from a folder and is not installed.
    """

    installed: Mapping[str, str | None]
    asked: tuple[str, ...] | None


def collect() -> Versions:
    """What this process would import."""
    try:
        lines = metadata.requires("clipray") or []
    except metadata.PackageNotFoundError:
        lines = None
    asked = None if lines is None else tuple(line for line in lines if _is_needed(line))
    names = {*SHOWN, *(Requirement(line).name for line in asked or ())}
    own = {"python": platform.python_version(), "clipray": __version__}
    return Versions(own | {name: _version(name) for name in sorted(names)}, asked)


def check() -> Iterator[Finding]:
    """What this process would import, against what is asked for."""
    return judge(collect())


def judge(versions: Versions) -> Iterator[Finding]:
    """Compare with what is asked for."""
    has = versions.installed
    yield from _clash(has)
    wrong = [found for line in versions.asked or () if (found := _unmet(Requirement(line), has))]
    yield from wrong
    shown = (f"{name} {has[name]}" for name in ("python", "clipray", *SHOWN) if has.get(name))
    if versions.asked is None:
        what = "clipray runs from a folder, so versions are not compared"
        yield note("versions", f"{what}: {', '.join(shown)}", "install it: pip install -e .")
    elif not wrong:
        yield ok("versions", ", ".join(shown))


def differences(by_node: Mapping[str, Versions]) -> Iterator[Finding]:
    """What is not the same on all nodes; tasks and models travel between them."""
    for name in MUST_AGREE:
        nodes: dict[str, list[str]] = {}
        for node, versions in by_node.items():
            nodes.setdefault(versions.installed.get(name) or "missing", []).append(node)
        if len(nodes) > 1:
            told = "; ".join(f"{found} on {', '.join(names)}" for found, names in nodes.items())
            yield problem("versions", f"{name} is {told}", f"install one version of {name}")


def _clash(has: Mapping[str, str | None]) -> Iterator[Finding]:
    if all(has.get(name) for name in FAISS):
        yield problem(
            "versions",
            "faiss-cpu and faiss-gpu are both installed, and overwrite each other's files",
            "pip uninstall -y faiss-cpu faiss-gpu, then install clipray again",
        )


def _unmet(asked: Requirement, has: Mapping[str, str | None]) -> Finding | None:
    found = has.get(asked.name)
    if found and asked.specifier.contains(found, prereleases=True):
        return None
    advice = f"pip install '{asked.name}{asked.specifier}'"
    if found:
        return problem("versions", f"{asked.name} {found}, expected {asked.specifier}", advice)
    if asked.name in FAISS and (other := _other(has)):
        return note("versions", f"{other} in place of {asked.name}", "nothing, if that is meant")
    return problem("versions", f"{asked.name} is missing, expected {asked.specifier}", advice)


def _other(has: Mapping[str, str | None]) -> str | None:
    return next((f"{name} {has[name]}" for name in FAISS if has.get(name)), None)


def _is_needed(line: str) -> bool:
    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"extra": ""})


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
