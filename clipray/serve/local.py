"""`clipray serve`: the service on this machine, until it is interrupted."""

import logging
import os
import socket
import threading
from math import ceil
from pathlib import Path

import ray
from pydantic import Field
from ray import serve
from ray.serve.schema import LoggingConfig

from clipray import cluster
from clipray.config import parse
from clipray.errors import ConfigError, from_remote
from clipray.report import Report
from clipray.serve.app import APP_NAME, build
from clipray.serve.args import Listen, ServeArgs, ServiceOptions
from clipray.serve.front import bound
from clipray.serve.keys import Keys

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ServeConfig(ServiceOptions):
    """Serve indices over HTTP from this machine until interrupted."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    public: bool = Field(
        False, description="let other machines ask without a key, where --host is not loopback"
    )


class ServeReport(Report):
    """That the service has ended."""

    url: str

    def summary(self) -> str:
        """One line."""
        return f"{self.url}: stopped"


def serve_until_interrupted(config: ServeConfig) -> ServeReport:
    """Start Ray and the service, and wait.

    Raises:
        ConfigError: the port is taken.
        ClipRayError: a replica cannot start; the message is its error.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # replicas wait for nobody
    with cluster.session(cpus=_logical_cpus(config)):
        url = start(config)
        log.warning("serving %s at %s, Ctrl-C ends it", ", ".join(config.index), url)
        if config.access_log:
            log.warning("access log: %s", logs_folder() / "worker-*.err")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            log.warning("stopping")
        finally:
            if cluster.is_remote():
                serve.delete(APP_NAME)
    return ServeReport(url=url)


def start(config: ServeConfig) -> str:
    """Start the service on the running Ray and wait until it answers; returns its URL."""
    listen = Listen(host=config.host, port=config.port)
    bound(listen, shared=False).close()
    _require_key(config, listen)
    _require_gpus(config)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    application = build(_args(config, listen))
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    try:
        serve.run(application, name=APP_NAME, route_prefix="/", logging_config=QUIET)
    except RuntimeError as error:
        deployed = serve.status().applications[APP_NAME].deployments.values()
        told = "\n".join([str(error), *(deployment.message for deployment in deployed)])
        serve.delete(APP_NAME)
        raise from_remote(told, "the service did not start") from None
    _require_listening(listen)
    return listen.url


def logs_folder() -> Path:
    """Where Ray keeps what its processes on this machine write to stdout and stderr."""
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "logs")


def _args(config: ServeConfig, listen: Listen) -> ServeArgs:
    tree = {name: getattr(config, name) for name in ServiceOptions.model_fields}
    if not cluster.is_remote():
        tree["inside"] = LOOPBACK
    return parse(ServeArgs, tree | {"listen": listen}, "options")


def _require_key(config: ServeConfig, listen: Listen) -> None:
    if not (listen.is_local or config.public or Keys.open(config).read):
        raise ConfigError(
            f"host {config.host}: other machines reach it, and everybody could search; set "
            "CLIPRAY_READ_KEYS or --read-keys FILE, or say --public"
        )


def _require_gpus(config: ServeConfig) -> None:
    """Refuse what Ray would wait for without end; where nodes come and go it may be right to."""
    asked, there = config.gpus * config.encoder.replicas, cluster.resources().get("GPU", 0)
    if asked > there and not cluster.is_remote():
        raise ConfigError(f"gpus: {asked:g} asked for, this machine has {there:g}")


def _logical_cpus(config: ServeConfig) -> int:
    """What the replicas ask for together; Ray counts these, whatever the machine has."""
    scalings = [config.search, config.encoder, *[config.group] * config.groups]
    return ceil(sum(scaling.most * scaling.cpus for scaling in scalings)) + 2


def _require_listening(listen: Listen) -> None:
    try:
        socket.create_connection((listen.host, listen.port), timeout=5).close()
    except OSError:
        raise ConfigError(
            f"port {listen.port} on {listen.host}: nothing listens there; the ingress of this Ray "
            "cluster runs on another node: use `serve deploy`"
        ) from None
