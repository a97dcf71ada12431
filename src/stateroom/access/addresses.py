"""Which addresses only this machine reaches. Says nothing about URLs of users: those are for the outbound guard."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a server that listens there is reached by this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
