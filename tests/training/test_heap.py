"""Memory that is freed and taken again, counted in page faults."""

import ctypes
import resource
import subprocess
import sys
import threading

import pytest

from clipray.training.heap import keep_freed

LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = ctypes.c_void_p
ROUNDS = 50
SIZES = (10 << 20, 40 << 20)  # both fit into the heap of a thread
PAGES = sum(SIZES) // resource.getpagesize()


def faults_of_rounds(*, kept, threaded):
    """Page faults of a process that takes blocks and frees them, again and again."""
    code = f"import tests.training.test_heap as t; t.work(kept={kept}, threaded={threaded})"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return int(found.stdout)


def work(*, kept, threaded):
    if kept:
        keep_freed()
    if threaded:
        thread = threading.Thread(target=rounds)
        thread.start()
        thread.join()
    else:
        rounds()


def rounds():
    take()  # the first time it has to come from the kernel
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        take()
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}\n")


def take():
    """As torch does it; numpy asks the kernel for large pages."""
    blocks = [LIBC.malloc(size) for size in SIZES]
    for block, size in zip(blocks, SIZES, strict=True):
        ctypes.memset(block, 1, size)
    for block in blocks:
        LIBC.free(ctypes.c_void_p(block))


@pytest.mark.parametrize("threaded", [False, True])
def test_what_is_freed_does_not_come_from_the_kernel_again(threaded):
    assert faults_of_rounds(kept=False, threaded=threaded) > ROUNDS * PAGES / 4
    assert faults_of_rounds(kept=True, threaded=threaded) < PAGES
