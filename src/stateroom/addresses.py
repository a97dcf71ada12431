"""What an IP address leads to: this machine alone, a private network, or the public internet.

The one place for these rules. Resolves no names and sends nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import Final

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_OF_CLOUDS: Final = frozenset({ipaddress.IPv4Address("168.63.129.16")})
"""Public by their number, and yet they answer a machine about itself: Azure's host."""
_ANY_PORT: Final = 9


def is_loopback(host: str) -> bool:
    """Whether a server that listens there is reached by this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether it is an address, and not a name."""
    try:
        ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether it is an address of the public internet; not so: private, loopback, link-local, metadata, reserved."""
    try:
        parsed = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = _inside(parsed)
        if inner is None:
            return parsed in _UNICAST and parsed.is_global
        parsed = inner
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved and parsed not in _OF_CLOUDS


def is_own(address: str) -> bool:
    """Whether it leads to this machine itself, whatever kind of address it is. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((address, _ANY_PORT))  # of a datagram: the system looks up the way, and no more
        return bool(asking.getsockname()[0] == asking.getpeername()[0])
    return False


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4 or NAT64."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
