"""What a service is told: the arguments of the application."""

from math import ceil
from typing import Any, Self

from pydantic import Field, model_validator

from clipray.config import Config
from clipray.encoder_options import EncoderOptions
from clipray.serve.addresses import is_loopback
from clipray.serve.fetch import FetchOptions
from clipray.serve.guard import GuardOptions
from clipray.serve.line import LineOptions
from clipray.serve.raters import RaterOptions


class Scaling(Config):
    """How many replicas a deployment has, and what each asks Ray for."""

    replicas: int = Field(1, ge=1, description="replicas, at least")
    max_replicas: int | None = Field(
        None, ge=1, description="replicas, at most; more than `replicas` lets Ray scale by load"
    )
    target: float | None = Field(
        None,
        gt=0,
        description="requests in work that one replica should have; by default 64 of the ingress, "
        "and one of the others, whose requests carry many queries",
    )
    upscale_delay_s: float = Field(
        30, ge=0, description="seconds of more load than that before replicas come"
    )
    downscale_delay_s: float = Field(
        600, ge=0, description="seconds of less load before replicas go"
    )
    cpus: float = Field(0.2, ge=0, description="logical CPUs of one replica")
    per_node: int | None = Field(
        None,
        ge=1,
        le=100,
        description="replicas on one node, at most; by default, of two or more replicas no node "
        "gets more than half where there are several nodes",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than {self.replicas}")
        return self

    @property
    def most(self) -> int:
        """Replicas that there may be."""
        return self.max_replicas or self.replicas

    @property
    def is_scaled(self) -> bool:
        """Whether Ray changes the number of replicas."""
        return self.most > self.replicas

    def options(self, target: float) -> dict[str, Any]:
        """As `serve.deployment` takes it; `target` where none is given."""
        if not self.is_scaled:
            return {"num_replicas": self.replicas}
        scaling = {
            "min_replicas": self.replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target or target,
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
        }
        return {"autoscaling_config": scaling}

    def spread(self, nodes: int) -> int | None:
        """Replicas that one node may have, None where it may have all.

        Args:
            nodes: that can hold replicas.
        """
        if self.per_node is None and self.replicas > 1 and nodes > 1:
            return ceil(self.most / 2)
        return self.per_node if self.most > 1 else None


class Listen(Config):
    """An address that the ingress replicas listen on themselves, without Ray's proxies."""

    host: str = Field("127.0.0.1", description="address")
    port: int = Field(8000, ge=1, le=65535, description="port")

    @property
    def is_local(self) -> bool:
        """Whether other machines cannot reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where the service is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class ServiceOptions(EncoderOptions, GuardOptions, FetchOptions, RaterOptions):
    """What every service is told, wherever it listens."""

    index: tuple[str, ...] = Field(
        min_length=1,
        description="index folder, URI of a published one, or NAME=FOLDER; may be repeated, and a "
        "name may have one folder of images and one of texts",
    )
    model: str | None = Field(
        None, description="model name or folder; by default where the indices say it is"
    )
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")
    gpus: float = Field(0, ge=0, description="GPUs of one encoder replica, or a fraction of one")
    groups: int = Field(1, ge=1, description="processes that the shards are dealt out to")
    replicas: int = Field(1, ge=1, description="replicas of every group, at least")
    threads: int = Field(1, ge=1, description="threads of Faiss for one call to a group")
    verify: bool = Field(True, description="compare all files of the indices with their checksums")
    watch_s: float = Field(
        5.0, ge=0, description="seconds between looks for new versions of the indices; 0: never"
    )
    text_cache: int = Field(
        10_000, ge=0, description="texts whose vectors an ingress replica keeps"
    )
    line: LineOptions = Field(LineOptions(), description="how long the groups are waited for")
    search: Scaling = Field(Scaling(), description="the ingress")
    encoder: Scaling = Field(Scaling(), description="the encoder")
    shards: Scaling = Field(
        Scaling(), description="every group; its `replicas` is the option above"
    )
    inside: str | None = Field(
        None,
        description="address that the replicas listen on for each other; by default that of their "
        "node",
    )
    access_log: bool = Field(
        False,
        description="one JSON line a request, on stderr of the ingress replicas: Ray keeps it in "
        "worker-*.err among the logs of its session",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pretrained and not self.model:
            raise ValueError("pretrained says which weights of a model; give the model as well")
        if self.shards.max_replicas and self.shards.max_replicas < self.replicas:
            raise ValueError(
                f"shards.max_replicas {self.shards.max_replicas} is less than replicas "
                f"{self.replicas}"
            )
        return self

    @property
    def group(self) -> Scaling:
        """How every group is scaled."""
        replicas = max(self.replicas, self.shards.replicas)
        return self.shards.model_copy(update={"replicas": replicas})


class ServeArgs(ServiceOptions):
    """Arguments of the application."""

    listen: Listen | None = Field(
        None, description="address that the ingress listens on itself; by default Ray's proxies do"
    )

    @model_validator(mode="after")
    def _scalable(self) -> Self:
        if self.listen and self.search.is_scaled:
            raise ValueError(
                f"search.max_replicas {self.search.max_replicas}: Ray does not see the load of an "
                "ingress that listens itself; give search.replicas alone, or leave `listen` out "
                "and let Ray's proxies listen"
            )
        return self
