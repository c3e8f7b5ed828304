"""What a machine has: processor, memory, shared memory, disks, open files, GPUs of its driver.

Nothing is imported and nothing is started, so this is quick on every node.
"""

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipray.doctor.finding import Finding, note, ok, problem, warning
from clipray.storage import cache_root

GIB = 1 << 30
SHARED = "/dev/shm"  # noqa: S108  where Ray keeps its objects
STORE_SHARE = 0.3  # of the memory, that Ray takes for its objects
STORE_MOST = 200 * GIB
OBJECTS = 256 << 20  # bytes that a Ray which a command starts itself takes
FULL = 0.05  # of a disk: with less free, Ray writes no more objects to it
MEMORY_LEAST, DISK_LEAST, FILES_LEAST = 4 * GIB, 2 * GIB, 4096


@dataclass(frozen=True)
class Disk:
    """A place that is written to.

    Attributes:
        use: what for.
        path: the place.
        total: bytes.
        free: bytes that this user may write.
    """

    use: str
    path: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """Facts about one.

    Attributes:
        cpus: that this process may use.
        flags: of the processor, as Linux calls them.
        memory: bytes; of the container, where it is limited.
        available: bytes that could be taken now.
        files: open files of a process, and to how many it may raise that.
        shm: shared memory.
        disks: places that are written to.
        gpus: that the driver of NVIDIA has.
        driver: its version.
    """

    cpus: int
    flags: frozenset[str]
    memory: int
    available: int
    files: tuple[int, int]
    shm: Disk | None
    disks: tuple[Disk, ...]
    gpus: int = 0
    driver: str | None = None


def collect() -> Machine:
    """The machine that this process runs on."""
    memory, available = _memory()
    ray = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"  # noqa: S108  Ray's own default
    places = (("work", Path.cwd()), ("copies of indices", cache_root()), ("Ray's sessions", ray))
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        flags=_flags(),
        memory=memory,
        available=available,
        files=resource.getrlimit(resource.RLIMIT_NOFILE),
        shm=_disk("shared memory", Path(SHARED)) if Path(SHARED).is_dir() else None,
        disks=tuple(_disk(use, place) for use, place in places),
        gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        driver=_driver(),
    )


def check() -> Iterator[Finding]:
    """Everything about this machine."""
    return judge(collect())


def judge(machine: Machine) -> Iterator[Finding]:
    """Everything about one machine."""
    yield _processor(machine)
    yield _enough_memory(machine)
    yield _shared_memory(machine)
    yield _files(machine)
    yield from (_space(disk) for disk in machine.disks)


def _processor(machine: Machine) -> Finding:
    fast = sorted(machine.flags & {"amx_bf16", "avx512_bf16", "bf16"})
    ints = sorted(machine.flags & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})
    if fast:
        found = f"{machine.cpus} CPUs with {', '.join(fast)}"
        return note("processor", found, "--precision bf16 halves the time of embedding on them")
    if ints:
        found = f"{machine.cpus} CPUs with {', '.join(ints)}, without bf16"
        return note("processor", found, "embed with --backend onnx --precision int8; not with bf16")
    return ok("processor", f"{machine.cpus} CPUs without bf16, so fp32 is the fastest precision")


def _enough_memory(machine: Machine) -> Finding:
    found = f"{machine.memory / GIB:.1f} GiB, {machine.available / GIB:.1f} GiB available"
    if machine.memory < MEMORY_LEAST:
        return warning("memory", found, "Ray and a model want 4 GiB; use a larger machine")
    if machine.available < FULL * machine.memory:
        return warning("memory", found, "Ray kills tasks at 95 % of it; end what uses it")
    return ok("memory", found)


def _shared_memory(machine: Machine) -> Finding:
    wanted = int(min(STORE_SHARE * machine.memory, STORE_MOST))
    if machine.shm is None:
        return note(SHARED, "none", "Ray keeps its objects in files, which is slower")
    found = f"{_size(machine.shm.free)} free of {_size(machine.shm.total)}"
    if machine.shm.free >= wanted:
        return ok(SHARED, found)
    advice = (
        f"a node takes {_size(wanted)}: docker run --shm-size, or an emptyDir of medium Memory; or "
        "start it with a smaller --object-store-memory"
    )
    if machine.shm.free < OBJECTS:
        return problem(SHARED, f"{found}; not even what a command takes", advice)
    return warning(SHARED, f"{found}; a node of Ray would use the disk instead", advice)


def _files(machine: Machine) -> Finding:
    soft, hard = machine.files
    found = f"{_limit(soft)} of a process, at most {_limit(hard)}"
    if resource.RLIM_INFINITY != hard < FILES_LEAST:
        return warning("open files", found, "Ray wants 65536: ulimit -n, or LimitNOFILE=")
    return ok("open files", found)


def _space(disk: Disk) -> Finding:
    found = f"{disk.use}: {_size(disk.free)} free of {_size(disk.total)} at {disk.path}"
    if disk.free < DISK_LEAST:
        return problem("disk", found, "free some, or use another disk")
    if disk.free < FULL * disk.total:
        return warning("disk", found, "Ray writes no objects to a disk that is 95 % full")
    return ok("disk", found)


def _disk(use: str, place: Path) -> Disk:
    there = next(path for path in (place, *place.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return Disk(use, str(place), usage.total, usage.free)


def _memory() -> tuple[int, int]:
    """Bytes in all and available; a container may have less than the machine."""
    has = {
        name: int(rest.split()[0]) << 10
        for name, _, rest in (line.partition(":") for line in _lines(Path("/proc/meminfo")))
    }
    total, available = has.get("MemTotal", 0), has.get("MemAvailable", 0)
    limit, used = (
        _number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current")
    )
    if limit and limit < total:
        return limit, min(available, max(0, limit - (used or 0)))
    return total, available


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _flags() -> frozenset[str]:
    named = (line.partition(":") for line in _lines(Path("/proc/cpuinfo")))
    found = next((rest for name, _, rest in named if name.strip() in ("flags", "Features")), "")
    return frozenset(found.split())


def _driver() -> str | None:
    first = next(iter(_lines(Path("/proc/driver/nvidia/version"))), "")
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _limit(files: int) -> str:
    return "unlimited" if files == resource.RLIM_INFINITY else str(files)


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"
