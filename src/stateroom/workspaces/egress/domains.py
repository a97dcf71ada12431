"""Names of hosts: how they are read, and which of them an entry of an allow-list means. Pure; resolves nothing.

`example.com` means that host alone, `*.example.com` every host below it and not itself, an address means itself. An
entry of a policy without a port means the ports 80 and 443, one with a port that port alone.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

HOST_MAX: Final = 253
WEB_PORTS: Final = frozenset({80, 443})
"""What an entry without a port means."""

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER: Final = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
"""A last label like this makes some readers see an address in the name: 127.1, 0x7f000001."""
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}\Z")


class Target(msgspec.Struct, frozen=True):
    """Where a connection is to go."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in a URL, with the port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def host_header(self, *, tls: bool) -> str:
        """As it stands in a Host header: without the port that the scheme implies."""
        text = self.authority
        return text.rpartition(":")[0] if self.port == (443 if tls else 80) else text


class Entry(msgspec.Struct, frozen=True):
    """One entry of a list of domains."""

    host: str
    below: bool = False
    """The hosts below it are meant, not itself; below nothing: all there are."""
    port: int | None = None

    def means(self, host: str) -> bool:
        """Whether the host is meant; `host` as :func:`read_host` gives it."""
        if not self.below:
            return host == self.host
        return not self.host or host.endswith(f".{self.host}")

    def means_port(self, port: int) -> bool:
        return port in WEB_PORTS if self.port is None else port == self.port

    def covers(self, other: Entry) -> bool:
        """Whether every host that the other means is meant by this one too. A bound without a port bounds no port."""
        if self.port is not None and self.port != other.port:
            return False
        if not other.below:
            return self.means(other.host)
        return self.below and (not self.host or other.host == self.host or other.host.endswith(f".{self.host}"))

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        name = ("*." if self.host else "*") + host if self.below else host
        return name if self.port is None else f"{name}:{self.port}"


def read_host(text: str) -> str:
    """A host in the one form in which hosts are compared. Raises ValueError for what is none, with the reason."""
    if not text.isascii():
        raise ValueError("it is not ASCII: write an international name as `xn--…`")
    if text.startswith("[") and text.endswith("]"):
        return _address_6(text[1:-1])
    host = text.lower().removesuffix(".")
    if not host:
        raise ValueError("it names no host")
    if len(host) > HOST_MAX:
        raise ValueError(f"it is longer than {HOST_MAX} characters")
    labels = host.split(".")
    if _NUMBER.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError("it looks like an address and is none") from None
    if not all(_LABEL.match(label) for label in labels):
        raise ValueError("it is not the name of a host")
    return host


def read_authority(text: str, default_port: int | None) -> Target:
    """`host:port`, as it stands in a URL or a Host header. Raises ValueError."""
    host, port = _split(text)
    if port is None:
        if default_port is None:
            raise ValueError("it names no port")
        return Target(read_host(host), default_port)
    return Target(read_host(host), port)


def read_entry(text: str) -> Entry:
    """An entry of an allow-list. Raises ValueError with the reason."""
    if "/" in text:
        raise ValueError("name the host alone, without a scheme or a path")
    if text.count(":") > 1 and not text.startswith("["):
        return Entry(_address_6(text))
    name, port = _split(text)
    if name == "*":
        return Entry("", True, port)
    if name.startswith("*."):
        host = read_host(name[2:])
        if ":" in host or host.replace(".", "").isdigit():
            raise ValueError("nothing is below an address")
        return Entry(host, True, port)
    if "*" in name:
        raise ValueError("a `*` stands only at the beginning, as in `*.example.com`")
    return Entry(read_host(name), False, port)


def _split(text: str) -> tuple[str, int | None]:
    """Host and port. An address of version 6 stands in brackets."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        return text, None
    if not _PORT.match(port) or int(port) > 65535:
        raise ValueError("its port is not a number from 1 to 65535")
    return host, int(port)


def _address_6(text: str) -> str:
    if "%" in text:
        raise ValueError("an address with a zone leads to a network of this machine")
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError("it is not an IPv6 address") from None
