"""The declaration of an MCP server, `{"type": "mcp", ...}`: what it says, what of it is secret, what may be shown.

Nothing is connected to here. What servers say of their tools is read in `mcp_tools.py`; here it is held against the
declaration.

Secret are the values of `headers`, `authorization`, the values of `environment`, and whatever follows the host in
`server_url`: some servers give out addresses that are keys. A secret is shown as `<redacted>`, so that one sees that it
was given; sent back like that it is refused, since it would be taken for the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NoReturn, TypeAlias
from urllib.parse import unquote_plus, urlsplit

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Effect
from stateroom.wire.decoding import validate
from stateroom.wire.mcp_tools import hints, sane_schema
from stateroom.wire.tool_types import Function

REDACTED: Final = "<redacted>"
HEADERS_MAX: Final = 64
VALUE_MAX: Final = 16 * 1024
"""Characters of one secret: a header's value, a token, an environment variable."""
NAMES_MAX: Final = 1024

_LABEL: Final = r"\A[A-Za-z0-9_-]{1,64}\Z"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET_NAME: Final = re.compile(r"key|token|secret|auth|passw|cookie|credential|session|signature", re.IGNORECASE)
_SURELY_SECRET: Final = 16
"""Characters from which on a value is taken for a secret, whatever it is called."""
_MASKED_FROM: Final = 6
"""A secret of fewer characters is not masked: it would be found by chance."""
_OURS: Final = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "last-event-id",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "mcp-session-id",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers that the protocols say."""

Approval: TypeAlias = Literal["always", "never"]
Transport: TypeAlias = Literal["auto", "streamable_http", "sse", "stdio"]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Names: TypeAlias = Annotated[tuple[Name, ...], msgspec.Meta(max_length=NAMES_MAX)]


class Filter(msgspec.Struct, frozen=True):
    """Some tools of a server. Both conditions hold where both are given."""

    tool_names: Names | None = None
    read_only: bool | None = None
    """Whether the server says that it changes nothing."""

    @property
    def is_empty(self) -> bool:
        return self.tool_names is None and self.read_only is None

    def takes(self, tool: Mapping[str, Any]) -> bool:
        """Whether it holds for a tool, as `mcp_list_tools` has it."""
        if self.read_only is not None and self.read_only != hints(tool, "readOnlyHint"):
            return False
        return self.tool_names is None or tool.get("name") in self.tool_names


class ApprovalFilter(msgspec.Struct, frozen=True):
    """Which tools may not be called unasked."""

    always: Filter | None = None
    never: Filter | None = None


class McpServer(msgspec.Struct, frozen=True):
    """A server that tools come from. Either `url` or `command` is there."""

    label: str
    url: str = ""
    command: tuple[str, ...] = ()
    """Program with its arguments, run inside the workspace and spoken to over its standard streams."""
    environment: dict[str, str] = {}
    """Of `command`."""
    transport: Transport = "auto"
    """auto: streamable HTTP, then the older HTTP with SSE if the server does not know that."""
    headers: dict[str, str] = {}
    authorization: str = ""
    """A token, sent as `Authorization: Bearer`."""
    timeout_seconds: float | None = None
    """How long a call may take; None: as the server's settings say."""
    allowed_tools: Filter | None = None
    require_approval: Approval | ApprovalFilter = "always"
    defer_loading: bool = False
    allowed_callers: tuple[Literal["direct", "programmatic"], ...] = ("direct",)
    description: str = ""

    def sent_headers(self) -> dict[str, str]:
        """The headers that go with every request to it."""
        if not self.authorization:
            return dict(self.headers)
        scheme, _, token = self.authorization.partition(" ")
        bearer = self.authorization if token and scheme.lower() == "bearer" else f"Bearer {self.authorization}"
        return {**self.headers, "authorization": bearer}

    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in anything that is kept or shown, the longest first.

        Short values under harmless names (a region, a log level) are not among them: they would be masked wherever
        their word occurs.
        """
        found = {self.authorization.split(" ")[-1]}
        for name, value in (*self.headers.items(), *self.environment.items()):
            if len(value) >= _SURELY_SECRET or _SECRET_NAME.search(name):
                found |= {value, value.split(" ")[-1]}
        if self.url:
            parts = urlsplit(self.url)
            values = {pair.partition("=")[2] for pair in parts.query.split("&")}
            found |= values | {unquote_plus(value) for value in values}
            segments = parts.path.split("/")
            found |= {each for each in segments if len(each) >= _SURELY_SECRET and any(map(str.isdigit, each))}
        return tuple(sorted((secret for secret in found if len(secret) >= _MASKED_FROM), key=len, reverse=True))


class _Declared(msgspec.Struct):
    """What clients write, by its types."""

    server_label: Annotated[str, msgspec.Meta(pattern=_LABEL)]
    server_url: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)] | None = None
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=128)] | None = None
    environment: Annotated[dict[str, str], msgspec.Meta(max_length=128)] | None = None
    transport: Literal["auto", "streamable_http", "sse"] | None = None
    connector_id: str | None = None
    tunnel_id: str | None = None
    headers: Annotated[dict[str, str], msgspec.Meta(max_length=HEADERS_MAX)] | None = None
    authorization: Annotated[str, msgspec.Meta(max_length=VALUE_MAX)] | None = None
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    allowed_tools: Names | Filter | None = None
    require_approval: Approval | ApprovalFilter | None = None
    defer_loading: bool | None = None
    allowed_callers: tuple[Literal["direct", "programmatic"], ...] | None = None
    server_description: Annotated[str, msgspec.Meta(max_length=64 * 1024)] | None = None


def parse_mcp(tool: Mapping[str, Any], path: str) -> McpServer:
    """The server that a declaration names. `path` is where it stands in the request. Raises InvalidRequest."""
    validate(tool, _Declared, path)
    said = msgspec.convert(tool, _Declared)
    _check_place(said, path)
    _check_headers(said, path)
    for name, value in (said.environment or {}).items():
        if not _VARIABLE.fullmatch(name) or "\0" in value or len(value) > VALUE_MAX:
            _refuse("is no variable that a program can be given", f"{path}.environment")
    allowed = said.allowed_tools
    return McpServer(
        label=said.server_label,
        url=said.server_url or "",
        command=said.command or (),
        environment=said.environment or {},
        transport="stdio" if said.command else said.transport or "auto",
        headers=said.headers or {},
        authorization=said.authorization or "",
        timeout_seconds=said.timeout_seconds,
        allowed_tools=Filter(allowed) if isinstance(allowed, tuple) else allowed,
        require_approval=said.require_approval or "always",
        defer_loading=bool(said.defer_loading),
        allowed_callers=said.allowed_callers or ("direct",),
        description=said.server_description or "",
    )


def shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration as a client may see it again: everything is there but the secrets' values."""
    public = dict(tool)
    if public.get("authorization"):
        public["authorization"] = REDACTED
    for field in ("headers", "environment"):
        if isinstance(public.get(field), dict):
            public[field] = dict.fromkeys(public[field], REDACTED)
    if isinstance(public.get("server_url"), str):
        public["server_url"] = _shown_url(public["server_url"])
    return public


