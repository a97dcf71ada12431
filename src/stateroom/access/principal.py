"""Who is asking."""

from __future__ import annotations

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """The project on whose rows a request may work."""

    project: str = "default"
