"""Addresses on the web taken apart, hosts in one form, what a list of hosts names, and which IP addresses are public."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's registries of special addresses (RFC 6890), written out, for Python's own list differs from version to version.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a provider's translation
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's own services, at an address that looks public
        "169.254.0.0/16",  # link-local; clouds answer there with a machine's secrets
        "172.16.0.0/12",  # private
        "192.0.0.0/24",
        "192.0.2.0/24",  # for documentation
        "192.88.99.0/24",  # 6to4's relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # for benchmarks
        "198.51.100.0/24",  # for documentation
        "203.0.113.0/24",  # for documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",  # for documentation
        "2002::/16",  # 6to4, which holds an IPv4 address
        "3fff::/20",  # for documentation
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out: loopback, private, link-local and multicast addresses lie outside."""
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: the last 32 bits are the IPv4 address that is reached (RFC 6052)."""


def parse_address(text: str) -> Address | None:
    """An address written as one; None for a name. One of IPv4 that is written as IPv6 (::ffff:a.b.c.d) becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def is_public(address: Address) -> bool:
    """Whether it is an address of the internet: not private, loopback, link-local, multicast, reserved or unspecified, and no
    other way of writing such a one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    return not any(address in network for network in _NOT_PUBLIC)


def normal_host(text: str) -> str:
    """A host's name in lower-case ASCII without the last dot, or its address in the usual form. Raises ValueError, in words."""
    text = urllib.parse.unquote(text)
    if not text:
        raise ValueError("no host given")
    if ":" in text:
        if (address := parse_address(text)) is None:
            raise ValueError("its host is not an IPv6 address")
        return str(address)
    try:
        name = text.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError("its host has an empty part or one of more than 63 characters") from None
    name = name.removesuffix(".")
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise ValueError("its host is not a name that a host can have")
    address = parse_address(name)
    return name if address is None else str(address)


@dataclass(frozen=True)
class HostPattern:
    """One entry of a list of hosts."""

    name: str = ""
    """In the form of `normal_host`; of a wildcard what follows the dot."""
    wildcard: bool = False
    port: int | None = None
    """None: any."""
    network: Network | None = None

    def names(self, host: str, port: int) -> bool:
        """Whether a URL's host and port are meant."""
        if self.network is not None or self.port not in (None, port):
            return False
        if self.wildcard:
            return host.endswith(f".{self.name}") and parse_address(host) is None
        return host == self.name

    def names_address(self, address: Address) -> bool:
        """Whether this very address is meant: it is written out, or the name is localhost, which stands for loopback."""
        if self.network is not None:
            return address in self.network
        if self.name == "localhost":
            return address.is_loopback
        return parse_address(self.name) == address


@cache
def host_pattern(text: str, networks: bool = False) -> HostPattern:
    """`example.org`, `*.example.org`, `example.org:8080`, `10.0.0.7`, `[::1]:8080`; with `networks` also `10.0.0.0/8`.

    Raises ValueError, in words, for what is none.
    """
    if networks and "/" in text:
        try:
            return HostPattern(network=ipaddress.ip_network(text))
        except ValueError:
            raise ValueError("it is not a network, such as 10.0.0.0/8") from None
    if parse_address(text) is not None:
        return HostPattern(normal_host(text))
    if (found := re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:/@?#]+))(?::([0-9]{1,5}))?", text)) is None:
        raise ValueError("it is not a host, such as example.org, *.example.org, example.org:8080 or [::1]:8080")
    address, name, port = found.groups()
    if address and parse_address(address) is None:
        raise ValueError("only an IPv6 address stands in brackets")
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError("its port is not between 1 and 65535")
    if name and name.startswith("*."):
        rest = normal_host(name[2:])
        if rest.rpartition(".")[2].isdigit():
            raise ValueError("a wildcard stands before names, not before addresses")
        return HostPattern(rest, True, int(port) if port else None)
    return HostPattern(normal_host(address or name), False, int(port) if port else None)


SAFE = "%/:=&?~#+!$,;'@()*[]"
"""Left alone in an address; a browser would write blanks and letters beyond ASCII as %xx, too."""


@dataclass(frozen=True)
class Target:
    """One address, taken apart."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query."""
    credentials: str | None = None
    """user:password."""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def netloc(self) -> str:
        host = f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"

    @staticmethod
    def of(url: str) -> Target:
        """Raises ValueError, in words that repeat nothing of the address."""
        try:
            split = urllib.parse.urlsplit(urllib.parse.quote(url, safe=SAFE))
            raw, user, password = split.hostname or "", split.username, split.password
        except ValueError:  # whose text may hold the address
            raise ValueError("Invalid IPv6 URL" if "[" in url or "]" in url else "it is not an address") from None
        try:
            port = split.port
        except ValueError:
            raise ValueError("its port is not a number between 0 and 65535") from None
        host = normal_host(raw)
        path = (split.path or "/") + (f"?{split.query}" if split.query else "")
        credentials = None if user is None else f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
        default = 443 if split.scheme == "https" else 80
        return Target(split.scheme, host, default if port is None else port, path, credentials)


def shown(url: str) -> str:
    """An address for messages: cut where it is long, and without a user's name and password."""
    rest = url.split("://", 1)[-1].lstrip("/")
    begin = url[: len(url) - len(rest)]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    elif "@" in rest and ":" in authority and "[" not in authority and not authority.rpartition(":")[2].isdigit():
        rest = rest[rest.rindex("@") + 1 :]  # a password may hold what ends a host
    whole = begin + rest
    return whole if len(whole) <= 200 else f"{whole[:60]}..."
