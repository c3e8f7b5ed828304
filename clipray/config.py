"""The one kind of configuration: frozen models that refuse unknown keys.

A command's configuration comes from three places, later ones win: a YAML file, `section.key=value`
overrides, command-line options. This module does not know which commands exist.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from clipray.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20

Tree = dict[str, Any]

_BRIEF = Repr()  # bounded: a few lines of YAML aliases can stand for more text than memory holds
_BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlevel = 80, 80, 2


class Config(BaseModel):
    """Base of every configuration and of every JSON file that we write."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    kind: type[ConfigT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Read a configuration.

    Args:
        kind: the model to fill.
        file: a YAML file with a mapping at its top.
        overrides: `section.key=value`, the value in YAML.
        options: top-level keys that win over both.

    Raises:
        ConfigError: naming the file or option, the key, what was found and what was expected.
    """
    tree = read_yaml(file) if file else {}
    for override in overrides:
        _set(tree, *_parse_override(override))
    tree.update(options or {})
    return parse(kind, tree, where=str(file) if file else "options")


def parse(kind: type[ConfigT], tree: Mapping[str, Any], where: str) -> ConfigT:
    """Validate `tree` into `kind`; `where` opens the error message."""
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(problems(error, kind))}") from None


def problems(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Each error of a validation, with the key that was meant where one is near."""
    known = list(keys(kind))
    return [_tell(detail, known) for detail in error.errors()]


def read_yaml(file: Path) -> Tree:
    """Read a YAML mapping of at most 1 MiB."""
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); expected a YAML file") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_CONFIG_BYTES} bytes, no configuration file")
    tree = _yaml_value(text, str(file))
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected a mapping (key: value), found {type(tree).__name__}")
    return tree


def to_yaml(config: BaseModel) -> str:
    """Write a configuration as YAML that `load_config` reads back."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _parse_override(override: str) -> tuple[list[str], Any]:
    path, sign, text = override.partition("=")
    if not sign or not path.strip():
        raise ConfigError(f"-o {override}: expected section.key=value")
    return path.strip().split("."), _yaml_value(text, f"-o {override}")


def _yaml_value(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-99-99, 0x_
        problem = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML ({problem})") from None


def _set(tree: Tree, path: list[str], value: Any) -> None:
    *sections, key = path
    where = f"-o {'.'.join(path)}"
    place: Any = tree
    for section in sections:
        place = place[_number(place, section, where)] if _is_list(place) else _inner(place, section)
        if not isinstance(place, dict | list):
            raise ConfigError(f"{where}: {section} is a value, not a section")
    place[_number(place, key, where) if _is_list(place) else key] = value


def _is_list(place: Any) -> TypeGuard[list[Any]]:
    return isinstance(place, list)


def _inner(place: Tree, section: str) -> Any:
    """A section of a mapping; one that is missing or empty is begun."""
    if place.get(section) is None:
        place[section] = {}
    return place[section]


def _number(place: list[Any], given: str, where: str) -> int:
    """A place in a list, counted from 0."""
    if not given.isdecimal() or int(given) >= len(place):
        raise ConfigError(
            f"{where}: found '{given}', expected a place in a list of {len(place)}, counted from 0"
        )
    return int(given)


def keys(kind: type[BaseModel], section: str = "") -> Iterator[str]:
    """All keys, those in sections and in lists of sections as `section.key`."""
    for name, field in kind.model_fields.items():
        yield section + name
        for inner in models_in(field.annotation):
            yield from keys(inner, f"{section}{name}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Those in an annotation, such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _tell(detail: ErrorDetails, known: Sequence[str]) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    found = _BRIEF.repr(detail["input"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{path}'{near_key(detail['loc'], known)}"
    if detail["type"] == "missing":
        return f"'{path}' is missing"
    if detail["type"] == "tuple_type" and isinstance(detail["input"], str):
        return f"{path}: expected a list such as [{found}] (found {found})"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (found {found})" if path else message


def near_key(place: Sequence[int | str], known: Sequence[str]) -> str:
    """The nearest key: of the same section by its name, else with the section it belongs to."""
    *sections, name = (str(part) for part in place if isinstance(part, str))
    section = "".join(f"{part}." for part in sections)
    here = [key.removeprefix(section) for key in known if key.startswith(section)]
    beside = [key for key in here if "." not in key]
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    if near := get_close_matches(name, beside, n=1):
        return f", did you mean '{near[0]}'?"
    near = get_close_matches(name, elsewhere, n=1, cutoff=0.8)  # nearer: many are searched
    return f", did you mean '{elsewhere[near[0]]}'?" if near else ""
