"""Ray's schema of a Serve file, read strictly.

Ray lets keys that it does not know pass in silence, and takes some sections as any mapping. What
an application makes of its `args` is not known here.
"""

import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve._private.utils import validate_route_prefix
from ray.serve.schema import ServeDeploySchema

from clipray import config
from clipray.config import models_in

MERGE = "tag:yaml.org,2002:merge"


def faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """All that is wrong in a Serve file, `args` left out, as `place: what`."""
    yield from _strict(ServeDeploySchema, tree, "")
    yield from _invalid(ServeDeploySchema, tree, "")
    for number, application in enumerate(sections(tree, "applications")):
        try:
            validate_route_prefix(application.get("route_prefix"))
        except (ValueError, AttributeError) as error:
            yield f"applications.{number}.route_prefix: {error}"


def section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; an empty one where it is none."""
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def sections(tree: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings in a list under a key; none where it is no list."""
    listed = tree.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def repeated_keys(text: str) -> Iterator[str]:
    """Keys that a mapping has twice, of which YAML keeps the last in silence."""
    root = yaml.compose(text, yaml.SafeLoader)
    nodes, seen = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # aliases are the node itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from _twice(node)
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def unknown(key: Any, known: Any, where: str) -> str:
    """What to say of a key that is none of those known."""
    near = get_close_matches(str(key), list(known), n=1)
    return f"{where}: unknown key '{key}'" + (f", did you mean '{near[0]}'?" if near else "")


def _twice(node: yaml.MappingNode) -> Iterator[str]:
    keys = [key for key, _ in node.value if key.tag != MERGE]
    for place, key in enumerate(keys):
        if key.value in [earlier.value for earlier in keys[:place]]:
            yield f"line {key.start_mark.line + 1}: '{key.value}' stands twice in one mapping"


def _strict(kind: type[BaseModel], tree: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in tree.items():
        path = f"{where}.{key}" if where else str(key)
        field = kind.model_fields.get(str(key))
        if field is None:
            yield unknown(key, kind.model_fields, where or "the file")
        elif key == "runtime_env" and isinstance(value, dict):
            yield from _runtime_env(value, path)
        else:
            yield from _inside(field.annotation, value, path)


def _inside(annotation: Any, value: Any, path: str) -> Iterator[str]:
    kind = next(models_in(annotation), None)
    if kind is None:
        return
    listed = value if isinstance(value, list) else ()
    places = [(f"{path}.{number}", one) for number, one in enumerate(listed)] or [(path, value)]
    for place, one in places:
        if isinstance(one, dict):
            yield from _strict(kind, one, place)
            if _is_lax(annotation):
                yield from _invalid(kind, one, place)


def _is_lax(annotation: Any) -> bool:
    """Whether any mapping would do, as in `dict | Model`."""
    is_mapping = annotation is dict or get_origin(annotation) is dict
    return is_mapping or any(_is_lax(argument) for argument in get_args(annotation))


def _invalid(kind: type[BaseModel], tree: Mapping[str, Any], where: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.model_validate(dict(tree))
    except ValidationError as error:
        for told in config.problems(error, kind):
            if not told.startswith("unknown key"):  # told before, for all kinds
                yield f"{where}: {told}" if where else told


def _runtime_env(tree: Mapping[str, Any], where: str) -> Iterator[str]:
    known = {key: value for key, value in tree.items() if key in RuntimeEnv.known_fields}
    for key in tree.keys() - known.keys():
        yield unknown(key, RuntimeEnv.known_fields, where)
    try:
        RuntimeEnv(**{key: value for key, value in known.items() if key not in _REMOTE})
    except (TypeError, ValueError) as error:
        yield f"{where}: {error}"


_REMOTE = ("working_dir", "py_modules")  # Ray's schema looks at these
