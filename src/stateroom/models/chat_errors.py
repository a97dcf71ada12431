"""Which error a chat server's failure is: by status, by what its body says, by how the connection broke. Pure.

Texts of the server are passed on for the caller's own mistakes only, shortened and without the server's key.
"""

from __future__ import annotations

import email.utils
import re
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec

from stateroom.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
)
from stateroom.reasons import reason

MESSAGE_LIMIT: Final = 2000
RETRY_AFTER_LIMIT: Final = 3600.0

_OVERFLOW = re.compile(
    r"exceed_context_size|context_length_exceeded|context_window_exceeded|maximum context length|context window"
    r"|(exceed|longer than|larger than|greater than|beyond)[^.]{0,60}context (length|size)"
    r"|context (length|size)[^.]{0,40}(exceed|is only)|input token count[^.]{0,40}exceed"
    r"|prompt is too long|is too large to process|input (is )?too long|max_new_tokens`? must be <=",
    re.IGNORECASE,
)


_NAME: Final = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,128}")


class Told(msgspec.Struct, frozen=True):
    """What an error body says."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str | None = None
    status: int = 0
    """When `code` is a number, as in errors inside a stream."""


def read_error(body: bytes, key: str | None = None) -> Told:
    """The error in a body of any of the usual shapes, without the server's key."""
    try:
        held = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return Told(message=without_key(body.decode("utf-8", "replace"), key)[:MESSAGE_LIMIT].strip())
    return told(held, key)


def told(held: Any, key: str | None = None) -> Told:
    """The same from a decoded value: `{"error": {...}}`, `{"error": "text"}`, `{"detail": ...}`, `{"message": ...}`."""
    if isinstance(held, list) and held:
        held = held[0]
    error = held.get("error", held) if isinstance(held, dict) else held
    if not isinstance(error, dict):
        return Told(message=_text(error, key))
    code = error.get("code")
    param = error.get("param")
    number = code if isinstance(code, int) and not isinstance(code, bool) else _digits(code)
    return Told(
        message=_text(error.get("message") or error.get("detail") or error.get("msg") or error, key),
        type=without_key(str(error.get("type") or ""), key),
        code="" if number else _name(code, key),
        param=_name(param, key) or None,
        status=number if 400 <= number <= 599 else 0,
    )


def _digits(code: Any) -> int:
    return int(code) if isinstance(code, str) and len(code) == 3 and code.isdecimal() else 0


def _text(value: Any, key: str | None) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return without_key(text, key)[:MESSAGE_LIMIT]


def _name(value: Any, key: str | None) -> str:
    """A code or the path of a parameter; nothing else is passed on in their place."""
    name = value if isinstance(value, str) else ""
    return name if _NAME.fullmatch(name) and without_key(name, key) == name else ""


def without_key(text: str, key: str | None) -> str:
    """The text without the key, as it stands or as JSON and URLs write it. To be used before a text is shortened."""
    if key:
        for form in (key, msgspec.json.encode(key)[1:-1].decode(), quote(key, safe="")):
            text = text.replace(form, "***")
    return text


def from_status(
    status: int, error: Told, *, server: str, key: str | None, headers: Mapping[str, str], now: float
) -> BackendError:
    """The error for an answer with this status. `server` names it in messages."""
    message = without_key(error.message, key)
    said = f"{server} answered {status}" + (f": {message}" if message else ".")
    if status in (401, 403):
        text = f"{server} refused Stateroom's own credentials ({status}); its operator has to set the right key."
        return BackendFailed(text, code="backend_auth_failed")
    if status == 429:
        return BackendBusy(said, retry_after=retry_after(headers, now) or 1.0)
    if status == 404:
        return _missing(error, message, said, server)
    if _OVERFLOW.search(f"{error.type} {error.code} {message}"):
        return BackendRejected(message or said, code="context_length_exceeded", param="input")
    if status in (408, 425, 503):
        return BackendUnavailable(said)
    if 400 <= status < 500:
        return BackendRejected(message or said, status=status, code=error.code or None, param=error.param)
    if 300 <= status < 400:
        text = f"{server} redirects elsewhere ({status}); its operator has to give the URL it redirects to."
        return BackendFailed(text, code="backend_misconfigured")
    return BackendFailed(said)


def _missing(error: Told, message: str, said: str, server: str) -> BackendError:
    if error.code == "model_not_found" or re.search(r"\bmodel\b", message, re.IGNORECASE):
        return BackendRejected(message or said, status=404, code="model_not_found", param="model")
    text = f"{server} has no such route (404); its operator has to check the URL, which usually ends in /v1."
    return BackendFailed(text, code="backend_misconfigured")


def from_stream(error: Told, *, server: str, key: str | None) -> BackendError:
    """The error for one that came inside a stream that had begun with 200."""
    status = error.status
    if not status:
        kind = f"{error.type} {error.code}".lower()
        rejected = any(word in kind for word in ("invalid_request", "badrequest", "bad_request"))
        status = 400 if rejected or _OVERFLOW.search(f"{kind} {error.message}") else 500
    return from_status(status, error, server=server, key=key, headers={}, now=0.0)


def from_transport(exc: Exception, *, server: str, connect_seconds: float) -> BackendError:
    """The error for a connection that could not be made or broke. What the server sent is not repeated."""
    why = reason(getattr(exc, "os_error", None) or exc)
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return BackendUnavailable(f"{server} cannot be found: {why}. Check the host name in its URL.")
    if isinstance(exc, aiohttp.ClientSSLError | ssl.SSLError):
        text = f"{server} cannot be reached over TLS: {why}. Check its certificate and whether its URL is https."
        return BackendUnavailable(text, code="backend_tls_failed")
    if isinstance(exc, aiohttp.ServerTimeoutError):
        text = f"{server} did not accept a connection within {connect_seconds:g} s. Check that it runs and its URL."
        return BackendTimeout(text, code="backend_connect_timeout")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return BackendUnavailable(f"{server} cannot be reached: {why}. Check that it runs and its URL.")
    if isinstance(exc, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return BackendFailed(f"{server} has a URL that is not valid.", code="backend_misconfigured")
    if isinstance(exc, aiohttp.ClientResponseError):
        return BackendFailed(f"{server} answered something that is not HTTP.", code="backend_bad_answer")
    if isinstance(exc, aiohttp.ClientPayloadError):
        return BackendFailed(f"{server} broke off in the middle of its answer.")
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return BackendFailed(f"{server} broke off: it closed the connection.")
    return BackendFailed(f"{server} broke off: {why}.")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait: from `Retry-After-Ms`, or `Retry-After` as a number or a date."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value):
            return min(RETRY_AFTER_LIMIT, float(value) * scale)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError):
        return None
    return min(RETRY_AFTER_LIMIT, max(0.0, date.timestamp() - now))
