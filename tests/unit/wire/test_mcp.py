"""Declarations of MCP servers: what is refused, what is secret, what is allowed and what has to be approved."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Effect
from stateroom.wire.mcp import (
    REDACTED,
    effect_of,
    is_allowed,
    join_secrets,
    mcp_function,
    needs_approval,
    parse_mcp,
    shown,
    split_secrets,
)

READ = {"name": "look", "annotations": {"readOnlyHint": True}}
WRITE = {"name": "write"}


def declared(**fields: Any) -> dict[str, Any]:
    return {"type": "mcp", "server_label": "deploy", "server_url": "https://mcp.example/mcp", **fields}


def refusal(tool: dict[str, Any]) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse_mcp(tool, "tools[0]")
    return caught.value.code, caught.value.param


def test_a_declaration_is_read_as_openai_writes_it() -> None:
    server = parse_mcp(
        declared(
            authorization="token-1234",
            headers={"X-Team": "blue"},
            allowed_tools=["look"],
            require_approval="never",
            server_description="Deploys things.",
            defer_loading=True,
            allowed_callers=["direct", "programmatic"],
        ),
        "tools[0]",
    )
    assert server.label == "deploy"
    assert server.url == "https://mcp.example/mcp"
    assert server.sent_headers() == {"X-Team": "blue", "authorization": "Bearer token-1234"}
    assert server.defer_loading
    assert server.allowed_callers == ("direct", "programmatic")
    assert server.transport == "auto"


def test_a_token_with_its_scheme_is_not_given_a_second_one() -> None:
    assert parse_mcp(declared(authorization="Bearer abc"), "t").sent_headers() == {"authorization": "Bearer abc"}


@pytest.mark.parametrize(
    ("tool", "code", "param"),
    [
        ({"type": "mcp", "server_url": "https://a.example"}, "missing_required_parameter", "tools[0].server_label"),
        ({"type": "mcp", "server_label": "a"}, "missing_required_parameter", "tools[0].server_url"),
        (declared(server_label="a.b"), "invalid_value", "tools[0].server_label"),
        (declared(server_label="a" * 65), "invalid_value", "tools[0].server_label"),
        (declared(server_url="ftp://a.example"), "invalid_value", "tools[0].server_url"),
        (declared(server_url="https://"), "invalid_value", "tools[0].server_url"),
        (declared(server_url="https://[::1"), "invalid_value", "tools[0].server_url"),
        (declared(server_url="https://a.example:99999/"), "invalid_value", "tools[0].server_url"),
        (declared(server_url="https://u:p@a.example/"), "invalid_value", "tools[0].server_url"),
        (declared(server_url="https://a.example/\r\nHost: b"), "invalid_value", "tools[0].server_url"),
        (declared(connector_id="connector_gmail"), "unsupported_parameter", "tools[0].connector_id"),
        (declared(tunnel_id="tunnel_" + "a" * 32), "unsupported_parameter", "tools[0].tunnel_id"),
        (declared(command=["npx"]), "mutually_exclusive_parameters", "tools[0].command"),
        (declared(environment={"A": "b"}), "mutually_exclusive_parameters", "tools[0].environment"),
        (declared(headers={"Bad Name": "x"}), "invalid_value", "tools[0].headers"),
        (declared(headers={"X-A": "1", "x-a": "2"}), "invalid_value", "tools[0].headers"),
        (declared(headers={"X-A": "a\r\nX-B: b"}), "invalid_value", "tools[0].headers"),
        (declared(headers={"Host": "other.example"}), "invalid_value", "tools[0].headers"),
        (declared(headers={"Mcp-Session-Id": "1"}), "invalid_value", "tools[0].headers"),
        (declared(headers={"X-A": 1}), "invalid_type", "tools[0].headers"),
        (declared(headers={"Authorization": "x"}, authorization="y"), "mutually_exclusive_parameters",
         "tools[0].authorization"),
        (declared(authorization="a\nb"), "invalid_value", "tools[0].authorization"),
        (declared(require_approval="sometimes"), "invalid_value", "tools[0].require_approval"),
        (declared(require_approval={"never": {"tool_names": "all"}}), "invalid_type",
         "tools[0].require_approval.never.tool_names"),
        (declared(allowed_tools=[""]), "string_below_min_length", "tools[0].allowed_tools[0]"),
        (declared(timeout_seconds=0), "decimal_below_min_value", "tools[0].timeout_seconds"),
        (declared(allowed_callers=["anyone"]), "invalid_value", "tools[0].allowed_callers[0]"),
        ({"type": "mcp", "server_label": "a", "command": []}, "array_below_min_length", "tools[0].command"),
        ({"type": "mcp", "server_label": "a", "command": [""]}, "invalid_value", "tools[0].command"),
        ({"type": "mcp", "server_label": "a", "command": ["a\0b"]}, "invalid_value", "tools[0].command"),
        ({"type": "mcp", "server_label": "a", "command": ["a"], "environment": {"A=B": "c"}}, "invalid_value",
         "tools[0].environment"),
        ({"type": "mcp", "server_label": "a", "command": ["a"], "headers": {"A": "b"}},
         "mutually_exclusive_parameters", "tools[0].command"),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_be_meant_is_refused(tool: dict[str, Any], code: str, param: str) -> None:
    assert refusal(tool) == (code, param)


def test_a_command_is_a_server_that_runs_in_the_workspace() -> None:
    server = parse_mcp(
        {"type": "mcp", "server_label": "a", "command": ["npx", "-y", "thing"], "environment": {"KEY": "secret"}}, "t"
    )
    assert (server.command, server.environment, server.transport) == (
        ("npx", "-y", "thing"),
        {"KEY": "secret"},
        "stdio",
    )


def test_nothing_secret_of_a_declaration_is_shown() -> None:
    tool = declared(
        server_url="https://mcp.example:8443/s/very-secret-path?key=very-secret-key",
        authorization="very-secret-token",
        headers={"X-Api-Key": "very-secret-header"},
    )
    public = shown(tool)
    assert "very-secret" not in msgspec.json.encode(public).decode()
    assert public["server_url"] == f"https://mcp.example:8443/{REDACTED}"
    assert public["headers"] == {"X-Api-Key": REDACTED}
    assert public["server_label"] == "deploy"
    assert "very-secret" in msgspec.json.encode(tool).decode()


def test_an_address_that_is_only_a_host_is_no_secret() -> None:
    tool = declared(server_url="https://mcp.example/")
    assert split_secrets(tool) == (tool, b"")


VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@given(
    headers=st.none() | st.dictionaries(VALUES, VALUES, max_size=3),
    token=st.none() | VALUES,
    path=VALUES.filter(lambda text: REDACTED not in text),
)
def test_what_was_split_is_joined_again(headers: dict[str, str] | None, token: str | None, path: str) -> None:
    tool = declared(server_url=f"https://a.example/{path}", headers=headers, authorization=token)
    public, secrets = split_secrets(tool)
    assert join_secrets(public, secrets) == tool
    if token:
        assert public["authorization"] == REDACTED
    assert set(public) == set(tool)
    assert shown(public) == public


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": REDACTED},
        {"headers": {"X": REDACTED}},
        {"server_url": f"https://a.example/{REDACTED}"},
    ],
)
def test_what_was_shown_in_place_of_a_secret_is_not_taken_for_it(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        split_secrets(declared(**fields), "tools[3]")
    assert caught.value.param == f"tools[3].{next(iter(fields))}"


def test_a_declaration_without_its_secrets_can_still_be_read() -> None:
    public, _ = split_secrets(declared(authorization="abcdefgh", headers={"X": "abcdefgh"}))
    assert parse_mcp(public, "t").label == "deploy"


@pytest.mark.parametrize(
    ("allowed", "read", "write"),
    [
        (None, True, True),
        ([], False, False),
        (["look"], True, False),
        ({"read_only": True}, True, False),
        ({"read_only": False}, False, True),
        ({"tool_names": ["write", "look"], "read_only": True}, True, False),
        ({}, True, True),
    ],
)
def test_only_allowed_tools_are_offered(allowed: Any, read: bool, write: bool) -> None:
    server = parse_mcp(declared(allowed_tools=allowed), "t")
    assert (is_allowed(server, READ), is_allowed(server, WRITE)) == (read, write)


@pytest.mark.parametrize(
    ("rule", "read", "write"),
    [
        (None, True, True),
        ("always", True, True),
        ("never", False, False),
        ({"never": {"tool_names": ["look"]}}, False, True),
        ({"never": {"read_only": True}}, False, True),
        ({"never": {}}, True, True),
        ({"always": {"tool_names": ["write"]}}, True, True),
        ({"always": {"tool_names": ["write"]}, "never": {"tool_names": ["write", "look"]}}, False, True),
        ({"always": {}, "never": {"tool_names": ["look"]}}, False, True),
    ],
)
def test_what_no_filter_lets_through_waits_for_an_approval(rule: Any, read: bool, write: bool) -> None:
    server = parse_mcp(declared(require_approval=rule), "t")
    assert (needs_approval(server, READ), needs_approval(server, WRITE)) == (read, write)


@pytest.mark.parametrize(
    ("annotations", "effect"),
    [
        (None, Effect.EFFECT),
        ({}, Effect.EFFECT),
        ({"readOnlyHint": True}, Effect.READ),
        ({"readOnlyHint": "true"}, Effect.EFFECT),
        ({"idempotentHint": True}, Effect.IDEMPOTENT),
        ({"idempotentHint": True, "readOnlyHint": False}, Effect.IDEMPOTENT),
        ("readOnlyHint", Effect.EFFECT),
    ],
)
def test_a_tool_that_says_nothing_of_its_effect_has_one(annotations: Any, effect: Effect) -> None:
    assert effect_of({"name": "t", "annotations": annotations}) is effect


def test_a_tool_is_told_to_the_model_as_a_function() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = mcp_function("weather", {"name": "look", "description": "Looks.", "input_schema": schema})
    assert (function.name, function.description, function.parameters) == ("weather__look", "Looks.", schema)
    assert mcp_function("weather", {"name": "look", "description": 7}).description == "The tool look of weather."


def test_what_is_masked_is_secret_by_its_name_or_its_length() -> None:
    server = parse_mcp(
        declared(
            server_url="https://a.example/v1/documentation/a1b2c3d4e5f6a7b8?sig=in-the-query",
            authorization="Bearer the-token",
            headers={"X-Region": "eu-west-1", "X-Api-Key": "Key short-key", "X-Trace": "0123456789abcdef"},
        ),
        "t",
    )
    assert set(server.secrets()) == {
        "a1b2c3d4e5f6a7b8", "in-the-query", "the-token", "Key short-key", "short-key", "0123456789abcdef",
    }  # fmt: skip
    assert len(server.secrets()[0]) >= len(server.secrets()[-1])
