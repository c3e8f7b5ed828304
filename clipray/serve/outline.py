"""What a Serve file would start, as far as it can be known without a cluster and the indices."""

from collections.abc import Mapping
from typing import Any

from clipray.config import Config
from clipray.serve.args import Scaling, ServeArgs


class DeploymentOutline(Config):
    """One deployment.

    Attributes:
        name: Ray's.
        fewest: replicas, at least.
        most: replicas, at most.
        cpus: logical CPUs of each.
        gpus: GPUs of each, or a fraction of one.
    """

    name: str
    fewest: int
    most: int
    cpus: float = 1
    gpus: float = 0

    def overridden(self, options: Mapping[str, Any]) -> "DeploymentOutline":
        """As the options under `deployments:` have it, which Ray puts in place of the code's."""
        changed: dict[str, Any] = {}
        if isinstance(fixed := options.get("num_replicas"), int):
            changed = {"fewest": fixed, "most": fixed}
        if scaling := options.get("autoscaling_config"):
            fewest = scaling.get("min_replicas", 1)
            changed = {"fewest": fewest, "most": scaling.get("max_replicas", 1)}
        if (actor := options.get("ray_actor_options")) is not None:
            changed["cpus"] = actor.get("num_cpus", 1)
            changed["gpus"] = actor.get("num_gpus") or 0
        return self.model_copy(update=changed)

    def line(self) -> str:
        """For people."""
        count = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest}–{self.most}"
        each = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        return f"  {self.name:<14} {count:>5} × {each}"


class ApplicationOutline(Config):
    """One application; `deployments` is empty where only its code knows them."""

    name: str
    address: str
    deployments: tuple[DeploymentOutline, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.name}: {self.address}", *(one.line() for one in self.deployments)]


def deployments_of(args: ServeArgs) -> dict[str, DeploymentOutline]:
    """Those of an application of ours; an index of few shards, or of shards on nodes, has others.

    Args:
        args: of the application.
    """
    groups = [f"ShardGroup-{number}" for number in range(args.groups)]
    scalings = {"Search": args.search, "Encoder": args.encoder}
    scalings |= dict.fromkeys(groups, args.group)
    return {name: _outline(name, one, args) for name, one in scalings.items()}


def _outline(name: str, scaling: Scaling, args: ServeArgs) -> DeploymentOutline:
    gpus = args.gpus if name == "Encoder" else 0
    return DeploymentOutline(
        name=name, fewest=scaling.replicas, most=scaling.most, cpus=scaling.cpus, gpus=gpus
    )
