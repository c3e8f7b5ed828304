"""Where processes beside this one come from."""

import sys
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext


def server(module: str) -> ForkServerContext:
    """A context whose processes have imported `module` already.

    Never fork: this process may have the threads of gRPC. The server of the forks imports once; it
    begins now, beside whatever comes before the first process.
    """
    context = get_context("forkserver")
    # A process runs the main module of its parent again. In a worker of Ray that imports ray, for
    # half a second, one process after the other; before Python 3.13.1 `__main__` did nothing here.
    again = ["ray"] if "ray" in sys.modules else []
    context.set_forkserver_preload(["__main__", *again, module])
    forkserver.ensure_running()
    return context
