"""Building the application: `serve deploy` and `serve run` import `build`."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from clipray import nodes, uri
from clipray.encoder_options import EncoderOptions
from clipray.errors import ConfigError
from clipray.exported import stated_identity
from clipray.index.store import read
from clipray.manifest import ModelSource
from clipray.serve.args import Listen, Scaling, ServeArgs
from clipray.serve.catalog import Catalog, ServedFolder
from clipray.serve.groups import GroupSpec, plan_groups
from clipray.serve.keys import Keys
from clipray.serve.raters import Raters
from clipray.serve.replicas import ShardGroup
from clipray.serve.search import Search

APP_NAME = "clipray"
ENCODER = "clipray.serve.encoding.EncoderReplica"  # by name: who builds needs no torch

# In the replicas only: calls go from process to process over gRPC, in the loop of the caller.
# As Ray has it by default, a call costs 2 to 4 times as much.
FAST = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "1",  # else what clipray warns of is lost, as Serve filters stderr
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(1 << 30),
}


def build(args: ServeArgs) -> Application:
    """The application: an encoder, groups of shards, and the ingress over them.

    Raises:
        InputError: no such index.
        MismatchError: indices of different models, or a folder of another model.
        ConfigError: a node that cannot hold what belongs there.
    """
    catalog = open_catalog(args)
    specs = plan_groups(catalog.folders, args.groups)
    encoder = _deployment("Encoder", args.encoder, actor={"num_gpus": args.gpus})
    how = EncoderOptions(**args.model_dump(include=set(EncoderOptions.model_fields)))
    ingress = _deployment("Search", args.search, many=True, actor=_home(specs, args))
    application: Application = ingress(Search).bind(
        catalog,
        encoder(ENCODER).bind(catalog.source, catalog.model, how, args.inside),
        [_group(spec, catalog.folders, args) for spec in specs],
        specs,
        raters=Raters.open(args, catalog.model.dim),
        keys=Keys.open(args),
        args=args,
    )
    return application


def open_catalog(args: ServeArgs) -> Catalog:
    """Read the manifests of all indices."""
    places = [uri.named_place(given) for given in args.index]
    manifests = [read(root) for _, root in places]
    found = zip(places, manifests, strict=True)
    folders = [ServedFolder.of(name, root, manifest) for (name, root), manifest in found]
    slots = [folder.slot for folder in folders]
    for slot in slots:
        if slots.count(slot) > 1:
            raise ConfigError(f"index: two folders are {slot}; name one: --index NAME=FOLDER")
    for folder, manifest in zip(folders, manifests, strict=True):
        manifests[0].model.require(manifest.model, f"{folder.root}: its model")
    source = manifests[0].source
    if args.model:
        source = ModelSource(name=args.model, pretrained=args.pretrained).absolute()
    if stated := stated_identity(source):  # replicas look at the weights, after seconds
        manifests[0].model.require(stated, f"{source.name}: its model")
    return Catalog(model=manifests[0].model, source=source, folders=tuple(folders))


def _group(spec: GroupSpec, folders: Sequence[ServedFolder], args: ServeArgs) -> Application:
    where = {"label_selector": nodes.selector(spec.node)} if spec.node else {}
    made = _deployment(spec.name, args.group, actor=where)(ShardGroup)
    options = {"verify": args.verify, "inside": args.inside}
    group: Application = made.bind(spec, folders, args.threads, **options)
    return group


def _home(specs: Sequence[GroupSpec], args: ServeArgs) -> dict[str, Any]:
    """Where the ingress must be: beside manifests that not all nodes see, or at its address."""
    home = nodes.here() if any(spec.node for spec in specs) else _listening(args.listen)
    if home is None:
        return {}
    cpus = nodes.find(home).cpus
    if cpus < args.search.cpus:
        raise ConfigError(
            f"search.cpus {args.search.cpus:g}: the ingress must run on node '{home}', which has "
            f"{cpus:g} CPUs; set search.cpus to that"
        )
    return {"label_selector": nodes.selector(home)}


def _listening(listen: Listen | None) -> str | None:
    """Name of the node that has an address; None where it is every node's, or a name's."""
    if listen is None:
        return None
    if listen.is_local:
        return nodes.here()
    return next((node.name for node in nodes.present() if node.address == listen.host), None)


def _deployment(
    name: str, scaling: Scaling, actor: Mapping[str, Any], *, many: bool = False
) -> Any:
    """A deployment; `many` where a request is one query, not a call that carries many."""
    cap = None if "label_selector" in actor else scaling.spread(_nodes(scaling, actor))
    spread: dict[str, Any] = {"max_replicas_per_node": cap} if cap else {}
    environment = {"env_vars": FAST}
    return serve.deployment(
        name=name,
        max_ongoing_requests=max(512 if many else 64, ceil(2 * (scaling.target or 0))),
        max_constructor_retry_count=2,  # what is wrong with a model or an index stays wrong
        # A rolling update must not stop the only replica first; but of several it must, or it
        # would wait for room without end where the nodes have all that they may.
        max_surge_percent=0 if cap and scaling.replicas > 1 else 100,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": scaling.cpus, "runtime_env": environment, **actor},
        **scaling.options(64 if many else 1),
        **spread,
    )


def _nodes(scaling: Scaling, actor: Mapping[str, Any]) -> int:
    """How many nodes can hold a replica; 0 without a cluster."""
    there = nodes.present() if ray.is_initialized() else ()
    gpus = actor.get("num_gpus", 0)
    return sum(node.cpus >= scaling.cpus and node.gpus >= gpus for node in there)
