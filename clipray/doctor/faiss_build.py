"""How the Faiss that is installed was built."""

from collections.abc import Iterator
from dataclasses import dataclass

import faiss

from clipray.doctor import machine
from clipray.doctor.finding import Finding, note, ok, warning

LEVELS = (("AVX512", "avx512f"), ("AVX2", "avx2"))  # Faiss's word, the processor's


@dataclass(frozen=True)
class Build:
    """Facts about it.

    Attributes:
        version: its own.
        options: words such as AVX2 and GPU.
        gpu: whether it has the symbols for GPUs.
        flags: of the processor.
    """

    version: str
    options: tuple[str, ...]
    gpu: bool
    flags: frozenset[str]


def collect(flags: frozenset[str]) -> Build:
    """Of the Faiss that is imported here."""
    options = tuple(faiss.get_compile_options().split())
    return Build(faiss.__version__, options, hasattr(faiss, "StandardGpuResources"), flags)


def check() -> Iterator[Finding]:
    """Whether it suits this machine."""
    return judge(collect(machine.collect().flags))


def judge(build: Build) -> Iterator[Finding]:
    """Whether it uses what the processor has."""
    told = f"Faiss {build.version}: {' '.join(build.options)}"
    lacking = [word for word, flag in LEVELS if flag in build.flags and word not in build.options]
    if "AVX2" in lacking:
        yield warning("Faiss", f"{told}; not for AVX2, which the processor has", "install a wheel")
    elif lacking:
        yield note("Faiss", f"{told}; the processor has {lacking[0]} as well")
    else:
        yield ok("Faiss", told)
    if not build.gpu:
        yield note("Faiss", "it cannot use GPUs", "install faiss-gpu where there are some")
