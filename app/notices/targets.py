"""Where a webhook may go: to the public internet over HTTPS, and nowhere else. Pure.

A tenant names the URL, the service calls it from inside its own network. What keeps the tenant out of that
network is here: what a URL may look like, and which addresses are public.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

IPAddress = IPv4Address | IPv6Address

MAX_URL_CHARACTERS: Final = 2048
"""Length of a webhook's URL, at most."""
HTTPS_PORT: Final = 443

# IANA's special-purpose registries (RFC 6890 and its updates), multicast and the reserved class E. Written
# out because what `ipaddress` calls global differs between releases of Python.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host: numbered as public, but it answers its own machines
        "169.254.0.0/16",  # link-local, and the clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# All that has been given out as global unicast; loopback, unique local, link-local, site-local, multicast,
# IPv4-compatible and the local-use NAT64 prefix (RFC 8215) lie outside.
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
# Ways to write an IPv4 address as IPv6 that a network of today uses: the kernel's own, and NAT64 (RFC 6052),
# through which IPv6-only subnets reach IPv4. As public as what they carry. Every other way is obsolete.
_CARRIES_4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
# The interface identifier of ISATAP (RFC 5214), its u bit aside.
_ISATAP, _U_BIT = 0x5EFE, 1 << 25

_CHARACTERS = re.compile(r"[!-~]*")  # printable ASCII
_URL = re.compile(r"https://([^/?]*)(.*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# What the WHATWG URL standard calls a host that ends in a number: C libraries read it as an IPv4 address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Target(NamedTuple):
    """A URL taken apart.

    Attributes:
        host: as it is looked up and as its certificate names it; lower case, an IPv6 address without its
            brackets.
        address: the host, where it is an address.
        port: 443, or 1024 to 65535.
        path: with the query; begins with ``/``.
    """

    host: str
    address: IPAddress | None
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS_PORT else f"{host}:{self.port}"


def public_address(ip: IPAddress) -> bool:
    """Whether an address is one of the public internet, and nothing else.

    An IPv6 address that carries an IPv4 address is public only if that one is; of the obsolete forms
    (IPv4-compatible, 6to4, Teredo, ISATAP) none is. A NAT64 prefix that a network chose for itself out of its
    public addresses cannot be told: nobody else's packets get to it, but the service's own might.
    """
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_4)
    if any(ip in network for network in _CARRIES_4):
        return public_address(IPv4Address(int(ip) & 0xFFFFFFFF))
    isatap = (int(ip) >> 32) & 0xFFFFFFFF & ~_U_BIT == _ISATAP
    return ip in _GLOBAL_UNICAST_6 and not isatap and not any(ip in network for network in _NOT_PUBLIC_6)


def parse_target(url: str, is_allowed: Callable[[IPAddress], bool] = public_address) -> Target:
    """Take the URL of a webhook apart.

    The grammar is narrower than that of a URL, so that no other parser can read another host out of it.

    Raises:
        ValueError: why not, in words that go after "the URL" and do not repeat it.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"has more than {MAX_URL_CHARACTERS} characters")
    if not _CHARACTERS.fullmatch(url) or "\\" in url:
        raise ValueError("has a space, a backslash or a character outside ASCII")
    if "#" in url:
        raise ValueError("has a fragment, which no server gets to see")
    if not (parts := _URL.fullmatch(url)):
        raise ValueError("is not an https:// URL")
    if "@" in parts[1]:
        raise ValueError("holds a user name or password")
    if not (authority := _AUTHORITY.fullmatch(parts[1])):
        raise ValueError("has no host, or no number for a port")
    port = int(authority[2] or HTTPS_PORT)
    # Below 1024 are other protocols' well-known ports; above it receivers run beside something else.
    if port != HTTPS_PORT and not 1024 <= port <= 65535:
        raise ValueError("has a port that is neither 443 nor one from 1024 to 65535")
    host = authority[1].lower()
    address = _address(host)
    if address and not is_allowed(address):
        raise ValueError("leads to an address that is not public")
    path = parts[2] if parts[2].startswith("/") else f"/{parts[2]}"
    return Target(str(address) if address else host, address, port, path)


def check_webhook(url: str) -> str:
    """The URL as it is, if it may be a webhook's. A name is looked up only when something is sent.

    Raises:
        ValueError: why it may not.
    """
    try:
        parse_target(url)
    except ValueError as error:
        raise ValueError(f"the webhook's URL {error}") from None
    return url


def _address(host: str) -> IPAddress | None:
    """The host as an address; None where it is a name."""
    if host.startswith("["):
        try:
            return IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("has an IPv6 address that is none") from None
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return IPv4Address(host)
        except ValueError:
            raise ValueError("has an IPv4 address that is not written as four decimal numbers") from None
    # A name of one label would be looked up among the names of the service's own network.
    if len(host) > 253 or len(labels) < 2 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("has a host that is no whole domain name (an international one is written xn--…)")
    return None