def split_secrets(tool: Mapping[str, Any], path: str = "tool") -> tuple[dict[str, Any], bytes]:
    """A declaration without its secrets, and those, to be sealed; empty where there are none.

    Raises InvalidRequest when it holds what is shown in place of a secret.
    """
    _refuse_redacted(tool, path)
    public = shown(tool)
    secrets = {field: tool[field] for field in tool if public[field] != tool[field]}
    return public, msgspec.json.encode(secrets) if secrets else b""


def join_secrets(public: Mapping[str, Any], secrets: bytes) -> dict[str, Any]:
    """The declaration as it was before :func:`split_secrets`."""
    return {**public, **msgspec.json.decode(secrets, type=dict[str, Any])} if secrets else dict(public)


def is_allowed(server: McpServer, tool: Mapping[str, Any]) -> bool:
    """Whether the model is told of a tool, as `mcp_list_tools` has it."""
    return server.allowed_tools is None or server.allowed_tools.takes(tool)


def needs_approval(server: McpServer, tool: Mapping[str, Any]) -> bool:
    """Whether a client has to allow a call of a tool. What no filter names needs it."""
    rule = server.require_approval
    if not isinstance(rule, ApprovalFilter):
        return rule == "always"
    if rule.always is not None and not rule.always.is_empty and rule.always.takes(tool):
        return True
    return rule.never is None or rule.never.is_empty or not rule.never.takes(tool)


