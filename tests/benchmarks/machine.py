"""What the figures depend on: the processor, and versions of what was run."""

import json
import os
import platform
import subprocess
from pathlib import Path


def machine() -> str:
    """Processor, cores, kind."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.machine()}, no GPU used"


def processor() -> str:
    """Name of the CPU, and whether it computes in bf16."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = [f for f in ("avx512_bf16", "amx_bf16", "avx512_vnni") if f in fields.get("flags", "")]
    return f"{fields.get('model name', 'unknown CPU')} ({', '.join(flags) or 'no bf16'})"


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """Versions of packages in the environment of a Python."""
    code = "import importlib.metadata as m, json, sys\n"
    code += "print(json.dumps([m.version(name) for name in sys.argv[1:]]))"
    told = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, check=True)
    pairs = zip(packages, json.loads(told.stdout), strict=True)
    return ", ".join(f"{name} {version}" for name, version in pairs)
