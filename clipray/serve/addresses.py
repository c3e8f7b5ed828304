"""Which addresses are this machine's own, and which are anybody's on the internet.

The tables are written out: what `ipaddress` calls global has changed between releases of Python,
and holds multicast and the forms of IPv6 that carry an IPv4 address.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(network)  # protocols and Teredo, documentation, 6to4, documentation
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_HOLD_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))  # mapped, NAT64
_HOST_AND_PORT = re.compile(r"(?:\[([^]]*)]|([^:]*))(?::\d*)?")


def is_public(address: Address) -> bool:
    """Whether an address is one host's on the internet.

    An IPv4 address inside of IPv6 counts as itself where the rest says nothing else (mapped,
    NAT64); the tunnels (6to4, Teredo) and NAT64 of a site's own are never public.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    if any(address in network for network in _HOLD_IPV4):
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def parse(host: str) -> Address | None:
    """The address that a host is, None where it is a name; only the canonical forms count."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a host, as given to listen on or found in a header, is this machine alone."""
    address = parse(host)
    return address.is_loopback if address else host.lower().rstrip(".") == "localhost"


@lru_cache(256)
def host_of(header: bytes) -> str:
    """Lower-case host of a `Host` header or of `host:port`, without port and brackets."""
    found = _HOST_AND_PORT.fullmatch(header.decode("latin-1"))
    host = (found[1] or found[2] or "") if found else ""
    return host.lower().rstrip(".")
