"""GPUs as the driver, torch, Ray and Faiss see them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import torch
from ray._private.accelerators import get_accelerator_manager_for_resource

from clipray.doctor import machine
from clipray.doctor.finding import Finding, note, ok, problem, warning
from clipray.doctor.machine import Machine


@dataclass(frozen=True)
class Seen:
    """GPUs of this machine.

    Attributes:
        driver: how many the driver has.
        version: of the driver.
        cuda: for which torch was built; None for a build without.
        torch: names of those that torch can use.
        bf16: whether all of them compute in it.
        ray: how many Ray would count.
        faiss: how many Faiss can use.
        hidden: what CUDA_VISIBLE_DEVICES says.
    """

    driver: int = 0
    version: str | None = None
    cuda: str | None = None
    torch: tuple[str, ...] = ()
    bf16: bool = True
    ray: int = 0
    faiss: int = 0
    hidden: str | None = None


def collect(has: Machine) -> Seen:
    """Ask all of them."""
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    manager = get_accelerator_manager_for_resource("GPU")
    return Seen(
        driver=has.gpus,
        version=has.driver,
        cuda=torch.version.cuda,
        torch=tuple(torch.cuda.get_device_name(n) for n in range(usable)),
        bf16=bool(usable and torch.cuda.is_bf16_supported()),
        ray=manager.get_current_node_num_accelerators() if manager else 0,
        faiss=faiss.get_num_gpus(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def check() -> Iterator[Finding]:
    """Whether all see the same on this machine."""
    return judge(collect(machine.collect()))


def judge(seen: Seen) -> Iterator[Finding]:
    """Whether they agree."""
    if not seen.driver and not seen.torch:
        yield ok("GPU", "none, so everything runs on the CPUs")
        return
    if not seen.torch:
        yield _unusable(seen)
        return
    names = ", ".join(seen.torch)
    yield ok("GPU", f"{names}; driver {seen.version}, torch for CUDA {seen.cuda}")
    if not seen.bf16:
        yield note("GPU", "no bf16 in hardware", "train and embed with --precision fp16")
    yield from _agree(seen)


def _unusable(seen: Seen) -> Finding:
    found = f"the driver ({seen.version}) has {seen.driver}, torch can use none"
    if seen.cuda is None:
        return problem("GPU", f"{found}: it was built without CUDA", "install torch for CUDA")
    if seen.hidden is not None:
        return warning("GPU", f"{found}: CUDA_VISIBLE_DEVICES is '{seen.hidden}'", "unset it")
    advice = "look at nvidia-smi; the driver may be too old, or its devices not in the container"
    return problem("GPU", f"{found}, though it was built for CUDA {seen.cuda}", advice)


def _agree(seen: Seen) -> Iterator[Finding]:
    usable = len(seen.torch)
    if seen.ray != usable:
        found = f"Ray counts {seen.ray}, torch can use {usable}"
        yield warning("GPU", found, f"start the node with --num-gpus={usable}")
    if not seen.faiss:
        yield note("GPU", "Faiss cannot use them", "install faiss-gpu; indices build on CPUs now")
    elif seen.faiss != usable:
        yield note(
            "GPU", f"Faiss can use {seen.faiss}, torch {usable}", "compare their CUDA builds"
        )
