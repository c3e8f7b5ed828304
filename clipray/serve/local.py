"""`clipray serve`: the service on this machine, until it is interrupted."""

import logging
import os
import socket
import threading
import time
from math import ceil
from pathlib import Path

import ray
from pydantic import Field
from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

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
PATIENCE_S = 20.0
STOP_S = 30.0
POLL_S = 0.2
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ServeConfig(ServiceOptions):
    """Serve indices over HTTP from this machine until interrupted.

    `clipray serve --check FILE` checks a Serve YAML for a cluster instead, and starts nothing.
    """

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
            leave_within(STOP_S)
        finally:
            if cluster.is_remote():
                serve.delete(APP_NAME)
    return ServeReport(url=url)


def leave_within(seconds: float) -> None:
    """End this process after a while, whatever Ray or a library's thread still waits for then.

    The processes that Ray started here end with it.
    """

    def leave() -> None:
        log.warning("Ray did not stop within %g s; leaving it", seconds)
        os._exit(0)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def start(config: ServeConfig) -> str:
    """Start the service on the running Ray and wait until it answers; returns its URL.

    Raises:
        ConfigError: what cannot work; another service that runs on this cluster.
        ClipRayError: a replica cannot start; the message is its error.
    """
    listen = Listen(host=config.host, port=config.port)
    bound(listen, shared=False).close()
    _require_key(config, listen)
    _require_gpus(config)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    application = build(_args(config, listen))
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    _require_none()
    target = serve.RunTarget(application, name=APP_NAME, logging_config=QUIET)
    serve.run_many([target], wait_for_applications_running=False)
    try:
        _wait(listen)
        _require_listening(listen)
    except BaseException:
        serve.delete(APP_NAME)
        raise
    return listen.url


def _wait(listen: Listen) -> None:
    """Wait until all replicas run, and say for what where that takes long."""
    began, told = time.monotonic(), set[str]()
    while (status := serve.status().applications[APP_NAME]).status != ApplicationStatus.RUNNING:
        deployments = status.deployments
        if status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            messages = [status.message, *(one.message for one in deployments.values())]
            raise from_remote("\n".join(messages), "the service did not start")
        for name, one in deployments.items():
            late = one.status != "HEALTHY" and time.monotonic() > began + PATIENCE_S
            if late and name not in told:
                log.warning("still waiting for %s; what is there answers at %s", name, listen.url)
                told.add(name)
        time.sleep(POLL_S)


def _require_none() -> None:
    if cluster.is_remote() and APP_NAME in serve.status().applications:
        raise ConfigError(
            f"'{APP_NAME}' is served on this cluster already; end it before, or change it with "
            "`serve deploy`"
        )


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
