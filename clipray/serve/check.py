"""`clipray serve --check`: a Serve YAML, checked strictly without a cluster."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from ray.serve.schema import HTTPOptionsSchema

from clipray.config import Config, read_yaml
from clipray.errors import ConfigError
from clipray.report import Report
from clipray.serve.addresses import is_loopback
from clipray.serve.application import Checked
from clipray.serve.outline import ApplicationOutline
from clipray.serve.schema import faults, repeated_keys, section, sections


class CheckConfig(Config):
    """Say what is wrong in a file for `serve deploy` or `serve run`, or what it would start."""

    check: Path = Field(description="Serve YAML to check; nothing is started")


class CheckReport(Report):
    """What a valid file would start."""

    file: Path
    applications: tuple[ApplicationOutline, ...]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Deployments, what they ask for together, and warnings."""
        lines = [line for application in self.applications for line in application.lines()]
        warned = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([f"{self.file}: valid", *lines, self._asked(), *warned])

    def _asked(self) -> str:
        there = [one for application in self.applications for one in application.deployments]
        cpus = [
            sum(one.fewest * one.cpus for one in there),
            sum(one.most * one.cpus for one in there),
        ]
        gpus = [
            sum(one.fewest * one.gpus for one in there),
            sum(one.most * one.gpus for one in there),
        ]
        return f"asks for {_range(cpus)} CPUs and {_range(gpus)} GPUs"


def check(config: CheckConfig) -> CheckReport:
    """Check a file.

    Raises:
        ConfigError: with all that is wrong in it.
    """
    file = config.check
    tree = read_yaml(file)
    applications = [Checked(n, one) for n, one in enumerate(sections(tree, "applications"))]
    found = [*repeated_keys(file.read_text(encoding="utf-8")), *faults(tree)]
    found += [problem for application in applications for problem in application.problems()]
    found += _clashes(tree, applications)
    if found:
        told = "\n".join(f"  {problem}" for problem in found)
        raise ConfigError(
            f"{file}: {len(found)} {'problem' if len(found) == 1 else 'problems'}\n{told}"
        )
    warnings = [warning for application in applications for warning in application.warnings()]
    return CheckReport(
        file=file,
        applications=tuple(one.outline(_proxied(tree)) for one in applications),
        warnings=(*_open_doors(tree, applications), *warnings),
    )


def _proxied(tree: Mapping[str, Any]) -> str | None:
    """`host:port` of Ray's proxies, None where there are none."""
    if tree.get("proxy_location") == "Disabled":
        return None
    options = HTTPOptionsSchema().model_dump() | dict(section(tree, "http_options"))
    return f"{options['host']}:{options['port']}"


def _clashes(tree: Mapping[str, Any], applications: list[Checked]) -> Iterator[str]:
    """Ports that are asked for twice."""
    taken = {proxied.rpartition(":")[2]: "http_options"} if (proxied := _proxied(tree)) else {}
    for application in applications:
        if application.args and (listen := application.args.listen):
            port, where = str(listen.port), f"{application.where}.args.listen"
            if port in taken:
                yield f"{where}: port {port} is that of {taken[port]} as well; take another one"
            taken[port] = where


def _open_doors(tree: Mapping[str, Any], applications: list[Checked]) -> Iterator[str]:
    """Services that other machines can reach without a key."""
    proxied = _proxied(tree)
    for application in applications:
        if application.args is None or application.has_keys:
            continue
        listen = application.args.listen
        host = listen.host if listen else proxied and proxied.rpartition(":")[0]
        if host and not is_loopback(host):
            yield (
                f"{application.where}: other machines reach {host}, and the file gives no keys; "
                "unless CLIPRAY_READ_KEYS was in the environment of `ray start` on every node, "
                "everybody can search"
            )


def _range(values: list[float]) -> str:
    fewest, most = (f"{value:g}" for value in values)
    return fewest if fewest == most else f"{fewest}–{most}"
