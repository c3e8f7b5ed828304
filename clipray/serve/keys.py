"""Bearer keys of the service: some let read, others let administer too.

Only digests are kept, so a copy of `Keys` that travels to a replica or into a log gives none away.
Which paths need what is not known here.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from clipray.config import Config
from clipray.errors import AccessError, ConfigError
from clipray.serve.refusal import Refusal

log = logging.getLogger(__name__)

Need = Literal["nothing", "read", "admin"]

MIN_LENGTH = 16
MAX_FILE_BYTES = 1 << 20
READ_VARIABLE, ADMIN_VARIABLE = "CLIPRAY_READ_KEYS", "CLIPRAY_ADMIN_KEYS"

_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_MISSING = Refusal(
    401,
    AccessError.__name__,
    "no key given; send the header 'Authorization: Bearer KEY'",
    _CHALLENGE,
)
_WRONG = Refusal(401, AccessError.__name__, "the key given is none of this service's", _CHALLENGE)
_NOT_ENOUGH = Refusal(
    403, AccessError.__name__, "the key given lets read only; this needs an admin key"
)
_NO_ADMIN = Refusal(
    403,
    AccessError.__name__,
    "no admin key is configured, so only a service that listens on loopback takes this; set "
    f"{ADMIN_VARIABLE} or admin_keys when starting it",
)


class KeyOptions(Config):
    """Where the keys of a service are."""

    read_keys: Path | None = Field(
        None,
        description="file of keys that let search, one a line; also CLIPRAY_READ_KEYS, separated "
        "by commas; with none, everybody may",
    )
    admin_keys: Path | None = Field(
        None,
        description="file of keys that let administer as well, one a line; also "
        "CLIPRAY_ADMIN_KEYS, separated by commas",
    )


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of the keys in use; several of a kind, so that one can be replaced by another."""

    read: tuple[bytes, ...] = field(default=(), repr=False)
    admin: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, options: KeyOptions, environment: Mapping[str, str] = os.environ) -> Self:
        """The keys of the files and of the environment together.

        Raises:
            ConfigError: a file that cannot be read, or a key that is too short, holds a blank or
                is both of one kind and of the other.
        """
        read = _listed(environment, READ_VARIABLE) | _filed(options.read_keys, "read_keys")
        admin = _listed(environment, ADMIN_VARIABLE) | _filed(options.admin_keys, "admin_keys")
        return cls.of(read, admin)

    @classmethod
    def of(cls, read: Iterable[str] = (), admin: Iterable[str] = ()) -> Self:
        """From the keys themselves."""
        digests = _digests(read, "read key"), _digests(admin, "admin key")
        if set(digests[0]) & set(digests[1]):
            raise ConfigError("a key is both a read key and an admin key; readers must not hold it")
        return cls(*digests)

    def refusal(self, need: Need, authorization: bytes | None, *, local: bool) -> Refusal | None:
        """Why a request may not do what it needs to; None when it may.

        Args:
            need: what it asks for.
            authorization: its header of that name.
            local: whether the service listens on loopback alone.
        """
        if need == "admin" and not self.admin:
            if not local:
                return _NO_ADMIN
            need = "read"
        if need == "nothing" or (need == "read" and not self.read):
            return None
        return self._checked(need, authorization)

    def _checked(self, need: Need, authorization: bytes | None) -> Refusal | None:
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            return _MISSING
        digest = sha256(key.strip()).digest()
        reads, administers = _holds(self.read, digest), _holds(self.admin, digest)
        if administers or (reads and need == "read"):
            return None
        return _NOT_ENOUGH if reads else _WRONG


def _holds(digests: tuple[bytes, ...], digest: bytes) -> bool:
    found = False
    for one in digests:  # all of them: the time taken must not tell which one is near
        found |= compare_digest(one, digest)
    return found


def _listed(environment: Mapping[str, str], variable: str) -> set[str]:
    found = {key.strip() for key in environment.get(variable, "").split(",")} - {""}
    for key in found:
        _require_strong(key, variable)
    return found


def _filed(file: Path | None, option: str) -> set[str]:
    if file is None:
        return set()
    keys = set()
    for number, line in enumerate(_lines(file, option), 1):
        key = line.strip()
        if key and not key.startswith("#"):
            _require_strong(key, f"{option}: {file} line {number}")
            keys.add(key)
    if not keys:
        raise ConfigError(f"{option}: {file} holds no key; expected one a line")
    return keys


def _lines(file: Path, option: str) -> list[str]:
    try:
        if file.stat().st_mode & 0o077:
            log.warning("%s: other users can read %s; chmod 600 it", option, file)
        with file.open(encoding="ascii") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: {file} cannot be read ({error})") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{option}: {file} is larger than {MAX_FILE_BYTES} bytes; keys are few")
    return text.splitlines()


def _digests(keys: Iterable[str], where: str) -> tuple[bytes, ...]:
    for key in keys:
        _require_strong(key, where)
    return tuple(sorted(sha256(key.encode()).digest() for key in keys))


def _require_strong(key: str, where: str) -> None:
    if len(key) < MIN_LENGTH:
        raise ConfigError(
            f"{where}: a key of {len(key)} characters, expected at least {MIN_LENGTH}; "
            "`openssl rand -hex 32` makes one"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where}: a key holds a blank or a sign that is not ASCII")
