"""One application of a Serve file: its code, its arguments, and what it overrides."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.serve import Application

from clipray import uri
from clipray.config import problems
from clipray.errors import ConfigError
from clipray.serve.args import ServeArgs
from clipray.serve.keys import KeyOptions, Keys
from clipray.serve.outline import ApplicationOutline, DeploymentOutline, deployments_of
from clipray.serve.schema import section, sections

GROUP = "ShardGroup-"
SECTIONS = {"Search": "search", "Encoder": "encoder"}  # of the arguments; groups have `shards`


class Checked:
    """An application as the file has it; what is no mapping is told by the schema.

    Attributes:
        where: its place in the file.
        args: its arguments, where it is one of ours and they are valid.
    """

    def __init__(self, number: int, tree: Mapping[str, Any]) -> None:
        self.where = f"applications.{number}"
        self.args: ServeArgs | None = None
        self._tree = tree
        self._problems = [f"{self.where}.{problem}" for problem in self._read()]
        self._overrides = sections(tree, "deployments")

    def problems(self) -> Iterator[str]:
        """What is wrong with its code, arguments, keys and overrides."""
        yield from self._problems
        if self.args is None:
            return
        try:
            self._keys()
        except ConfigError as error:
            yield f"{self.where}.runtime_env.env_vars: {error}"
        there = deployments_of(self.args)
        for number, options in enumerate(self._overrides):
            for problem in self._override_problems(options, there):
                yield f"{self.where}.deployments.{number}: {problem}"

    def warnings(self) -> Iterator[str]:
        """What works, but hardly as it was meant."""
        if self.args is None:
            return
        for given in self.args.index:
            place = uri.split_name(given)[1]
            if "://" not in place and not Path(place).is_absolute():
                yield f"{self.where}.args.index: {place} is looked up where Ray was started"
        for options in self._overrides:
            if options.get("ray_actor_options") is not None:
                yield (
                    f"{self.where}.deployments: ray_actor_options of {options.get('name')} replace "
                    "all that clipray sets, its fast flags too; args have cpus and gpus"
                )

    def outline(self, proxied: str | None) -> ApplicationOutline:
        """What it would start."""
        prefix = self._tree.get("route_prefix", "/")
        listen = self.args.listen if self.args else None
        address = listen.url if listen else proxied and f"http://{proxied}{prefix}"
        there = deployments_of(self.args) if self.args else {}
        for options in self._overrides:
            if options.get("name") in there:
                there[options["name"]] = there[options["name"]].overridden(options)
        return ApplicationOutline(
            name=self._tree.get("name", "default"),
            address=address or "no HTTP, handles only",
            deployments=tuple(there.values()),
        )

    @property
    def has_keys(self) -> bool:
        """Whether the file says who may search."""
        return self.args is not None and bool(self.args.read_keys or self._keys().read)

    def _read(self) -> Iterator[str]:
        """Fill `args`; yields what is wrong."""
        path, given = self._tree.get("import_path"), section(self._tree, "args")
        comes_along = {"working_dir", "py_modules"} & section(self._tree, "runtime_env").keys()
        if not isinstance(path, str) or comes_along:
            return
        try:
            made = imported(path)
        except Exception as error:  # noqa: BLE001  a module may raise anything
            yield f"import_path: {path} cannot be imported here ({type(error).__name__}: {error})"
            return
        if not callable(made) or isinstance(made, Application):
            if given:
                yield f"args: {path} is no builder, so it takes none"
            return
        yield from self._validated(made, given)

    def _validated(self, builder: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[str]:
        kind = argument_type(builder)
        if kind is None:
            return
        try:
            args = kind.model_validate(given)
        except ValidationError as error:
            yield from (f"args: {problem}" for problem in problems(error, kind))
            return
        self.args = args if isinstance(args, ServeArgs) else None

    def _keys(self) -> Keys:
        environment = section(section(self._tree, "runtime_env"), "env_vars")
        return Keys.open(KeyOptions(), {key: str(value) for key, value in environment.items()})

    def _override_problems(
        self, options: Mapping[str, Any], there: Mapping[str, DeploymentOutline]
    ) -> Iterator[str]:
        name = options.get("name")
        if not isinstance(name, str):
            return
        if name not in there and not _is_of_a_node(name):
            near = get_close_matches(name, there, n=1)
            hint = f", did you mean '{near[0]}'?" if near else f"; there are {', '.join(there)}"
            yield f"the application has no deployment '{name}'{hint}"
            return
        scaled = options.get("autoscaling_config") or options.get("num_replicas") == "auto"
        ours = SECTIONS.get(name, "shards")
        if scaled and ours != "search" and not getattr(self.args, ours).is_scaled:
            yield (
                f"'{name}' is called past Ray, which would see no load; scale it with "
                f"{ours}.max_replicas in args"
            )


def imported(path: str) -> Any:
    """What an import path names, as Ray reads it: `module:name`, or `module.name`."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def argument_type(builder: Callable[..., Any]) -> type[BaseModel] | None:
    """The pydantic model that Ray makes of the arguments of a builder."""
    (kind, *_) = [one.annotation for one in inspect.signature(builder).parameters.values()] or [
        None
    ]
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _is_of_a_node(name: str) -> bool:
    """Groups of shards that stay on nodes are called after these, which only the index tells."""
    return name.startswith(GROUP) and not name.removeprefix(GROUP).isdecimal()
