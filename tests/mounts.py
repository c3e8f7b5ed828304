"""Functions that run in a process with mounts of its own, which end with it.

No right is needed where Linux lets a user make a namespace; elsewhere nothing is mounted, and a
test says so and is skipped.
"""

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACES = (("unshare", "-Urm"), ("unshare", "-m"))


def require_mounts():
    if _namespace() is None:
        pytest.skip("nothing can be mounted here")


def read_only(folder):
    place = shlex.quote(str(folder))
    return f"mount --bind {place} {place} && mount -o remount,ro,bind {place}"


def small_disk(folder, size):
    return f"mount -t tmpfs -o size={size} none {shlex.quote(str(folder))}"


def resize(folder, size):
    """From within: what is full becomes larger."""
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


def run_mounted(mount, function, *arguments):
    """Call a function of a test module, with JSON values, after a mount; it fails as it does."""
    called = f"{function.__name__}(*json.loads(sys.argv[1]))"
    program = f"import json, sys; from {function.__module__} import {function.__name__}; {called}"
    command = shlex.join([sys.executable, "-c", program, json.dumps(list(map(str, arguments)))])
    done = subprocess.run(
        [*_namespace(), "sh", "-ec", f"{mount}\nexec {command}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert not done.returncode, done.stderr


@functools.cache
def _namespace():
    for namespace in NAMESPACES:
        tried = [*namespace, "mount", "-t", "tmpfs", "none", "/mnt"]
        try:
            if not subprocess.run(tried, capture_output=True, check=False).returncode:
                return namespace
        except OSError:
            continue
    return None
