"""Building the service and running it on this machine.

`build` is what `serve deploy` and `serve run` import: typed arguments in, an application out.
"""

import logging
import socket
import threading

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from clipray import cluster, uri
from clipray.encoder import EncoderOptions
from clipray.errors import ConfigError, from_remote
from clipray.manifest import ModelSource
from clipray.report import Report
from clipray.serve.catalog import Catalog, ServedFolder
from clipray.serve.encoding import EncoderReplica
from clipray.serve.replicas import ShardGroup, plan_groups
from clipray.serve.search import Search

log = logging.getLogger(__name__)

APP_NAME = "clipray"


class ServeArgs(EncoderOptions):
    """Arguments of the application."""

    index: tuple[str, ...] = Field(
        min_length=1,
        description="index folder, URI of a published one, or NAME=FOLDER; may be repeated, and a "
        "name may have one folder of images and one of texts",
    )
    model: str | None = Field(
        None, description="model name or folder; by default where the indices say it is"
    )
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")
    gpus: float = Field(0, ge=0, description="GPUs of one encoder replica")
    groups: int = Field(1, ge=1, description="processes that the shards are dealt out to")
    replicas: int = Field(1, ge=1, description="replicas of every group")


class ServeConfig(ServeArgs):
    """Serve indices over HTTP from this machine until interrupted."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")


class ServeReport(Report):
    """That the service has ended."""

    url: str

    def summary(self) -> str:
        """One line."""
        return f"{self.url}: stopped"


def build(args: ServeArgs) -> Application:
    """The application: one encoder, groups of shards, and the ingress over them.

    Raises:
        InputError: no such index.
        MismatchError: indices of different models.
    """
    catalog = open_catalog(args)
    specs = plan_groups(catalog.folders, args.groups)
    encoder = serve.deployment(
        name="Encoder",
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0.2, "num_gpus": args.gpus},
    )(EncoderReplica).bind(catalog.source, catalog.model, args)
    groups = [
        serve.deployment(
            name=f"ShardGroup-{number}",
            num_replicas=args.replicas,
            max_ongoing_requests=32,
            ray_actor_options={"num_cpus": 0.2},
        )(ShardGroup).bind(spec)
        for number, spec in enumerate(specs)
    ]
    ingress = serve.deployment(
        name="Search", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.2}
    )(Search)
    return ingress.bind(catalog, encoder, groups, specs)


def open_catalog(args: ServeArgs) -> Catalog:
    """Read the manifests of all indices."""
    folders = [ServedFolder.open(*uri.named_place(given)) for given in args.index]
    slots = [folder.slot for folder in folders]
    for slot in slots:
        if slots.count(slot) > 1:
            raise ConfigError(f"index: two folders are {slot}; name one: --index NAME=FOLDER")
    manifests = [folder.read() for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        manifests[0].model.require(manifest.model, f"{folder.root}: its model")
    source = manifests[0].source
    if args.model:
        source = ModelSource(name=args.model, pretrained=args.pretrained).absolute()
    return Catalog(model=manifests[0].model, source=source, folders=tuple(folders))


def serve_until_interrupted(config: ServeConfig) -> ServeReport:
    """Start Ray and the service, and wait.

    Raises:
        ConfigError: the port is taken.
        ClipRayError: a replica cannot start; the message is its error.
    """
    with cluster.session():
        url = start(config)
        log.warning("serving %s at %s, Ctrl-C ends it", ", ".join(config.index), url)
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
    _require_free_port(config.host, config.port)
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("%s: reachable from other machines, and there is no key yet", config.host)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    args = ServeArgs(**{name: getattr(config, name) for name in ServeArgs.model_fields})
    application = build(args)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=config.host, port=config.port),
        logging_config=quiet,
    )
    try:
        serve.run(application, name=APP_NAME, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        deployed = serve.status().applications[APP_NAME].deployments.values()
        told = "\n".join([str(error), *(deployment.message for deployment in deployed)])
        serve.delete(APP_NAME)
        raise from_remote(told, "the service did not start") from None
    _require_listening(config.host, config.port)
    return f"http://{config.host}:{config.port}"


def _require_listening(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        raise ConfigError(
            f"port {port} on {host}: nothing listens there; this Ray cluster runs Serve already, "
            "on the address it was started with: use that one"
        ) from None


def _require_free_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} on {host}: cannot listen there ({error})") from None
