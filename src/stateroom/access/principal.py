"""Who is asking."""

from __future__ import annotations

from typing import Final

import msgspec

SCOPES: Final = ("read", "write", "admin")
"""read: look things up. write: create, change, delete and run. admin: also what the whole server is about."""


class Principal(msgspec.Struct, frozen=True):
    """The project on whose rows a request may work, and what it may do there."""

    project: str = "default"
    key_id: str = ""
    """The access key that was shown; empty on a loopback server without keys."""
    scopes: frozenset[str] = frozenset(SCOPES)
