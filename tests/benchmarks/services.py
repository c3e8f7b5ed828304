"""The services that are compared: how each is started, asked and stopped."""

import http.client
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.search import K
from tests.benchmarks.served import ROOT, Served
from tests.benchmarks.tree import Tree
from tests.peers import environment

HERE = Path(__file__).parent / "contestants"
DATABASES = ("lancedb", "chroma")
PORTS = range(20_000, 30_000)
START_S = 180
STOP_S = 60

CLIPRAY = "{python} -m clipray.cli serve --index {index} --port {port} --groups "
BACK = (  # open_clip's weights may be a file: nothing is downloaded, and nothing of it is replaced
    "{peer} -m clip_retrieval.cli back --indices_paths {indices} --port {port} "
    "--clip_model open_clip:ViT-B-32/{weights} --provide_aesthetic_embeddings False "
    "--enable_mclip_option False"
)
PARQUET = BACK.replace("{indices}", "{listed}")
ARROW = BACK.replace("{indices}", "{listed_arrow}") + " --use_arrow True"
PLAIN = "{python} {here}/plain_server.py {graph} {metadata} {port}"
LANCE = "{databases} {here}/database_server.py lancedb serve {root} {port}"
CHROMA = LANCE.replace("lancedb", "chroma")


@dataclass(frozen=True)
class Recipe:
    """A service.

    Attributes:
        line: its command line.
        path: where it is asked.
        vector: name of a vector in the body of a request.
        rest: what else the body says.
        encodes: whether it is asked with texts as well.
        peers: whether it needs an environment of its own.
    """

    name: str
    line: str
    path: str
    vector: str
    rest: Mapping[str, Any]
    encodes: bool = True
    peers: bool = False

    def body(self, vector: list[float]) -> dict[str, Any]:
        """A query by vector."""
        return {self.vector: vector, **self.rest}

    def text_body(self, text: str) -> dict[str, Any]:
        """A query by text."""
        return {"text": text, **self.rest}


OURS = {"k": K, "columns": ["caption"]}
THEIRS = {"modality": "image", "num_images": K, "indice_name": "rows"}
THEIRS = {"modality": "image", "num_images": K, "indice_name": "rows"}
ASKED = ("/knn-service", "embedding_input", THEIRS)
RECIPES = (
    Recipe("clipray, 4 groups", CLIPRAY + "4", "/search", "embedding", OURS),
    Recipe("clipray, 1 group", CLIPRAY + "1", "/search", "embedding", OURS, encodes=False),
    Recipe("clip-retrieval back", PARQUET, *ASKED, encodes=False, peers=True),
    Recipe("clip-retrieval back, arrow", ARROW, *ASKED, peers=True),
    Recipe("plain server", PLAIN, "/search", "embedding", OURS, encodes=False),
    Recipe("LanceDB", LANCE, "/search", "embedding", OURS, encodes=False, peers=True),
    Recipe("Chroma", CHROMA, "/search", "embedding", OURS, encodes=False, peers=True),
)


class Service:
    """A service that runs; a context manager, which stops it.

    Attributes:
        tree: its processes.
        start_s: seconds until it answered a query.
    """

    def __init__(self, recipe: Recipe, served: Served) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.port = free_port()
        self._served = served
        self._log = served.root / f"{recipe.name.replace(' ', '_')}.log"

    def __enter__(self) -> "Service":
        self._make()
        began = time.monotonic()
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                self._line(),
                env=self._variables(),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.tree = Tree(self._process.pid)
        try:
            self._wait_for_answer(began + START_S)
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(self, *error: object) -> None:
        end(self._process, self.tree)

    def _make(self) -> None:
        """A database stores its rows; once in a folder, and not counted."""
        line = self._line()
        name = line[2]
        if "serve" in line and name in DATABASES and not self._served.effort_of(name):
            line[line.index("serve")] = "make"
            subprocess.run(line, env=self._variables(), cwd=ROOT, check=True)

    def _line(self) -> list[str]:
        served, recipe = self._served, self.recipe
        line = recipe.line.format(
            python=sys.executable,
            peer=_python(environment.peers, recipe, "{peer}"),
            databases=_python(environment.databases, recipe, "{databases}"),
            here=HERE,
            root=served.root,
            index=served.index,
            port=self.port,
            listed=served.listed,
            listed_arrow=served.listed_arrow,
            weights=served.weights,
            graph=served.graph,
            metadata=served.metadata,
        )
        return shlex.split(line)

    def _variables(self) -> dict[str, str]:
        """Ours runs as a user starts it; the others with one thread, which suits single queries."""
        if "clipray.cli" in self.recipe.line:
            return os.environ | {"PYTHONPATH": str(ROOT)}
        return environment.environment() | {"OMP_NUM_THREADS": "1"}

    def _wait_for_answer(self, deadline: float) -> None:
        while not self._answers():
            said = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            assert self._process.poll() is None, f"{self.name} ended: {said}"
            assert time.monotonic() < deadline, f"{self.name} does not answer: {said}"
            time.sleep(0.2)

    def _answers(self) -> bool:
        body = self.recipe.body(self._served.queries[0].tolist())
        return answer(self.port, self.recipe.path, body) is not None


def answer(port: int, path: str, body: Mapping[str, Any]) -> Any:
    """What a service replies, or None while it does not listen or refuses."""
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        asked.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = asked.getresponse()
        return json.loads(reply.read()) if reply.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        asked.close()


def end(process: subprocess.Popen[Any], tree: Tree) -> None:
    """End a service and all that it started."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in tree.live():
        with suppress(ProcessLookupError):
            os.kill(left.pid, signal.SIGKILL)


def _python(made: Callable[[], Path], recipe: Recipe, name: str) -> Path | None:
    """Python of an environment, which is made only where it is needed."""
    return made() / "bin" / "python" if name in recipe.line else None


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel and Ray's processes take."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port in {PORTS}")
