"""Where processes beside this one come from."""

from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext


def server(module: str) -> ForkServerContext:
    """A context whose processes have imported `module` already.

    Never fork: this process may have the threads of gRPC. The server of the forks imports once; it
    begins now, beside whatever comes before the first process.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["__main__", module])
    forkserver.ensure_running()
    return context
