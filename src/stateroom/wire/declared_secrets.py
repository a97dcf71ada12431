"""Secrets in tool declarations: taken out before anything is kept, put back for who carries the calls out.

In the place of what was taken out a declaration has the field `sealed`, which is never shown. Sealing is another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from stateroom.wire import mcp

SEALED: Final = "sealed"
"""Field of a declaration that holds its secrets, sealed."""

_HOLDERS: Final = frozenset({"mcp", "shell", "code_interpreter", "apply_patch"})
"""Types of tools that may have any."""
_PLACES: Final = ("environment", "container")
"""Fields of declarations in which a container is described."""


def seal(tools: list[dict[str, Any]], sealer: Callable[[str], str]) -> list[dict[str, Any]]:
    """The declarations as they may be kept."""
    if not any(tool.get("type") in _HOLDERS for tool in tools):
        return tools
    return [_sealed(tool, sealer) for tool in tools]


def open_sealed(tools: list[dict[str, Any]], opener: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """The declarations as they came. What was sealed with a key that is gone stays without its secrets."""
    if not any(SEALED in tool for tool in tools):
        return tools
    return [_opened(tool, opener) if SEALED in tool else tool for tool in tools]


def _sealed(tool: dict[str, Any], sealer: Callable[[str], str]) -> dict[str, Any]:
    if tool.get("type") == "mcp":
        public, secrets = mcp.split_secrets(tool)
    else:
        public, secrets = _split_container(tool)
    public.pop(SEALED, None)
    return {**public, SEALED: sealer(secrets.decode())} if secrets else public


def _opened(tool: dict[str, Any], opener: Callable[[str], str | None]) -> dict[str, Any]:
    public = {name: value for name, value in tool.items() if name != SEALED}
    secrets = opener(tool[SEALED])
    if secrets is None:
        return public
    if tool.get("type") == "mcp":
        return mcp.join_secrets(public, secrets.encode())
    return {**public, **msgspec.json.decode(secrets, type=dict[str, Any])}


def _split_container(tool: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The same for what a container's network policy holds: the values of `domain_secrets`."""
    public, secrets = dict(tool), {}
    for place in _PLACES:
        described = tool.get(place)
        policy = described.get("network_policy") if isinstance(described, Mapping) else None
        held = policy.get("domain_secrets") if isinstance(policy, Mapping) else None
        if isinstance(described, Mapping) and isinstance(policy, Mapping) and isinstance(held, list) and held:
            without = [{**each, "value": mcp.REDACTED} if isinstance(each, dict) else None for each in held]
            public[place] = {**described, "network_policy": {**policy, "domain_secrets": without}}
            secrets[place] = described
    return public, msgspec.json.encode(secrets) if secrets else b""
