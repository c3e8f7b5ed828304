"""A program: changes the files of an index one by one and opens it without verifying them.

Prints [change, outcome] for each, and last how many MB of memory it all took. What is tried is
printed ahead of it, so that a crash tells its reason.
"""

import json
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from clipray.errors import ClipRayError, DamagedError
from clipray.index import Index
from clipray.index.manifest import IndexFolder

ROOM = 4 << 30  # bytes of address space; a machine that others use shall survive
HEAD, TAIL = 160, 40
SIZES = (2**31, 2**40, 2**62)


def main():
    root = Path(sys.argv[1])  # and of files whose names end with the other argument
    limit = _status("VmSize") * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = IndexFolder(root)
    before = None
    for segment in folder.read().segments:
        for path, _ in folder.files(segment):
            if not path.name.endswith(sys.argv[2]):
                continue
            data = path.read_bytes()
            for name, changed in _changes(data):
                path.write_bytes(changed)
                sys.stdout.write(json.dumps([f"{path.name} {name}", _outcome(root, path)]) + "\n")
                before = before or _status("VmHWM")
            path.write_bytes(data)
    sys.stdout.write(f"{(_status('VmHWM') - before) // 1024}\n")


def _changes(data):
    places = sorted({*range(min(HEAD, len(data))), *range(max(0, len(data) - TAIL), len(data))})
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        yield f"{place}^", changed
    for place in range(0, min(HEAD, len(data) - 8), 4):
        for size in SIZES:
            changed = bytearray(data)
            changed[place : place + 8] = struct.pack("<q", size)
            yield f"{place}={size}", changed


def _outcome(root, path):
    sys.stderr.write(f"{path.name}\n")
    try:
        index = Index.open(root, verify=False)
    except DamagedError as error:
        return "named" if str(path.parent) in str(error) else f"not named: {error}"
    except Exception as error:  # noqa: BLE001  each one is told
        return f"{type(error).__name__}: {error}"
    with suppress(ClipRayError, ValueError, LookupError, RuntimeError):  # nobody has verified it
        index.search(np.eye(index.manifest.model.dim)[:2], 5)
    return "opened"


def _status(name):
    """A line of the process's status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


if __name__ == "__main__":
    main()
