"""What comes of calling an MCP tool, as text for the model.

Text is passed on as it is. An image or sound becomes one line that says its type and size, a link to a resource one
with its address; a resource that comes along is its text, or such a line. Structured content is JSON, and is left out
where there is text, since servers repeat it there. The middle of what is too long is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from stateroom.wire.mcp import REDACTED
from stateroom.wire.mcp_tools import execution_error


class McpResult(msgspec.Struct, frozen=True):
    """What an item `mcp_call` says of a call."""

    output: str = ""
    error: dict[str, Any] | None = None
    """Of the type `mcp_protocol_error`, `mcp_tool_execution_error` or `http_error`."""
    unknown: bool = False
    """Whether the call may have been carried out although there is an error."""


def read_result(told: Mapping[str, Any], *, output_bytes: int, secrets: Sequence[str]) -> McpResult:
    """A server's answer to `tools/call`."""
    text = shortened(masked("\n".join(_parts(told)), secrets), output_bytes)
    if told.get("isError") is True:
        return McpResult(error=execution_error([{"type": "text", "text": text}]))
    return McpResult(text)


def masked(text: str, secrets: Sequence[str]) -> str:
    """A text without the secrets that the server was sent."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
        escaped = msgspec.json.encode(secret).decode()[1:-1]
        if escaped != secret:
            text = text.replace(escaped, REDACTED)
    return text


def masked_within(value: Any, secrets: Sequence[str]) -> Any:
    """The same for whatever JSON says."""
    if isinstance(value, str):
        return masked(value, secrets)
    if isinstance(value, Mapping):
        return {masked_within(key, secrets): masked_within(held, secrets) for key, held in value.items()}
    return [masked_within(held, secrets) for held in value] if isinstance(value, list | tuple) else value


def shortened(text: str, limit: int) -> str:
    """A text of so many bytes at most, without its middle."""
    raw = text.encode(errors="replace")
    if len(raw) <= limit:
        return raw.decode()
    half = max(1, limit // 2)
    head, tail = raw[:half].decode(errors="ignore"), raw[-half:].decode(errors="ignore")
    return f"{head}\n[{len(raw) - 2 * half} bytes left out]\n{tail}"


def _parts(told: Mapping[str, Any]) -> Iterator[str]:
    content = [part for part in told.get("content") or () if isinstance(part, dict)]
    if "structuredContent" in told and not any(part.get("type") == "text" for part in content):
        yield msgspec.json.encode(told["structuredContent"]).decode()
    for part in content:
        yield _part(part)


def _part(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind == "text":
        return str(part.get("text", ""))
    if kind in ("image", "audio"):
        return f"[{kind} of type {part.get('mimeType')}, {_size(part.get('data'))} bytes, not shown]"
    if kind == "resource_link":
        words = (part.get("name"), part.get("mimeType"), part.get("description"))
        about = ", ".join(str(word) for word in words if word)
        return f"[resource {part.get('uri')}{f': {about}' if about else ''}]"
    if kind == "resource" and isinstance(part.get("resource"), dict):
        resource = part["resource"]
        if isinstance(resource.get("text"), str):
            return f"[resource {resource.get('uri')}]\n{resource['text']}"
        kind_of = resource.get("mimeType") or "application/octet-stream"
        return f"[resource {resource.get('uri')} of type {kind_of}, {_size(resource.get('blob'))} bytes, not shown]"
    return f"[content of type {kind}, not shown]"


def _size(encoded: Any) -> int:
    """Bytes of base64."""
    return len(encoded.rstrip("=")) * 3 // 4 if isinstance(encoded, str) else 0