def effect_of(tool: Mapping[str, Any]) -> Effect:
    """What a call of a tool does to the world, by its annotations; what says nothing is taken for an effect."""
    if hints(tool, "readOnlyHint"):
        return Effect.READ
    return Effect.IDEMPOTENT if hints(tool, "idempotentHint") else Effect.EFFECT


def mcp_function(label: str, tool: Mapping[str, Any]) -> Function:
    """A tool as the function that a model is told of; its name has yet to be made fit for models' servers."""
    name = str(tool["name"])
    told = tool.get("description")
    description = told if isinstance(told, str) and told else f"The tool {name} of {label}."
    return Function(f"{label}__{name}", description, sane_schema(tool.get("input_schema")))


def _check_place(said: _Declared, path: str) -> None:
    """Refuse servers that this one cannot reach, and declarations that name none or two."""
    if said.connector_id is not None:
        raise InvalidRequest(
            "This server has no connectors. Give the 'server_url' of an MCP server for that service.",
            code="unsupported_parameter",
            param=f"{path}.connector_id",
        )
    if said.tunnel_id is not None:
        raise InvalidRequest(
            "This server has no tunnels. Give a 'server_url' that it can reach.",
            code="unsupported_parameter",
            param=f"{path}.tunnel_id",
        )
    if said.server_url is None and said.command is None:
        raise InvalidRequest(
            f"Missing required parameter: '{path}.server_url'.",
            code="missing_required_parameter",
            param=f"{path}.server_url",
        )
    if said.command is None:
        if said.environment is not None:
            _exclude("environment", "server_url", path)
        _check_url(said.server_url or "", f"{path}.server_url")
        return
    for other in ("server_url", "headers", "authorization", "transport"):
        if getattr(said, other) is not None:
            _exclude("command", other, path)
    if not said.command[0] or sum(map(len, said.command)) > VALUE_MAX or any("\0" in part for part in said.command):
        _refuse("is no program with arguments", f"{path}.command")


def _check_url(url: str, path: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        named = parts.username is not None or parts.password is not None
    except ValueError:
        valid = named = False
    if not valid or not url.isprintable() or " " in url:
        _refuse("must be an http or https URL", path)
    if named:
        _refuse("must not carry a user or a password: use 'authorization' or 'headers'", path)


def _check_headers(said: _Declared, path: str) -> None:
    given: set[str] = set()
    for name, value in (said.headers or {}).items():
        place = f"{path}.headers"
        if not _TOKEN.fullmatch(name) or name.lower() in given:
            _refuse("holds a name that no header can have, or one twice", place)
        if name.lower() in _OURS:
            _refuse(f"must not set '{name}', which the protocol sets", place)
        if len(value) > VALUE_MAX or not _VALUE.fullmatch(value):
            _refuse(f"holds a value for '{name}' that no header can have", place)
        given.add(name.lower())
    if said.authorization:
        if "authorization" in given:
            _exclude("authorization", "headers.Authorization", path)
        if not _VALUE.fullmatch(said.authorization):
            _refuse("is no token that a header can carry", f"{path}.authorization")


def _refuse_redacted(tool: Mapping[str, Any], path: str) -> None:
    for field in ("server_url", "authorization", "headers", "environment"):
        given = tool.get(field)
        values = given.values() if isinstance(given, dict) else (given,)
        if any(isinstance(value, str) and REDACTED in value for value in values):
            _refuse(
                f"holds '{REDACTED}', which responses show in place of a secret: send the value itself",
                f"{path}.{field}",
            )


def _shown_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return REDACTED
    origin = f"{parts.scheme}://{host}"
    return url if url.removesuffix("/") == origin else f"{origin}/{REDACTED}"


def _exclude(one: str, other: str, path: str) -> NoReturn:
    raise InvalidRequest(
        f"'{path}.{one}' and '{path}.{other}' exclude each other.",
        code="mutually_exclusive_parameters",
        param=f"{path}.{one}",
    )


def _refuse(problem: str, path: str) -> NoReturn:
    raise InvalidRequest(f"'{path}' {problem}.", code="invalid_value", param=path)
