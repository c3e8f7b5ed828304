"""The command line, derived from the configurations.

Every field of a command's configuration is an option; what a command does stands in its own
module, which is imported only when the command is used. Results go to stdout, progress and logs
to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done with rejects.
"""

import argparse
import logging
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from clipray import __version__
from clipray.commands import COMMANDS, Command
from clipray.config import Config, load_config
from clipray.errors import ClipRayError, plain

INTERRUPTED = 130
HELP = {"-h", "--help"}

log = logging.getLogger(__name__)


EPILOG = """\
the whole way:
  clipray embed --input PHOTOS --output EMB --model ViT-B-32 --pretrained laion2b_s34b_b79k
  clipray index build --embeddings EMB --index IDX
  clipray search --index IDX --text "a dog in the snow"
  clipray serve --index IDX

`clipray COMMAND --help` lists the options of a command.
exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done with rejects (listed)
"""
SECTIONS = "sections, set in the file or with -o section.key=value:"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _configure_logging()
    name, rest = _split(given)
    if name is None:
        return _no_command(given)
    try:
        return _run(name, rest)
    except ClipRayError as error:
        _say(str(plain(error)))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:  # the system's, a library's that nobody translated, or a bug
        log.debug("unexpected error", exc_info=True)
        told, code = _judge(error)
        _say(told)
        return code


def _judge(error: Exception) -> tuple[str, int]:
    """What to say of an error that is none of ours, and the exit code."""
    if isinstance(error, PydanticSerializationError) and "KeyboardInterrupt" in str(error):
        return "interrupted", INTERRUPTED  # pydantic makes a text of what is raised inside of it
    told = _told(error) if isinstance(error, OSError) else _unexpected(error)
    return told, ClipRayError.exit_code


def _told(error: OSError) -> str:
    """What the system says about a file, such as that the disk is full."""
    path = error.filename2 or error.filename
    return f"{path}: {error.strerror}" if path and error.strerror else _unexpected(error)


def _unexpected(error: Exception) -> str:
    told = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {told} (-v shows where)"


def _run(name: str, arguments: Sequence[str]) -> int:
    command = COMMANDS[name]
    kind, function = command.load()
    options = vars(_parser(name, command, kind).parse_args(arguments))
    file, overrides = options.pop("config"), options.pop("override")
    as_json = options.pop("json")
    if options.pop("verbose"):
        logging.getLogger("clipray").setLevel(logging.DEBUG)
    report = function(load_config(kind, file, overrides, options))
    sys.stdout.write((report.model_dump_json(indent=1) if as_json else report.summary()) + "\n")
    return report.exit_code


def _configure_logging() -> None:
    # open_clip warns on the root logger about what we do on purpose, such as random weights.
    # What it and the hub report before an error, the error's own line tells as well.
    logging.basicConfig(level=logging.CRITICAL, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.CRITICAL)
    logging.getLogger("clipray").setLevel(logging.WARNING)


def _split(given: Sequence[str]) -> tuple[str | None, list[str]]:
    for length in (2, 1):
        name = " ".join(takewhile(lambda word: not word.startswith("-"), given[:length]))
        if name in COMMANDS:
            rest = list(given[len(name.split()) :])
            asks_help = HELP & set(rest)  # even where something is missing
            return _by_option(name, rest), ["--help"] if asks_help else rest
    return None, list(given)


def _by_option(name: str, rest: Sequence[str]) -> str:
    """Another command of that name, where one of its options is given: `serve --check FILE`."""
    options = {option.partition("=")[0] for option in rest}
    return next((f"{name} {one}" for one in options if f"{name} {one}" in COMMANDS), name)


def _no_command(given: Sequence[str]) -> int:
    parser = _Parser(
        prog="clipray",
        description="Find images by text, text by images and images by images, on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipray {__version__}")
    first = given[0] if given else ""
    family = [name for name in COMMANDS if name.startswith(f"{first} ")]
    commands = parser.add_subparsers(metavar="COMMAND", prog="clipray")
    for name in family or COMMANDS:
        commands.add_parser(name, help=COMMANDS[name].help)
    if not given:
        parser.print_help(sys.stderr)
        return 2
    if family and given[1:] and HELP.issuperset(given[1:]):
        parser.print_help()
        return 0
    if family or not first.startswith("-"):
        parser.error(_unknown(" ".join(given[: 2 if family else 1]), family or list(COMMANDS)))
    parser.parse_args(given)
    return 2


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.8)
    told = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
    return f"'{name}' is no command; {told}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        _say(f"{message} (see {self.prog} --help)")
        sys.exit(2)


def _parser(name: str, command: Command, kind: type[Config]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"clipray {name.partition(' -')[0]}",
        description=f"{command.help}. {kind.__doc__ or ''}",
        argument_default=argparse.SUPPRESS,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("-c", "--config", type=Path, default=None, metavar="FILE", help="YAML file")
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="set one key, may be repeated",
    )
    parser.add_argument("--json", action="store_true", default=False, help="result as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", default=False, help="say more")
    for field_name in sorted(kind.model_fields, key=lambda name: _place(kind, name)):
        _add_option(parser, field_name, kind.model_fields[field_name])
    sections = [key for key in _keys(kind) if "." in key[0]]
    if sections:
        parser.epilog = "\n".join([SECTIONS, *(_told_key(*key) for key in sections)])
    return parser


def _place(kind: type[Config], name: str) -> tuple[bool, int]:
    """What must be given comes first, then what is the command's own, then what it shares."""
    owners = (
        place
        for place, base in enumerate(kind.__mro__)
        if name in vars(base).get("__annotations__", {})
    )
    return not kind.model_fields[name].is_required(), next(owners, 0)


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flags = [f"--{name.replace('_', '-')}"] + ([f"-{name}"] if len(name) == 1 else [])
    help_text = _help(field)
    inner = _inner_type(field.annotation)
    if _is_section(inner):
        return
    if inner is bool:
        parser.add_argument(
            *flags, action=argparse.BooleanOptionalAction, dest=name, help=help_text
        )
    elif typing.get_origin(inner) is tuple:
        parser.add_argument(*flags, action="append", dest=name, metavar="VALUE", help=help_text)
    elif typing.get_origin(inner) is typing.Literal:
        parser.add_argument(*flags, dest=name, choices=typing.get_args(inner), help=help_text)
    else:
        parser.add_argument(*flags, dest=name, metavar=_metavar(inner), help=help_text)


def _keys(kind: type[Config], section: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys of a configuration, those in sections as `section.key`."""
    for name, field in kind.model_fields.items():
        inner = _inner_type(field.annotation)
        if _is_section(inner):
            yield from _keys(inner, f"{section}{name}.")
        else:
            yield section + name, field


def _is_section(kind: Any) -> TypeGuard[type[Config]]:
    return isinstance(kind, type) and issubclass(kind, Config)


def _told_key(key: str, field: FieldInfo) -> str:
    words = f"{key}: {_help(field)}".replace("%%", "%")
    return textwrap.fill(words, 78, initial_indent="  ", subsequent_indent=" " * 6)


class _HelpFormatter(argparse.HelpFormatter):
    """Leaves the lines of the epilog as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(SECTIONS):
            return text
        return super()._fill_text(text, width, indent)


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required():
        return f"{text} (required)"
    shown = field.get_default(call_default_factory=True)
    shown = ", ".join(map(str, shown)) or None if isinstance(shown, tuple) else shown
    return text if shown is None else f"{text} (default: {shown})"


def _inner_type(annotation: Any) -> Any:
    if typing.get_origin(annotation) is typing.Annotated:
        return typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return inner[0]
    return annotation


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _say(message: str) -> None:
    sys.stderr.write(f"clipray: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
